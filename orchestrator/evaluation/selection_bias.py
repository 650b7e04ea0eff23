"""The best of many looks better than it is: how much, measured by choosing in the bag and scoring out of the bag.

Source: Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions for efficient and
accurate cross-validation" (BBC-CV), algorithm 3, with groups resampled instead of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.metrics import (
    LEVEL,
    Floats,
    counts,
    owners_of,
    resample,
    score,
    weighted,
)
from orchestrator.evaluation.predictions import Ints, Predictions

N_RESAMPLES = 500
Choice = tuple[int, ...]  # places of candidates, the best first; one may stand twice


class Pool:
    """Candidates in rank order on the samples that all of them answered, their votes counted per group."""

    def __init__(self, candidates: Sequence[Predictions], rule: str) -> None:
        """Count the candidates' answers.

        Args:
            candidates: on the same samples in the same order (`predictions.align`), the best first.
            rule: hard or soft.
        """
        first = candidates[0]
        self.candidates, self.rule, self.n_classes = candidates, rule, first.n_classes
        self.targets = first.targets
        self.owners, self.n_groups = owners_of(first)
        self.everybody = np.ones((1, self.n_groups))
        self.alone = np.stack(
            [np.stack([self._count(preds) for preds in one.preds]) for one in candidates]
        )  # (K, S, G, 3, C)
        self._votes: dict[Choice, Floats] = {}

    def _count(self, preds: Ints) -> Floats:
        return counts(self.targets, preds, self.owners, self.n_groups, self.n_classes)

    def answers(self, choice: Choice) -> Ints:
        """Return the vote of some candidates: (N,)."""
        places = sorted(set(choice))
        members = [self.candidates[at] for at in places]
        return voting.cast(
            [one.votes for one in members],
            [one.mean_probs for one in members],
            self.rule,
            [choice.count(at) for at in places],
        ).pred

    def vote(self, choice: Choice) -> Floats:
        """Return the counts of a vote per group: (G, 3, C)."""
        choice = tuple(sorted(choice))
        if choice not in self._votes:
            self._votes[choice] = self._count(self.answers(choice))
        return self._votes[choice]

    def scores(self, weights: Floats) -> Floats:
        """Return macro F1 of every candidate alone, averaged over seeds, with groups counted by weights: (n, K)."""
        return np.stack(
            [np.mean([weighted(weights, one) for one in seeds], axis=0) for seeds in self.alone],
            axis=1,
        )

    def counts(self, choice: Choice, weights: Floats, *, alone: bool = False) -> Floats:
        """Return the counts of weighted groups, (S, n, 3, C): of a vote as one, or of one candidate alone by seed."""
        found = self.alone[choice[0]] if alone else self.vote(choice)[None]
        return np.stack([np.tensordot(weights, one, 1) for one in found])


def best(pool: Pool, weights: Floats, n: int) -> list[Choice]:
    """Choose the n candidates with the highest macro F1 alone, for every row of weights (R, G)."""
    order = np.argsort(-pool.scores(weights), axis=1, kind="stable")[:, :n]
    return [tuple(row) for row in order.tolist()]


def greedy(pool: Pool, weights: Floats, n: int) -> list[Choice]:
    """Add n votes one by one, each the candidate that lifts the vote's macro F1 most; one may be added again.

    Equal gains go to the better-ranked candidate. Source: Caruana et al. 2004, "Ensemble selection from libraries of
    models", with replacement.
    """
    found = []
    for row in weights:
        chosen: Choice = ()
        for _ in range(n):
            gains = [
                float(weighted(row[None], pool.vote((*chosen, at)))[0])
                if chosen
                else float(pool.scores(row[None])[0, at])
                for at in range(len(pool.candidates))
            ]
            chosen = (*chosen, int(np.argmax(np.round(gains, 12))))
        found.append(chosen)
    return found


def corrected(
    pool: Pool,
    choose: Callable[[Pool, Floats, int], list[Choice]],
    n: int,
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    alone: bool = False,
) -> dict[str, Any]:
    """Return what a choice of n candidates is worth on people who had no part in it.

    It is scored as it will answer, by its vote: that of one candidate is the class with the highest mean probability
    of its seeds. With `alone` (n is 1) it is scored as candidates are compared: seed by seed, averaged.

    In every resample of groups the choice is made on those drawn and scored on those not drawn. The counts of all
    resamples are pooled into one score: macro F1 of few samples is lower than that of many (pooled, the bias of the
    estimate in the simulation of tests/orchestrator/test_optimism.py fell from -0.015 to -0.002).

    Returns:
        estimate, low and high (90 % of the out-of-bag scores, centred on the estimate: wider than need be, as each
        rests on about 37 % of the groups), naive (the score on the groups it was chosen on), optimism (naive minus
        estimate), n_resamples, n_candidates. Null where one group is all there is.
    """
    facts = {
        "naive": _score(
            pool.counts(choose(pool, pool.everybody, n)[0], pool.everybody, alone=alone)
        ),
        "n_candidates": len(pool.candidates),
    }
    weights = resample(pool.n_groups, n_resamples, np.random.default_rng(seed))
    unseen = (weights == 0).astype(np.float64)
    usable = np.flatnonzero(unseen.any(1))
    if not len(usable):
        return {
            "estimate": None,
            "low": None,
            "high": None,
            "optimism": None,
            "n_resamples": 0,
            **facts,
        }
    rows: dict[Choice, list[int]] = {}
    for at, choice in zip(usable.tolist(), choose(pool, weights[usable], n), strict=True):
        rows.setdefault(choice, []).append(at)
    drawn = [
        pool.counts(choice, unseen[at], alone=alone) for choice, at in rows.items()
    ]  # each (S, n, 3, C)
    estimate = _score(
        sum((one.sum(1, keepdims=True) for one in drawn[1:]), drawn[0].sum(1, keepdims=True))
    )
    scores = np.concatenate([score(one, "macro_f1").mean(0) for one in drawn])
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + estimate - scores.mean()
    facts |= {"optimism": facts["naive"] - estimate, "n_resamples": len(usable)}
    return {"estimate": estimate, "low": float(low), "high": float(high), **facts}


def _score(found: Floats) -> float:
    """Return macro F1 of counts (S, 1, 3, C), averaged over seeds."""
    return float(score(found, "macro_f1").mean())
