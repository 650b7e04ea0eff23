"""Point metrics of predictions: macro F1, accuracy, balanced accuracy, recall, calibration.

Every score here is a function of three counts per class: hits, answers and targets. Counts of
groups add up, so a resample of groups is one product of a weight matrix with the groups' counts.
A score of labels counts the classes of each label, one label's after the other's.
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


@dataclass(frozen=True)
class View:
    """One label of the joint class."""

    codes: tuple[int, ...]  # of every joint class, its class of the label
    n_classes: int

    def of(self, joint: Ints) -> Ints:
        """Return the label's classes of joint ones; a joint class that is not known gives another.

        Such a class, `n_classes - 1`, is no class of the label and never a target.
        """
        table = np.array([*self.codes, self.n_classes - 1], np.int64)
        return table[np.minimum(joint, len(self.codes))]


@dataclass(frozen=True)
class Scorer:
    """How answers become one number: a metric of the joint class, or its mean over some labels."""

    metric: str = "macro_f1"  # macro_f1, accuracy or balanced_accuracy
    views: tuple[View, ...] = ()  # empty: the joint class

    @property
    def parts(self) -> list[slice]:
        """Where the classes of each label stand on the last axis of the counts."""
        if not self.views:
            return [slice(None)]
        parts = []
        start = 0
        for view in self.views:
            parts.append(slice(start, start + view.n_classes))
            start += view.n_classes
        return parts

    def seen(self, joint: Ints) -> list[Ints]:
        """Return the classes that each part counts."""
        return [view.of(joint) for view in self.views] if self.views else [joint]

    def sizes(self, n_classes: int) -> list[int]:
        """Return the number of classes of each part; `n_classes` is that of the joint class."""
        return [view.n_classes for view in self.views] if self.views else [n_classes]


Metric = str | Scorer
"""A scorer; a name alone is that metric of the joint class."""


def as_scorer(metric: Metric) -> Scorer:
    """Return the scorer that a name stands for."""
    return Scorer(metric) if isinstance(metric, str) else metric


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


def counts(
    targets: Ints,
    preds: Ints,
    owners: Ints,
    n_owners: int,
    n_classes: int,
    metric: Metric = "macro_f1",
) -> Floats:
    """Return per owner the hits, answers and targets of every class: (n_owners, 3, n_classes).

    For a score of labels the last axis holds the classes of each of them.
    """
    scorer = as_scorer(metric)
    seen = zip(scorer.seen(targets), scorer.seen(preds), scorer.sizes(n_classes), strict=True)
    tallies = [_counts(truth, given, owners, n_owners, size) for truth, given, size in seen]
    return tallies[0] if len(tallies) == 1 else np.concatenate(tallies, axis=-1)


def _counts(targets: Ints, preds: Ints, owners: Ints, n_owners: int, n_classes: int) -> Floats:
    first = owners * (3 * n_classes)
    hit = targets == preds
    cells = np.concatenate(
        [first[hit] + targets[hit], first + n_classes + preds, first + 2 * n_classes + targets]
    )
    tallies = np.bincount(cells, minlength=n_owners * 3 * n_classes)
    return tallies.reshape(n_owners, 3, n_classes).astype(np.float64)


def score(tallies: Floats, metric: Metric) -> Floats:
    """Return a metric of tallies (..., 3, C), which may be weighted by any numbers >= 0.

    Macro F1 is the mean over the classes with targets; accuracy is hits per target; balanced
    accuracy is the mean recall of the classes with targets.
    """
    scorer = as_scorer(metric)
    scores = [_score(tallies[..., part], scorer.metric) for part in scorer.parts]
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


def _score(tallies: Floats, metric: str) -> Floats:
    hits = tallies[..., 0, :]
    answers = tallies[..., 1, :]
    targets = tallies[..., 2, :]
    if metric == "accuracy":
        return _ratio(hits.sum(-1), targets.sum(-1))
    present = targets > 0
    of_class = _ratio(2 * hits, answers + targets)
    if metric == "balanced_accuracy":
        of_class = _ratio(hits, targets)
    return _ratio((of_class * present).sum(-1), present.sum(-1))


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


def linear_shares(targets: Ints, preds: Ints, tally: Floats, metric: Metric) -> Floats:
    """Return the influence of every sample on a score, to first order at given counts.

    Args:
        targets: (N,).
        preds: (..., N).
        tally: (3, C) counts at which the score is linearised.
        metric: of which score.

    Returns:
        (..., N). They sum to 0 where `tally` is that of these samples; the sums of two arms differ
        by about the difference of their scores.
    """
    scorer = as_scorer(metric)
    shares = []
    for truth, given, part in zip(
        scorer.seen(targets), scorer.seen(preds), scorer.parts, strict=True
    ):
        shares.append(_linear_shares(truth, given, tally[:, part], scorer.metric))
    return shares[0] if len(shares) == 1 else np.asarray(np.mean(shares, axis=0))


def _linear_shares(targets: Ints, preds: Ints, tally: Floats, metric: str) -> Floats:
    hits = preds == targets
    present = tally[2] > 0
    if metric == "accuracy":
        n_targets = max(tally[2].sum(), 1.0)
        return np.asarray((hits - tally[0].sum() / n_targets) / n_targets)
    if metric == "balanced_accuracy":
        n_of_class = np.where(present, tally[2], 1.0)
        per_target = present / (n_of_class * max(present.sum(), 1))
        return np.asarray((hits - (tally[0] / n_of_class)[targets]) * per_target[targets])
    size = np.where(present, tally[1] + tally[2], 1.0)
    per_hit = present / (size * max(present.sum(), 1))
    cost = per_hit * 2 * tally[0] / size
    return np.asarray(2 * hits * per_hit[targets] - cost[targets] - cost[preds])


def score_of(targets: Ints, preds: Ints, n_classes: int, metric: Metric) -> float:
    """Return the score of one set of answers (N,), 0 to 1."""
    zeros = np.zeros(len(targets), np.int64)
    return float(score(counts(targets, preds, zeros, 1, n_classes, metric), metric)[0])


def macro_f1(targets: Ints, preds: Ints, n_classes: int) -> float:
    """Return macro F1 over the classes present in the targets, 0 to 1."""
    return score_of(targets, preds, n_classes, "macro_f1")


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
