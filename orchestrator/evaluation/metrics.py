"""Point metrics of predictions: macro F1, accuracy, recall, calibration.

Every score here is a function of three counts per class: hits, answers and targets. Counts of
groups add up, so a resample of groups is one product of a weight matrix with the groups' counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.predictions import Predictions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.float32]
LEVEL = 0.90
MANY_GROUPS = 30
"""Of a class. With fewer, one person moves its recall by more than 0.03: it may break no tie."""
_DRAWS = 2**17  # of groups at a time: 1 MB


class Owners(NamedTuple):
    """The number of every sample's group, and how many groups there are."""

    of_sample: Ints  # (N,)
    n_groups: int


def owners_of(predictions: Predictions) -> Owners:
    """Number the groups in the order of their first sample."""
    if predictions.groups is None:
        n_samples = len(predictions.sample_ids)
        return Owners(np.arange(n_samples), n_samples)
    number: dict[str, int] = {}
    of_sample = [number.setdefault(name, len(number)) for name in predictions.groups]
    return Owners(np.array(of_sample, np.int64), len(number))


def counts(targets: Ints, preds: Ints, owners: Ints, n_owners: int, n_classes: int) -> Floats:
    """Return per owner the hits, answers and targets of every class: (n_owners, 3, n_classes)."""
    first = owners * (3 * n_classes)
    hit = targets == preds
    cells = np.concatenate(
        [first[hit] + targets[hit], first + n_classes + preds, first + 2 * n_classes + targets]
    )
    tallies = np.bincount(cells, minlength=n_owners * 3 * n_classes)
    return tallies.reshape(n_owners, 3, n_classes).astype(np.float64)


def score(tallies: Floats, metric: str) -> Floats:
    """Return a metric of tallies (..., 3, C), which may be weighted by any numbers >= 0.

    Macro F1 is the mean over the classes with targets; accuracy is hits per target.
    """
    hits = tallies[..., 0, :]
    answers = tallies[..., 1, :]
    targets = tallies[..., 2, :]
    if metric == "accuracy":
        return _ratio(hits.sum(-1), targets.sum(-1))
    present = targets > 0
    f1 = _ratio(2 * hits, answers + targets)
    return _ratio((f1 * present).sum(-1), present.sum(-1))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, and 0 where below is 0."""
    above = np.asarray(above, np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def resample(n_groups: int, n: int, rng: np.random.Generator) -> Counts:
    """Return how often each group is drawn in each of n resamples of all groups, (n, G).

    The draws are those of one call of `rng.integers`, made in pieces that fit into the cache.
    """
    weights = np.empty((n, n_groups), np.float32)  # counts are exact up to 2^24
    size = max(1, _DRAWS // max(n_groups, 1))
    for start in range(0, n, size):
        piece = weights[start : start + size]
        drawn = rng.integers(0, n_groups, piece.shape)
        drawn += np.arange(len(piece))[:, None] * n_groups
        piece[:] = np.bincount(drawn.ravel(), minlength=piece.size).reshape(piece.shape)
    return weights


def linear_shares(targets: Ints, preds: Ints, tally: Floats, metric: str) -> Floats:
    """Return the influence of every sample on a score, to first order at given counts.

    Args:
        targets: (N,).
        preds: (..., N).
        tally: (3, C) counts at which the score is linearised.
        metric: macro_f1 or accuracy.

    Returns:
        (..., N). They sum to 0 where `tally` is that of these samples; the sums of two arms differ
        by about the difference of their scores.
    """
    hits = preds == targets
    present = tally[2] > 0
    if metric == "accuracy":
        n_targets = max(tally[2].sum(), 1.0)
        return np.asarray((hits - tally[0].sum() / n_targets) / n_targets)
    size = np.where(present, tally[1] + tally[2], 1.0)
    per_hit = present / (size * max(present.sum(), 1))
    cost = per_hit * 2 * tally[0] / size
    return np.asarray(2 * hits * per_hit[targets] - cost[targets] - cost[preds])


def macro_f1(targets: Ints, preds: Ints, n_classes: int) -> float:
    """Return macro F1 over the classes present in the targets, 0 to 1."""
    zeros = np.zeros(len(targets), np.int64)
    return float(score(counts(targets, preds, zeros, 1, n_classes), "macro_f1")[0])


def recalls(targets: Ints, preds: Ints, n_classes: int) -> dict[int, float]:
    """Return the recall of every class present in the targets."""
    return {
        int(k): float(np.mean(preds[targets == k] == k))
        for k in range(n_classes)
        if np.any(targets == k)
    }


@dataclass(frozen=True)
class ClassMetrics:
    """The scores of one class; a precision is 0 where nothing was answered by the class."""

    code: int
    n: int  # samples
    precision: float
    recall: float
    f1: float


def class_metrics(targets: Ints, preds: Ints, n_classes: int) -> list[ClassMetrics]:
    """Return the scores of every class present in the targets."""
    hits, answers, n_targets = counts(targets, preds, np.zeros_like(targets), 1, n_classes)[0]
    return [
        ClassMetrics(
            code=int(k),
            n=int(n_targets[k]),
            precision=float(hits[k] / max(answers[k], 1)),
            recall=float(hits[k] / n_targets[k]),
            f1=float(2 * hits[k] / (answers[k] + n_targets[k])),
        )
        for k in np.flatnonzero(n_targets)
    ]


def calibration_error(confidences: Floats, correct: NDArray[np.bool_], n_bins: int = 15) -> float:
    """Return the expected calibration error: |confidence - accuracy| averaged over equal bins.

    Args:
        confidences: (N,) probability of the given answer, 0 to 1.
        correct: (N,) True where the answer was right.
        n_bins: of equal width; Guo et al. 2017 use 15.
    """
    place = np.minimum((confidences * n_bins).astype(np.int64), n_bins - 1)
    confidence_sums = np.bincount(place, weights=confidences, minlength=n_bins)
    hit_sums = np.bincount(place, weights=correct, minlength=n_bins)
    return float(np.abs(confidence_sums - hit_sums).sum() / max(len(confidences), 1))


def classes_of_many(targets: Ints, owners: Ints, n_classes: int) -> NDArray[np.bool_]:
    """Return which classes (C,) have at least `MANY_GROUPS` groups."""
    pairs = np.unique(np.stack([targets, owners]), axis=1)
    return np.bincount(pairs[0], minlength=n_classes) >= MANY_GROUPS


def total_variation(targets: Ints, preds: Ints, n_classes: int) -> float:
    """Return half the summed difference of the true and the predicted class shares, 0 to 1."""
    n_samples = max(len(targets), 1)
    true_shares = np.bincount(targets, minlength=n_classes) / n_samples
    predicted_shares = np.bincount(preds, minlength=n_classes) / n_samples
    return float(np.abs(true_shares - predicted_shares).sum() / 2)
