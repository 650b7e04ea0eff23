"""What a vote reaches with more checkpoints per member than predicted a photo out of fold.

Out of fold a member is the mean of S checkpoints, one per seed. Deployed it is the mean of S x F.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.metrics import LEVEL, Floats, resample
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.selection_bias import Pool, weighted_scores

_N_SUBSETS = 20
_N_RESAMPLES = 500
ONE_SEED = "with one confirm seed there is no curve; give confirm.seeds at least 3 seeds"


@dataclass(frozen=True)
class CheckpointCurve:
    """Out-of-fold macro F1 by checkpoints averaged, and its extrapolation to what is deployed."""

    scores: list[float]  # for 1 to S checkpoints
    n_deployed: int
    estimate: float | None
    low: float | None
    high: float | None
    advice: str | None

    def to_json(self) -> dict[str, Any]:
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
) -> CheckpointCurve:
    """Return the curve of a vote's score and where it leads.

    The score of a mean of m checkpoints is fitted by a - b / m with b at least 0: what averaging
    removes is a variance that falls by 1 / m. The interval resamples groups and fits again.

    Args:
        members: on the same samples in the same order, with probabilities per seed.
        weights: votes of every member.
        rule: of the vote.
        n_deployed: checkpoints per member that answer a new photo, S x F.
        seed: of subsets and resamples.
        optimism: of the choice of these members, taken off the extrapolation.
    """
    pool, rng = Pool(members, rule), np.random.default_rng(seed)
    n_seeds = min(len(member.preds) for member in members)
    draws = resample(pool.n_groups, _N_RESAMPLES, rng)
    of_all, of_draws = [], []
    for size in range(1, n_seeds + 1):
        preds = np.stack(
            [_vote(members, weights, rule, subset) for subset in _subsets(n_seeds, size, rng)]
        )
        counts = pool.count(preds)
        of_all.append(float(weighted_scores(pool.everybody, counts).mean()))
        of_draws.append(weighted_scores(draws, counts).mean(1))
    if n_seeds < 2:
        return CheckpointCurve(of_all, n_deployed, None, None, None, ONE_SEED)
    estimate = float(_extrapolated(np.array(of_all)[:, None], n_deployed)[0])
    reached = _extrapolated(np.stack(of_draws), n_deployed)
    low, high = np.quantile(reached, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    advice = "rests on 2 checkpoints; give confirm.seeds at least 3 seeds" if n_seeds == 2 else None
    return CheckpointCurve(
        of_all,
        n_deployed,
        min(1.0, estimate - optimism),
        float(low - optimism),
        float(min(1.0, high - optimism)),
        advice,
    )


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


def _extrapolated(curves: Floats, n: int) -> Floats:
    """Fit a - b / m to curves (S, R), b at least 0, through the point of all seeds: (R,)."""
    n_seeds = len(curves)
    inverse = 1 / np.arange(1, n_seeds + 1)
    gap = inverse - inverse[-1]
    loss = curves[-1] - curves  # b * gap
    slope = np.maximum((gap[:, None] * loss).sum(0) / (gap**2).sum(), 0.0)
    return np.asarray(curves[-1] + slope * (inverse[-1] - 1 / n))
