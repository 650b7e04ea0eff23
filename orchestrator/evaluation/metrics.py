"""Statistics of predictions: macro F1, bootstrap over groups, paired tests, Holm. All seeded.

Every statistic here is a function of three counts per class: hits, answers and targets. Counts of groups add up, so a
resample of groups is one product of a weight matrix with the groups' counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.predictions import Predictions, align

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEVEL = 0.90
N_RESAMPLES = 2000
N_PERMUTATIONS = 5000
_CELLS = 2**24
_EXACT_GROUPS = 12  # 2^12 sign patterns are fewer than the random ones


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    estimate: float
    low: float
    high: float
    level: float
    n_groups: int
    n_samples: int
    too_narrow: bool  # samples of one person were resampled as if they were independent

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def counts(targets: Ints, preds: Ints, owners: Ints, n_owners: int, n_classes: int) -> Floats:
    """Return per owner the hits, answers and targets of every class: (n_owners, 3, n_classes)."""
    out = np.zeros((n_owners, 3, n_classes))
    hit = targets == preds
    np.add.at(out[:, 0], (owners[hit], targets[hit]), 1)
    np.add.at(out[:, 1], (owners, preds), 1)
    np.add.at(out[:, 2], (owners, targets), 1)
    return out


def score(tallies: Floats, metric: str) -> Floats:
    """Return a metric of tallies (..., 3, C): macro F1 over the classes present in the targets, or accuracy."""
    hits, answers, targets = tallies[..., 0, :], tallies[..., 1, :], tallies[..., 2, :]
    if metric == "accuracy":
        return np.asarray(hits.sum(-1) / np.maximum(targets.sum(-1), 1))
    present = targets > 0
    f1 = 2 * hits / np.maximum(answers + targets, 1)
    return np.asarray((f1 * present).sum(-1) / np.maximum(present.sum(-1), 1))


def weighted(weights: Floats, tallies: Floats, metric: str = "macro_f1") -> Floats:
    """Return a metric of groups counted by weights: (n, G) times (G, 3, C) gives (n,)."""
    return score(np.tensordot(weights, tallies, 1), metric)


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


def class_metrics(targets: Ints, preds: Ints, n_classes: int) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and number of samples of every class present in the targets."""
    hits, answers, there = counts(targets, preds, np.zeros(len(targets), np.int64), 1, n_classes)[0]
    return [
        {
            "class": int(k),
            "n": int(there[k]),
            "precision": float(hits[k] / max(answers[k], 1)),
            "recall": float(hits[k] / there[k]),
            "f1": float(2 * hits[k] / (answers[k] + there[k])),
        }
        for k in np.flatnonzero(there)
    ]


def calibration_error(confidences: Floats, correct: NDArray[np.bool_], n_bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart, averaged over equal bins.

    Args:
        confidences: (N,) probability of the given answer, 0 to 1.
        correct: (N,) whether it was right.
        n_bins: of equal width; Guo et al. 2017 use 15.
    """
    place = np.minimum((confidences * n_bins).astype(np.int64), n_bins - 1)
    sure, right = (
        np.bincount(place, weights=values, minlength=n_bins) for values in (confidences, correct)
    )
    return float(np.abs(sure - right).sum() / max(len(confidences), 1))


def total_variation(targets: Ints, preds: Ints, n_classes: int) -> float:
    """Return half the summed difference of the true and the predicted class shares, 0 to 1."""
    true, found = (
        np.bincount(values, minlength=n_classes) / max(len(values), 1)
        for values in (targets, preds)
    )
    return float(np.abs(true - found).sum() / 2)


def interval(
    oof: Predictions,
    *,
    metric: str = "macro_f1",
    seed: int,
    n: int = N_RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return a metric, averaged over seeds, with its percentile interval by resampling groups.

    Source: Efron and Tibshirani 1993, chapters 8 and 13; the cluster bootstrap.
    """
    owners, n_groups = owners_of(oof)
    tallies = _seed_counts(oof, owners, n_groups)
    estimate = float(np.mean([score(one.sum(0), metric) for one in tallies]))
    rng = np.random.default_rng(seed)
    draws = np.concatenate(
        [
            np.mean([weighted(weights, one, metric) for one in tallies], axis=0)
            for weights in (resample(n_groups, size, rng) for size in _pieces(n, n_groups))
        ]
    )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate, float(low), float(high), level, n_groups, len(oof.targets), oof.groups is None
    )


def paired_difference(
    a: Predictions, b: Predictions, *, metric: str = "macro_f1", seed: int
) -> dict[str, Any]:
    """Compare two arms on the samples that both predicted.

    Returns:
        difference (a minus b), low and high (90 %), p_value (two-sided, by swapping the two arms' predictions per
        group), n_groups, n_samples, n_left_out (samples that one of them alone predicted), too_narrow (without
        groups), n_seeds, standard_error, standard_error_one_seed (that of a single seed on average, null where there
        is one seed).

    Raises:
        ValueError: they have no sample in common, or disagree on a target.
    """
    n_answered = len(set(a.sample_ids) | set(b.sample_ids))
    a, b = _common(a, b)
    owners, n_groups = owners_of(a)
    rng = np.random.default_rng(seed)
    ta, tb = _seed_counts(a, owners, n_groups), _seed_counts(b, owners, n_groups)

    def by_seed(weights: Floats, tallies: list[Floats]) -> Floats:
        return np.stack([weighted(weights, one, metric) for one in tallies])

    ones = np.ones((1, n_groups))
    pieces = []
    for size in _pieces(N_RESAMPLES, n_groups):
        weights = resample(n_groups, size, rng)
        pieces.append((by_seed(weights, ta), by_seed(weights, tb)))
    drawn = [np.concatenate(side, axis=1) for side in zip(*pieces, strict=True)]
    draws = drawn[0].mean(0) - drawn[1].mean(0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = float((by_seed(ones, ta).mean(0) - by_seed(ones, tb).mean(0))[0])
    n_seeds = min(len(ta), len(tb))
    alone = (
        np.sqrt(np.mean([np.var(x - y) for x, y in zip(*drawn, strict=False)]))
        if n_seeds > 1
        else None
    )
    pairs = list(zip(_pad(ta, len(tb)), _pad(tb, len(ta)), strict=True))
    beyond = n_swaps = 0
    for swap in _swaps(n_groups, rng):
        under = np.mean(
            [
                score(np.tensordot(1 - swap, x, 1) + np.tensordot(swap, y, 1), metric)
                - score(np.tensordot(swap, x, 1) + np.tensordot(1 - swap, y, 1), metric)
                for x, y in pairs
            ],
            axis=0,
        )
        beyond, n_swaps = (
            beyond + int(np.sum(np.abs(under) >= abs(difference) - 1e-12)),
            n_swaps + len(swap),
        )
    p_value = beyond / n_swaps if n_groups <= _EXACT_GROUPS else (beyond + 1) / (n_swaps + 1)
    return {
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "p_value": float(p_value),
        "n_groups": n_groups,
        "n_samples": len(a.targets),
        "n_left_out": n_answered - len(a.targets),
        "too_narrow": a.groups is None,
        "n_seeds": n_seeds,
        "standard_error": float(draws.std()),
        "standard_error_one_seed": None if alone is None else float(alone),
    }


class Owners(NamedTuple):
    """The number of every sample's group, and how many groups there are."""

    of_sample: Ints  # (N,)
    n_groups: int


def owners_of(predictions: Predictions) -> Owners:
    """Number the groups in the order of their first sample."""
    names = predictions.groups if predictions.groups is not None else predictions.sample_ids
    number: dict[str, int] = {}
    of_sample = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
    return Owners(of_sample, len(number))


def resample(n_groups: int, n: int, rng: np.random.Generator) -> Floats:
    """Return how often each group is drawn in each of n resamples of all groups, (n, G)."""
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n).astype(np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for testing a family (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


def _seed_counts(oof: Predictions, owners: Ints, n_groups: int) -> list[Floats]:
    return [counts(oof.targets, preds, owners, n_groups, oof.n_classes) for preds in oof.preds]


def _pad(tallies: list[Floats], n: int) -> list[Floats]:
    """Repeat seeds where one arm has fewer, so that each stands beside one of the other."""
    return [tallies[at % len(tallies)] for at in range(max(n, len(tallies)))]


def _swaps(n_groups: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield patterns of swaps (n, G): all of them where they are few, random ones otherwise."""
    if n_groups <= _EXACT_GROUPS:
        yield ((np.arange(2**n_groups)[:, None] >> np.arange(n_groups)) & 1).astype(float)
        return
    for size in _pieces(N_PERMUTATIONS, n_groups):
        yield rng.integers(0, 2, (size, n_groups)).astype(float)


def _pieces(n: int, n_groups: int) -> list[int]:
    """Part n rows of n_groups numbers, so that no part takes more than some 130 MB."""
    most = max(1, _CELLS // n_groups)
    return [min(most, n - start) for start in range(0, n, most)]


def _common(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    both = align({"the first arm": a, "the second arm": b})
    a, b = both.values()
    if not a.sample_ids:
        raise ValueError("two arms need samples that both predicted, found none")
    return a, b
