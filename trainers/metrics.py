"""Metrics of predicted classes, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def joint_class(codes: Ints, sizes: tuple[int, ...]) -> Ints:
    """Join codes (N, L) into the joint class (N,), the first label weighing most."""
    return np.ravel_multi_index(tuple(codes.T), sizes).astype(np.int64)


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
