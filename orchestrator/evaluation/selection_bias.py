"""Selection bias: the best of many candidates looks better than it is on the photos that chose it.

In every resample of groups the run's own rule chooses on the groups that were drawn, and its choice
is scored on those that were not. Source: Tsamardinos, Greasidou and Borboudakis 2018,
"Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation" (BBC-CV),
algorithm 3, with groups resampled instead of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import (
    Counts,
    Floats,
    Metric,
    Scorer,
    as_scorer,
    classes_of_many,
    owners_of,
    resample,
    score,
)
from orchestrator.evaluation.predictions import Ints, Predictions

N_RESAMPLES = 500
N_GREEDY_RESAMPLES = 200
Choice = tuple[int, ...]  # places of candidates, in any order; one may stand twice
Rule = Callable[["Pool", Counts, int], list[Choice]]


@dataclass(frozen=True)
class Corrected:
    """A score corrected for the choice that was made on the same photos.

    `low` and `high` are the interval of the uncorrected score, moved down by the optimism. All but
    `naive` are None where one group is all there is.
    """

    estimate: float | None
    low: float | None
    high: float | None
    naive: float
    optimism: float | None
    n_resamples: int
    n_candidates: int

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


class Pool:
    """Candidates in rank order on the samples that all of them answered."""

    def __init__(
        self,
        candidates: Sequence[Predictions],
        rule: str = "hard",
        *,
        margins: Sequence[float] | None = None,
        n_params: Sequence[int] | None = None,
        metric: Metric = "macro_f1",
    ) -> None:
        """Count the candidates' answers per group.

        Args:
            candidates: on the same samples in the same order (`predictions.align`), the best first.
            rule: of the vote, hard or soft.
            margins: per candidate, its score minus the lower end of its interval.
            n_params: per candidate.
            metric: which score they are compared by.
        """
        first = candidates[0]
        self.candidates = candidates
        self.rule = rule
        self.scorer = as_scorer(metric)
        self.n_classes = first.n_classes
        self.targets = first.targets
        self.owners, self.n_groups = owners_of(first)
        self.everybody = np.ones((1, self.n_groups), np.float32)
        self.margins = margins
        self.n_params = np.array(n_params if n_params is not None else [0] * len(candidates))
        self._answers: dict[Choice, Ints] = {}
        self._trials: dict[Choice, Counts] = {}

    @cached_property
    def alone(self) -> list[Counts]:
        """Per candidate the counts of its answers by seed, (S, G, 3, C)."""
        return [self.count(candidate.preds) for candidate in self.candidates]

    @cached_property
    def alone_by_class(self) -> list[Counts]:
        """The same by joint class, whatever the score counts."""
        if not self.scorer.views:
            return self.alone
        n = self.n_classes
        return [self._count(self.targets, arm.preds, n) for arm in self.candidates]

    def count(self, preds: Ints) -> Counts:
        """Count hits, answers and targets per row of preds (R, N): (R, G, 3, C)."""
        scorer = self.scorer
        seen = zip(
            scorer.seen(self.targets), scorer.seen(preds), scorer.sizes(self.n_classes), strict=True
        )
        parts = [self._count(truth, given, size) for truth, given, size in seen]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _count(self, targets: Ints, preds: Ints, n_classes: int) -> Counts:
        n_cells = self.n_groups * n_classes
        answer_cells = self.owners * n_classes + preds  # (R, N)
        target_cells = self.owners * n_classes + targets
        shape = (self.n_groups, n_classes)
        counts = np.empty((len(preds), self.n_groups, 3, n_classes), np.float32)
        counts[:, :, 2] = np.bincount(target_cells, minlength=n_cells).reshape(shape)
        for row, cells in enumerate(answer_cells):
            hits = target_cells[preds[row] == targets]
            counts[row, :, 0] = np.bincount(hits, minlength=n_cells).reshape(shape)
            counts[row, :, 1] = np.bincount(cells, minlength=n_cells).reshape(shape)
        return counts

    def answers(self, choice: Choice) -> Ints:
        """Return the vote of some candidates: (N,)."""
        key = tuple(sorted(choice))
        if key not in self._answers:
            places = sorted(set(key))
            members = [self.candidates[place] for place in places]
            self._answers[key] = voting.cast(
                [member.votes for member in members],
                [member.mean_probs for member in members],
                self.rule,
                [key.count(place) for place in places],
            ).pred
        return self._answers[key]

    def answered(self, choice: Choice, *, alone: bool) -> Predictions:
        """Return the answers of a vote; with `alone` those of one candidate, seed by seed."""
        if alone:
            return self.candidates[choice[0]]
        return self.candidates[0].answered_by(self.answers(choice))

    def additions(self, chosen: Choice) -> Counts:
        """Return the counts of every vote that one more candidate makes, (K, G, 3, C)."""
        key = tuple(sorted(chosen))
        if key not in self._trials:
            votes = [self.answers((*key, place)) for place in range(len(self.candidates))]
            self._trials[key] = self.count(np.stack(votes))
        return self._trials[key]


def weighted_scores(weights: Counts, counts: Counts, metric: Metric = "macro_f1") -> Floats:
    """Return the scores of groups counted by weights: (n, G) and (R, G, 3, C) give (n, R)."""
    return score(_totals(weights, counts), metric)


def best_alone(pool: Pool, weights: Counts, n: int) -> list[Choice]:
    """Choose the n candidates with the highest score, the mean of their seeds."""
    scores = [weighted_scores(weights, counts, pool.scorer).mean(1) for counts in pool.alone]
    return _first(np.stack(scores, 1), n)


def best_vote(pool: Pool, weights: Counts, n: int) -> list[Choice]:
    """Choose the n candidates whose own vote has the highest score."""
    return _first(weighted_scores(weights, pool.additions(()), pool.scorer), n)


def _first(scores: Floats, n: int) -> list[Choice]:
    order = np.argsort(-np.round(scores, 9), axis=1, kind="stable")[:, :n]
    return [tuple(row) for row in order.tolist()]


def robust(pool: Pool, weights: Counts, n: int) -> list[Choice]:
    """Choose the first n by policy robust, for every row of weights (R, G).

    The lower end of a resample is its score minus the margin of all groups times the ratio of
    the two standard errors by the delta method. With all groups it is the lower end of the run.
    """
    is_compared = classes_of_many(pool.targets, pool.owners, pool.n_classes)
    lows = []
    recalls = []
    distances = []
    for place, counts in enumerate(pool.alone):
        totals = _totals(weights, counts)  # (R, S, 3, C)
        margin: Any = pool.margins[place] if pool.margins is not None else 0.0
        if margin:
            totals_of_all = _totals(pool.everybody, counts)
            of_all = _standard_error(counts, pool.everybody, totals_of_all, pool.scorer)[0]
            of_draws = _standard_error(counts, weights, totals, pool.scorer)
            margin = margin * of_draws / max(of_all, 1e-12)
        lows.append(np.round(score(totals, pool.scorer).mean(1) - margin, 2))
        if pool.scorer.views:
            totals = _totals(weights, pool.alone_by_class[place])
        pooled = totals.sum(1)
        hits = pooled[:, 0]
        answers = pooled[:, 1]
        targets = pooled[:, 2]
        recall = np.where((targets > 0) & is_compared, hits / np.maximum(targets, 1), 1.0)
        recalls.append(np.round(recall.min(1), 9))
        shares = np.abs(answers - targets).sum(1) / np.maximum(targets.sum(1), 1)
        distances.append(np.round(shares / 2, 9))
    n_params = np.broadcast_to(pool.n_params, (len(weights), len(lows)))
    keys = (n_params, np.stack(distances, 1), -np.stack(recalls, 1), -np.stack(lows, 1))
    order = np.lexsort(keys, axis=-1)[:, :n]
    return [tuple(row) for row in order.tolist()]


def _totals(weights: Counts, counts: Counts) -> Floats:
    """Return the counts (R, G, 3, C) of groups counted by weights (n, G): (n, R, 3, C)."""
    totals = np.tensordot(weights, counts, (1, 1))
    return np.asarray(totals, np.float64)


def _standard_error(counts: Counts, weights: Counts, totals: Floats, scorer: Scorer) -> Floats:
    """Return the standard error of a score by the delta method, per row of weights."""
    n_rows = len(weights)
    n_groups = weights.shape[1]
    n_seeds = len(counts)
    factors = []  # of hits, then of what a hit is counted against
    of_group = []
    for part in scorer.parts:
        scale, ratio = _slopes(totals[..., part], scorer.metric)
        hits = counts[:, :, 0, part]
        against = counts[:, :, 2, part]
        if scorer.metric == "macro_f1":
            factors += [2 * scale, -scale * ratio]
            against = counts[:, :, 1, part] + against
        else:
            factors += [scale, -scale * ratio]
        of_group += [hits, against]
    row_factors = np.concatenate(factors, 2).reshape(n_rows, -1) / len(scorer.parts)
    group_counts = np.concatenate(of_group, 2).transpose(1, 0, 2).reshape(n_groups, -1)
    influence = row_factors.astype(np.float32) @ group_counts.T / n_seeds  # (R, G)
    return np.sqrt(np.einsum("rg,rg,rg->r", weights, influence, influence))


class _Slopes(NamedTuple):
    """By class, what a hit is worth, and the F1 or recall that it is weighed against."""

    scale: Floats  # (R, S, C)
    ratio: Floats


def _slopes(totals: Floats, metric: str) -> _Slopes:
    """Return the slopes of a metric at counts (R, S, 3, C)."""
    hits = totals[:, :, 0]
    targets = totals[:, :, 2]
    if metric == "accuracy":
        n_targets = np.maximum(targets.sum(2, keepdims=True), 1e-9)
        scale = np.broadcast_to(1 / n_targets, targets.shape)
        ratio = np.broadcast_to(hits.sum(2, keepdims=True) / n_targets, targets.shape)
        return _Slopes(scale, ratio)
    sizes = targets if metric == "balanced_accuracy" else totals[:, :, 1] + targets
    present = targets > 0
    n_present = np.maximum(present.sum(2, keepdims=True), 1)
    scale = present / np.maximum(sizes, 1e-9) / n_present
    n_hits = hits if metric == "balanced_accuracy" else 2 * hits
    return _Slopes(scale, n_hits / np.maximum(sizes, 1e-9))


def greedy(pool: Pool, weights: Counts, n: int) -> list[Choice]:
    """Add n votes one by one, each the candidate that lifts the vote's score most.

    The first is chosen by its own vote, like the others. One may be added again. Equal gains go to
    the better-ranked candidate. Source: Caruana et al. 2004, "Ensemble selection from libraries of
    models", with replacement.
    """
    chosen: list[Choice] = [()] * len(weights)
    for _ in range(n):
        rows_of: dict[Choice, list[int]] = {}
        for row, choice in enumerate(chosen):
            rows_of.setdefault(tuple(sorted(choice)), []).append(row)
        for choice, rows in rows_of.items():
            counts = pool.additions(choice)
            scores = np.round(weighted_scores(weights[rows], counts, pool.scorer), 6)
            for row, place in zip(rows, scores.argmax(1).tolist(), strict=True):
                chosen[row] = (*chosen[row], place)
    return chosen


def corrected(
    pool: Pool,
    choose: Rule,
    n: int,
    *,
    seed: int,
    choice: Choice | None = None,
    n_resamples: int = N_RESAMPLES,
    alone: bool = False,
) -> Corrected:
    """Return what a choice of n candidates is worth on people who had no part in it.

    The optimism is the score of the final choice minus that of the choices in the bag, both on the
    groups out of the bag and with the counts of all resamples pooled. So a single candidate has
    none. The interval is that of the uncorrected score, moved by the optimism.

    Args:
        pool: the candidates.
        choose: the run's rule.
        n: votes of a choice.
        seed: of the resamples.
        choice: what the run chose; by default what the rule chooses on all groups.
        n_resamples: of groups.
        alone: n is 1 and a candidate is scored as candidates are compared, by the mean of its
            seeds, instead of by its vote.
    """
    final = choose(pool, pool.everybody, n)[0] if choice is None else choice
    headline = interval(pool.answered(final, alone=alone), metric=pool.scorer, seed=seed)
    weights = resample(pool.n_groups, n_resamples, np.random.default_rng(seed))
    unseen = (weights == 0).astype(np.float64)
    usable = unseen.any(1)
    weights = weights[usable]
    unseen = unseen[usable]
    naive = headline.estimate
    n_candidates = len(pool.candidates)
    if not len(weights):
        return Corrected(None, None, None, naive, None, 0, n_candidates)
    rows_of: dict[Choice, list[int]] = {}
    for row, picked in enumerate(choose(pool, weights, n)):
        rows_of.setdefault(tuple(sorted(picked)), []).append(row)
    in_bag: Any = 0.0
    for picked, rows in rows_of.items():
        in_bag = in_bag + _pooled(pool, picked, unseen[rows].sum(0), alone=alone)
    fixed = _pooled(pool, final, unseen.sum(0), alone=alone)
    optimism = float(score(fixed, pool.scorer).mean() - score(in_bag, pool.scorer).mean())
    estimate, low, high = np.clip(
        [naive - optimism, headline.low - optimism, headline.high - optimism], 0.0, 1.0
    ).tolist()
    return Corrected(
        estimate,
        low,
        high,
        naive,
        optimism,
        len(weights),
        n_candidates,
    )


def _pooled(pool: Pool, choice: Choice, group_weights: Floats, *, alone: bool) -> Floats:
    """Return the counts of a choice's answers with groups counted by weights, (S, 3, C)."""
    preds = pool.answered(choice, alone=alone).preds
    weights = group_weights[pool.owners]
    scorer = pool.scorer
    parts = []
    for truth, given, size in zip(
        scorer.seen(pool.targets), scorer.seen(preds), scorer.sizes(pool.n_classes), strict=True
    ):
        targets = np.bincount(truth, weights, size)
        counts = []
        for row in given:
            hit = row == truth
            hits = np.bincount(truth[hit], weights[hit], size)
            counts.append(np.stack([hits, np.bincount(row, weights, size), targets]))
        parts.append(np.stack(counts))
    whole: Floats = np.concatenate(parts, axis=-1)
    return whole
