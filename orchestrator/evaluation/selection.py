"""Which finalists vote: ranked by rules that look at out-of-fold predictions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from orchestrator.base.errors import UserError
from orchestrator.base.wording import counted
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import (
    LEVEL,
    MANY_GROUPS,
    Metric,
    Scorer,
    classes_of_many,
    owners_of,
    recalls,
    score_of,
    total_variation,
)
from orchestrator.evaluation.predictions import Predictions

RULES = {
    "robust": (
        "lower end of the 90 % interval of out-of-fold {score}, rounded to 0.01; then worst-class "
        f"recall, of classes with {MANY_GROUPS} groups or more; then total variation distance "
        "between predicted and true class shares; then parameter count; then setting"
    ),
    "validation": "search score",
    "leaderboard": (
        "{score} on the public half of the test set, or the scores given in the spec; then setting"
    ),
    "diverse": (
        "votes added one by one, each the candidate that lifts the out-of-fold vote's {score} "
        "most, with replacement; equal gains, and the members' order, by robustness"
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A confirmed setting and the numbers behind its rank."""

    setting: str
    variant: str
    oof_macro_f1: float
    low: float  # of the 90 % interval
    high: float
    low_rounded: float
    oof_accuracy: float
    worst_class: int
    worst_class_recall: float
    total_variation: float
    n_params: int
    search_score: float | None
    n_groups: int
    n_samples: int
    n_seeds: int
    compared_recall: float | None = None  # worst of classes of many groups; None: there is none
    n_left_out: int = 0  # of its photos, because another candidate did not predict them
    stopped_after: int | None = None  # seeds; None where it ran to its end
    board_score: float | None = None  # None where a leaderboard has not scored it
    oof_score: float | None = None  # the score of the spec; None where it is macro F1
    rank: int = 0  # 1 is the best
    chosen: bool = False
    reason: str = ""

    @property
    def score(self) -> float:
        """The score that candidates are compared by; `low` and `high` are its interval."""
        return self.oof_macro_f1 if self.oof_score is None else self.oof_score


@dataclass(frozen=True)
class Selection:
    """The candidates in rank order, and those of them that vote."""

    policy: str | list[str]
    rule: str
    members: list[str]  # settings in rank order
    weights: list[int]  # votes of each member
    candidates: list[Candidate]
    short_of: str | None  # why there are fewer votes than the spec asks for

    def to_json(self) -> dict[str, object]:
        """Return the first part of selection.json."""
        rows = [asdict(candidate) for candidate in self.candidates]
        for row in rows:
            if row["oof_score"] is None:
                del row["oof_score"]
        if self.policy != "leaderboard":
            for row in rows:
                del row["board_score"]
        return {
            "policy": self.policy,
            "rule": self.rule,
            "level": LEVEL,
            "members": self.members,
            "weights": self.weights,
            "candidates": rows,
            "short_of": self.short_of,
        }


def pareto_front(scores: Mapping[str, float], sizes: Mapping[str, float]) -> list[str]:
    """Return the settings whose score no other one reaches with as few parameters.

    Of settings that are equal in both, the first by name is taken.

    Args:
        scores: by setting.
        sizes: numbers of parameters, by setting.

    Returns:
        The best score first.
    """
    front: list[str] = []
    for setting in sorted(scores, key=lambda name: (-scores[name], sizes[name], name)):
        if not front or sizes[setting] < sizes[front[-1]]:
            front.append(setting)
    return front


def finalists(
    ranking: Sequence[tuple[str, str, float]],
    n: int,
    variants: Sequence[str],
    sizes: Mapping[str, float] | None = None,
) -> list[str]:
    """Return the settings to confirm: the best n of the run, and at least one per variant.

    Where n is smaller than the number of variants, every variant still gets its best one. With
    sizes, settings of the Pareto front come before other ones, the best score first.

    Args:
        ranking: (setting, variant, score) in any order; of a setting the best score counts.
        n: how many.
        variants: all of the spec's.
        sizes: numbers of parameters, by setting, where the search aims at few of them.
    """
    scores: dict[str, float] = {}
    variant_of: dict[str, str] = {}
    for setting, variant, score in ranking:
        scores[setting] = max(score, scores.get(setting, score))
        variant_of[setting] = variant
    ordered = sorted(scores, key=lambda setting: (-scores[setting], setting))
    chosen = []
    for variant in variants:
        chosen += [setting for setting in ordered if variant_of[setting] == variant][:1]
    front = pareto_front(scores, sizes) if sizes else []
    for setting in [*front, *ordered]:
        if len(chosen) < n and setting not in chosen:
            chosen.append(setting)
    return sorted(chosen, key=ordered.index)


def candidate(
    setting: str,
    variant: str,
    oof: Predictions,
    *,
    search_score: float | None,
    n_params: int,
    seed: int,
    n_left_out: int = 0,
    metric: Metric = "macro_f1",
) -> Candidate:
    """Return a candidate without a rank, scored on its out-of-fold predictions."""
    bounds = interval(oof, metric=metric, seed=seed)
    is_macro_f1 = metric in ("macro_f1", Scorer())
    macro_f1s = [score_of(oof.targets, row, oof.n_classes, "macro_f1") for row in oof.preds]
    flat_targets = np.tile(oof.targets, len(oof.preds))
    flat_preds = oof.preds.ravel()
    per_class = recalls(flat_targets, flat_preds, oof.n_classes)
    owners, _ = owners_of(oof)
    has_many = classes_of_many(oof.targets, owners, oof.n_classes)
    compared = [recall for label, recall in per_class.items() if has_many[label]]
    worst_class = min(per_class, key=lambda k: (per_class[k], k))
    return Candidate(
        setting=setting,
        variant=variant,
        oof_macro_f1=bounds.estimate if is_macro_f1 else float(np.mean(macro_f1s)),
        oof_score=None if is_macro_f1 else bounds.estimate,
        low=bounds.low,
        high=bounds.high,
        low_rounded=round(bounds.low, 2),
        oof_accuracy=float(np.mean(flat_targets == flat_preds)),
        worst_class=worst_class,
        worst_class_recall=per_class[worst_class],
        total_variation=total_variation(flat_targets, flat_preds, oof.n_classes),
        n_params=n_params,
        search_score=search_score,
        n_groups=bounds.n_groups,
        n_samples=bounds.n_samples,
        n_seeds=len(oof.preds),
        compared_recall=min(compared, default=None),
        n_left_out=n_left_out,
    )


def rank(candidates: Sequence[Candidate], policy: str | list[str]) -> list[Candidate]:
    """Return candidates in the order of a policy, best first.

    A leaderboard ranks by `board_score`; those that it has not scored come last, and do not vote.
    Neither do finalists that a race stopped, which come last too.

    Raises:
        UserError: there is no such policy.
    """
    if isinstance(policy, list):
        named = [c for c in candidates if c.variant in policy]
        return sorted(
            named, key=lambda c: (policy.index(c.variant), -(c.search_score or 0.0), c.setting)
        )
    if policy not in RULES:
        raise UserError(
            f"select.policy {policy}: required one of {', '.join(RULES)} or a list of variants"
        )
    if policy == "validation":
        return sorted(candidates, key=lambda c: (-(c.search_score or 0.0), c.setting))
    if policy == "leaderboard":
        return sorted(
            candidates, key=lambda c: (c.board_score is None, -(c.board_score or 0.0), c.setting)
        )
    return sorted(
        candidates,
        key=lambda c: (
            c.stopped_after is not None,
            -c.low_rounded,
            -round(c.compared_recall or 0.0, 9),
            round(c.total_variation, 9),
            c.n_params,
            c.setting,
        ),
    )


def give_scores(candidates: Sequence[Candidate], scores: Mapping[str, float]) -> list[Candidate]:
    """Give each variant's typed-in score of a leaderboard to its best finalist by search score."""
    best: dict[str, str] = {}
    for entry in rank(candidates, "validation"):
        best.setdefault(entry.variant, entry.setting)
    scored = []
    for entry in candidates:
        is_best = best[entry.variant] == entry.setting
        score = scores.get(entry.variant) if is_best else None
        scored.append(replace(entry, board_score=score))
    return scored


def choose(
    candidates: Sequence[Candidate],
    policy: str | list[str],
    n: int,
    picks: Sequence[str] | None = None,
    *,
    score: str = "macro F1",
) -> Selection:
    """Rank the candidates and choose the members.

    An explicit list takes the best finalist of each variant that it names.

    Args:
        candidates: without ranks.
        policy: of the spec.
        n: votes of the ensemble.
        picks: of policy diverse, the settings it added one by one; a setting that stands twice has
            two votes.
        score: in words.
    """
    ranked = rank(candidates, policy)
    is_list = isinstance(policy, list)
    n_votes = len(policy) if is_list else n
    members = _members(ranked, policy, n, picks)
    weights = [1] * len(members)
    if picks is not None:
        weights = [list(picks).count(setting) for setting in members]
    short_of = None
    if sum(weights) < n_votes:
        short_of = (
            f"{counted(len(members), 'member')} instead of {n_votes}: there are no more candidates"
        )
    rows = []
    for place, entry in enumerate(ranked, 1):
        position = f"rank {place} of {len(ranked)}"
        reason = f"{position} by {'the list' if is_list else policy}"
        if picks is not None:
            times = counted(list(picks).count(entry.setting), "time")
            reason = f"added {times}; {position} by robustness"
        if entry.stopped_after is not None:
            reason = f"stopped by the race after {entry.stopped_after} of the seeds"
        chosen = entry.setting in members
        rows.append(replace(entry, rank=place, chosen=chosen, reason=reason))
    rule = RULES[policy].format(score=score) if isinstance(policy, str) else "the spec's order"
    return Selection(policy, rule, members, weights, rows, short_of)


def _members(
    ranked: Sequence[Candidate], policy: str | list[str], n: int, picks: Sequence[str] | None
) -> list[str]:
    """Return the settings that vote, in rank order."""
    if picks is not None:
        return [entry.setting for entry in ranked if entry.setting in picks]
    if policy == "leaderboard":
        return [entry.setting for entry in ranked if entry.board_score is not None][:n]
    if isinstance(policy, str):
        return [entry.setting for entry in ranked if entry.stopped_after is None][:n]
    best: dict[str, str] = {}
    for entry in ranked:
        best.setdefault(entry.variant, entry.setting)
    return [best[variant] for variant in policy if variant in best]
