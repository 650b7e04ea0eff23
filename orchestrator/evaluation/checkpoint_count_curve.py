"""What a vote reaches with more checkpoints per member than predicted a photo out of fold.

Out of fold a member is the mean of S checkpoints, one per seed. Deployed it is the mean of S x F.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import erf
from typing import Any

import numpy as np

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.intervals import corrected_quantiles
from orchestrator.evaluation.metrics import LEVEL, Floats, Metric, resample
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.selection_bias import Pool, weighted_scores

_N_SUBSETS = 20
_N_RESAMPLES = 500
_STRENGTHS = np.linspace(0.02, 12, 600)
ONE_SEED = (
    "with one confirm seed it is not known how much they add; give confirm.seeds at least 3 seeds"
)


@dataclass(frozen=True)
class CheckpointCurve:
    """The out-of-fold score by checkpoints averaged, and its extrapolation to what is deployed."""

    scores: list[float]  # for 1 to S checkpoints
    n_deployed: int
    estimate: float | None
    low: float | None
    high: float | None
    advice: str | None

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


def checkpoint_curve(
    members: Sequence[Predictions],
    weights: Sequence[int],
    *,
    rule: str,
    n_deployed: int,
    seed: int,
    optimism: float = 0.0,
    metric: Metric = "macro_f1",
) -> CheckpointCurve:
    """Return the curve of a vote's score and where it leads.

    A score is read as that of an observer who tells one class from the others by a signal of
    strength d. Averaging m checkpoints leaves a noise of variance a + b / m, so 1 / d^2 is fitted
    by a line in 1 / m with b at least 0. The interval resamples groups and fits again. Source:
    Green and Swets 1966, "Signal detection theory", m-alternative forced choice.

    Args:
        members: on the same samples in the same order, with probabilities per seed.
        weights: votes of every member.
        rule: of the vote.
        n_deployed: checkpoints per member that answer a new photo, S x F.
        seed: of subsets and resamples.
        optimism: of the choice of these members, taken off the extrapolation.
        metric: which score.
    """
    pool = Pool(members, rule, metric=metric)
    rng = np.random.default_rng(seed)
    n_seeds = min(len(member.preds) for member in members)
    draws = resample(pool.n_groups, _N_RESAMPLES, rng)
    of_all = []
    of_draws = []
    for size in range(1, n_seeds + 1):
        preds = np.stack(
            [_vote(members, weights, rule, subset) for subset in _subsets(n_seeds, size, rng)]
        )
        counts = pool.count(preds)
        of_all.append(float(weighted_scores(pool.everybody, counts, pool.scorer).mean()))
        of_draws.append(weighted_scores(draws, counts, pool.scorer).mean(1))
    if n_seeds < 2:
        return CheckpointCurve(of_all, n_deployed, None, None, None, ONE_SEED)
    sizes = [len(np.unique(targets)) for targets in pool.scorer.seen(pool.targets)]
    n_classes = round(sum(sizes) / len(sizes))
    estimate = float(_extrapolated(np.array(of_all)[:, None], n_deployed, n_classes)[0])
    reached = _extrapolated(np.stack(of_draws), n_deployed, n_classes)
    bounds = corrected_quantiles(estimate, reached, pool.n_groups, LEVEL)
    advice = None
    if n_seeds == 2:
        advice = "rests on 2 checkpoints; give confirm.seeds at least 3 seeds"
    reached_ends = np.array([estimate, bounds.low, bounds.high])
    middle, low, high = np.clip(reached_ends - optimism, 0.0, 1.0).tolist()
    return CheckpointCurve(of_all, n_deployed, middle, low, high, advice)


def _subsets(n_seeds: int, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return all subsets of the seeds, or some of them where they are many."""
    subsets = list(itertools.islice(itertools.combinations(range(n_seeds), size), 1000))
    if len(subsets) <= _N_SUBSETS:
        return subsets
    return [subsets[i] for i in rng.choice(len(subsets), _N_SUBSETS, replace=False)]


def _vote(
    members: Sequence[Predictions], weights: Sequence[int], rule: str, subset: tuple[int, ...]
) -> Any:
    """Return the vote, (N,), of members that are the mean of some of their seeds."""
    probs = [_probs(member)[list(subset)].mean(0) for member in members]
    return voting.cast([p.argmax(1) for p in probs], probs, rule, weights).pred


def _probs(member: Predictions) -> Any:
    if member.probs is not None:
        return member.probs
    return np.eye(member.n_classes, dtype=np.float32)[member.preds]


def _extrapolated(curves: Floats, n: int, n_classes: int) -> Floats:
    """Return the scores of n checkpoints from curves (S, R): (R,).

    Single checkpoints are left out where there are three or more: the mean of sure probabilities
    gains less from the second one than the line says, by simulation.
    """
    scores = _score_table(n_classes)
    sizes = np.arange(1, len(curves) + 1)
    if len(curves) > 2:
        sizes = sizes[1:]
        curves = curves[1:]
    noise = np.interp(curves, scores, _STRENGTHS) ** -2.0
    inverse = 1 / sizes
    gap = inverse - inverse[-1]
    slope = (gap[:, None] * (noise - noise[-1])).sum(0) / (gap**2).sum()
    removed = np.maximum(slope, 0.0) * (inverse[-1] - 1 / n)
    left = np.maximum(noise[-1] - removed, noise[-1] / 4)  # at most twice the signal
    reached = np.interp(left**-0.5, _STRENGTHS, scores)
    return np.asarray(np.maximum(reached, curves[-1]))


@cache
def _score_table(n_classes: int) -> Floats:
    """Return the share of right answers at every strength of signal, of n classes."""
    x = np.linspace(-8, 20, 1400)
    density = np.exp(-((x - _STRENGTHS[:, None]) ** 2) / 2) / np.sqrt(2 * np.pi)
    below = np.array([0.5 * (1 + erf(value / 2**0.5)) for value in x])
    return np.asarray((density * below ** max(n_classes - 1, 1)).sum(1) * (x[1] - x[0]))
