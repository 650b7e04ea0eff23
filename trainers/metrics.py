"""Metrics of predicted classes, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def joint_class(codes: Ints, sizes: tuple[int, ...]) -> Ints:
    """Join codes (N, L) into the joint class (N,), the first label weighing most.

    A row that lacks one of the labels, by a negative code, has the joint class -1.
    """
    joint = np.ravel_multi_index(tuple(np.maximum(codes.T, 0)), sizes).astype(np.int64)
    return np.where((codes < 0).any(axis=1), -1, joint)


def split_class(label: Ints, sizes: tuple[int, ...]) -> Ints:
    """Split joint classes (N,) into codes (N, L)."""
    return np.stack(np.unravel_index(label, sizes), axis=1).astype(np.int64)


def macro_f1(target: Ints, predicted: Ints) -> float:
    """Return the mean F1 over the classes present in `target`, 0 to 1."""
    scores = []
    for k in np.unique(target):
        n_hits = np.sum((predicted == k) & (target == k))
        scores.append(2.0 * n_hits / (np.sum(predicted == k) + np.sum(target == k)))
    return float(np.mean(scores)) if scores else 0.0


def accuracy(target: Ints, predicted: Ints) -> float:
    """Return the share of right answers, 0 to 1."""
    return float(np.mean(target == predicted)) if len(target) else 0.0


def balanced_accuracy(target: Ints, predicted: Ints) -> float:
    """Return the mean recall over the classes present in `target`, 0 to 1."""
    recalls = [np.mean(predicted[target == k] == k) for k in np.unique(target)]
    return float(np.mean(recalls)) if recalls else 0.0


METRICS = {"macro_f1": macro_f1, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True)
class Objective:
    """What the best epoch is chosen by: a metric of the joint class, or its mean over labels."""

    metric: str  # a name of METRICS
    labels: Sequence[str] = ()  # empty: the joint class

    def score(self, codes: Mapping[str, tuple[Ints, Ints]], joint: tuple[Ints, Ints]) -> float:
        """Return the score of answers.

        Args:
            codes: label that the head answers -> its true and answered classes, each (N,).
            joint: the same of all these labels together.

        Raises:
            ValueError: the head answers none of the labels.
        """
        metric = METRICS[self.metric]
        if not self.labels:
            return metric(*joint)
        scores = [metric(*codes[name]) for name in self.labels if name in codes]
        if not scores:
            raise ValueError(
                f"score: a head that answers {', '.join(self.labels)} was required, "
                f"found one that answers {', '.join(codes)}"
            )
        return float(np.mean(scores))
