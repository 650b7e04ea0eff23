"""The interval of a score: BCa over groups, widened by Student's t.

Sources: Efron 1987, "Better bootstrap confidence intervals"; Hesterberg 2015, "What teachers should
know about the bootstrap" (expanded percentiles); Zou and Donner 2008 for a difference of scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from orchestrator.evaluation.metrics import (
    LEVEL,
    Counts,
    Floats,
    Ints,
    Metric,
    Scorer,
    as_scorer,
    counts,
    linear_shares,
    owners_of,
    resample,
    score,
)
from orchestrator.evaluation.predictions import Predictions

N_RESAMPLES = 2000
FEWEST_GROUPS = 7
"""With fewer groups in a class the 90 % interval covers .80 to .92 in simulation."""
_CELLS = 2**23  # of a weight matrix: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. It covers which people were photographed."""

    estimate: float
    low: float
    high: float
    level: float
    n_groups: int
    n_samples: int
    too_narrow: bool  # no groups are known: photos of one person count as independent
    too_few_people: bool  # a class has fewer than 7 groups: the interval may cover less
    fewest_groups: int  # of one class

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


class Bounds(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def interval(
    predictions: Predictions,
    *,
    metric: Metric = "macro_f1",
    seed: int,
    n: int = N_RESAMPLES,
    level: float = LEVEL,
    only: int | None = None,
) -> Interval:
    """Return a metric, averaged over seeds, with its BCa interval.

    All groups are resampled together, without strata. A mean over classes stays that over the
    classes present in the data: one that vanishes from a resample counts by its F1 or recall to
    first order.

    Args:
        predictions: of one arm or one vote.
        metric: which score.
        seed: of the resamples.
        n: number of resamples.
        level: of the interval, two-sided.
        only: a class of the joint one that alone is counted: its F1, or its recall. The interval
            then rests on the groups that have the class.
    """
    scorer = as_scorer(metric)
    owners = owners_of(predictions)
    targets = predictions.targets
    n_classes = predictions.n_classes
    tallies = np.stack(
        [
            counts(targets, preds, owners.of_sample, owners.n_groups, n_classes, scorer)
            for preds in predictions.preds
        ]
    )  # (S, G, 3, C)
    if only is not None:
        tallies[..., np.arange(tallies.shape[-1]) != only] = 0
    totals = tallies.sum(1)
    estimate = float(score(totals, scorer).mean())
    draws = np.concatenate(
        [_draw(w, tallies, totals, scorer) for w in _weights(owners.n_groups, n, seed)]
    )
    shares = [
        linear_shares(targets, preds, total, scorer)
        for preds, total in zip(predictions.preds, totals, strict=True)
    ]
    share = np.mean(shares, axis=0)
    influence: Floats = np.bincount(owners.of_sample, share, owners.n_groups).astype(np.float64)
    fewest = _fewest_groups(tallies[0, :, 2], scorer.metric)
    n_groups = owners.n_groups if only is None else fewest
    bounds = _bca(estimate, draws, influence, level, n_groups)
    return Interval(
        estimate=estimate,
        low=bounds.low,
        high=bounds.high,
        level=level,
        n_groups=n_groups,
        n_samples=len(targets) if only is None else int((targets == only).sum()),
        too_narrow=predictions.groups is None,
        too_few_people=fewest < FEWEST_GROUPS,
        fewest_groups=fewest,
    )


def label_interval(
    predictions: Predictions, targets: Ints, preds: Ints, n_classes: int, *, metric: str, seed: int
) -> Interval:
    """Return the interval of one label's score.

    Args:
        predictions: over the joint class; it gives samples and groups.
        targets: (N,) the label's own codes.
        preds: (S, N) the label's own codes of the answers.
        n_classes: of the label.
        metric: of the label's classes.
        seed: of the resamples.
    """
    label = Predictions(predictions.sample_ids, targets, preds, n_classes, predictions.groups)
    return interval(label, metric=metric, seed=seed)


class Estimate(NamedTuple):
    """A score with the ends of its interval."""

    estimate: float
    low: float
    high: float


def difference_of_scores(first: Estimate | Interval, second: Estimate | Interval) -> Bounds:
    """Return the interval of first minus second, two scores on different people.

    Args:
        first: at any level.
        second: likewise, at the same level.
    """
    difference = first.estimate - second.estimate
    down = np.hypot(first.estimate - first.low, second.high - second.estimate)
    up = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Bounds(float(difference - down), float(difference + up))


def _weights(n_groups: int, n: int, seed: int) -> Iterator[Counts]:
    """Yield the resamples' weights (n, G) in pieces of limited size, always the same ones."""
    size = max(1, _CELLS // max(n_groups, 1))
    if n <= size:
        yield _whole_weights(n_groups, n, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, n, size):
        yield resample(n_groups, min(size, n - start), rng)


@lru_cache(maxsize=2)
def _whole_weights(n_groups: int, n: int, seed: int) -> Counts:
    """Keep the weights for the next score of the same groups."""
    weights = resample(n_groups, n, np.random.default_rng(seed))
    weights.flags.writeable = False
    return weights


def _draw(weights: Counts, tallies: Floats, totals: Floats, scorer: Scorer) -> Floats:
    """Return the score of each resample, averaged over seeds: (n,)."""
    draws = []
    for part in scorer.parts:
        draws.append(_draw_part(weights, tallies[..., part], totals[..., part], scorer.metric))
    return draws[0] if len(draws) == 1 else np.mean(draws, axis=0)


def _draw_part(weights: Counts, tallies: Floats, totals: Floats, metric: str) -> Floats:
    """Return the metric of one part's classes in each resample."""
    n_seeds = len(tallies)
    present = totals[0, 2] > 0
    hits = tallies[:, :, 0]
    answers = tallies[:, :, 1]
    n_targets = tallies[0, :, 2]
    if metric == "accuracy":
        n_hits = weights @ hits.sum(-1).mean(0).astype(np.float32)
        return np.asarray(n_hits / (weights @ n_targets.sum(-1).astype(np.float32)), np.float64)
    # one product for all seeds: the weights are read once
    columns = np.stack([n_targets, *hits, *answers], axis=1)[:, :, present]
    drawn = weights @ columns.reshape(len(columns), -1).astype(np.float32)
    drawn = drawn.reshape(len(weights), 1 + 2 * n_seeds, -1)
    drawn_targets = drawn[:, 0]
    gone = drawn_targets == 0
    total = np.zeros(len(weights))
    for i, full in enumerate(totals[:, :, present]):
        if metric == "balanced_accuracy":
            recall = drawn[:, 1 + i] / np.maximum(drawn_targets, 1)
            # hits and targets of a class vanish together, so to first order its recall stays
            total += np.where(gone, full[0] / full[2], recall).mean(-1)
            continue
        size = drawn[:, 1 + n_seeds + i] + drawn_targets
        f1 = 2 * drawn[:, 1 + i] / np.maximum(size, 1)
        full_size = full[1] + full[2]
        full_f1 = 2 * full[0] / full_size
        # to first order F1 falls by its own size for each answer of a class without targets
        linear = full_f1 * np.maximum(1 - size / full_size, 0)
        total += np.where(gone, linear, f1).mean(-1)
    return total / n_seeds


def _bca(estimate: float, draws: Floats, influence: Floats, level: float, n_groups: int) -> Bounds:
    """Return the BCa interval; Wilson's where the draws do not vary."""
    from scipy.special import ndtri  # noqa: PLC0415

    if np.ptp(draws) < 1e-9:
        return _wilson(estimate, n_groups, float(ndtri((1 + level) / 2)))
    spread = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    return corrected_quantiles(estimate, draws, n_groups, level, acceleration)


def corrected_quantiles(
    estimate: float, draws: Floats, n_groups: int, level: float, acceleration: float = 0.0
) -> Bounds:
    """Return the quantiles of draws that BCa takes, with Student's t for the normal quantile.

    Args:
        estimate: of the data.
        draws: (n,) the same of resamples of the groups.
        n_groups: in the data.
        level: of the interval, two-sided.
        acceleration: of the standard error; 0 gives Efron's BC.
    """
    from scipy.special import ndtr, ndtri, stdtrit  # noqa: PLC0415

    n = len(draws)
    below = np.mean(draws < estimate - 1e-7) + np.mean(np.abs(draws - estimate) <= 1e-7) / 2
    bias = float(ndtri(np.clip(below, 1 / (2 * n), 1 - 1 / (2 * n))))
    reach = float(stdtrit(max(n_groups - 1, 1), (1 + level) / 2))
    ends = []
    for shift in (bias - reach, bias + reach):
        stretch = 1 - acceleration * shift
        # beyond the pole of the formula the quantile is the last one on that side
        quantile = ndtr(bias + shift / stretch) if stretch > 0 else float(shift > 0)
        ends.append(float(np.quantile(draws, quantile)))
    # single precision may leave a draw a hair above 1
    return Bounds(max(min(ends[0], estimate), 0.0), min(max(ends[1], estimate), 1.0))


def _wilson(share: float, n: int, z: float) -> Bounds:
    """Return Wilson's interval of a share of n trials (Wilson 1927)."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return Bounds(max(centre - reach, 0.0), min(centre + reach, 1.0))


def _fewest_groups(n_targets: Floats, metric: str) -> int:
    """Return how many groups the rarest class has, from counts (G, C); all groups for accuracy."""
    if metric == "accuracy":
        return len(n_targets)
    per_class = (n_targets > 0).sum(0)
    return int(per_class[per_class > 0].min(initial=len(n_targets)))
