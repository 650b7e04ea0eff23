"""Which finalists vote: ranked by rules that look at out-of-fold predictions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.base.errors import UserError
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import recalls, total_variation
from orchestrator.evaluation.predictions import Predictions

ROBUST_RULE = (
    "lower end of the 90 % interval of out-of-fold macro F1, rounded to 0.01; then worst-class recall; then total "
    "variation distance between predicted and true class shares; then parameter count; then setting"
)
RULES = {
    "robust": ROBUST_RULE,
    "validation": "search score",
    "leaderboard": "macro F1 on the public half of the test set, or the scores given in the spec; "
    "then setting",
    "diverse": "votes added one by one, each the candidate that lifts the out-of-fold vote's macro F1 most, with "
    "replacement; equal gains, and the members' order, by robustness",
}


def finalists(
    ranking: Sequence[tuple[str, str, float]], n: int, variants: Sequence[str]
) -> list[str]:
    """Return the settings to confirm: the best n of the run, and at least one per variant.

    Where n is smaller than the number of variants, every variant still gets its best one.

    Args:
        ranking: (setting, variant, score), any order; a setting may stand twice and counts by its best score.
        n: how many.
        variants: all of the spec's.
    """
    best: dict[str, tuple[float, str]] = {}
    for setting, variant, score in ranking:
        if setting not in best or score > best[setting][0]:
            best[setting] = (score, variant)
    ordered = sorted(best, key=lambda setting: (-best[setting][0], setting))
    first = {
        variant: next((s for s in ordered if best[s][1] == variant), None) for variant in variants
    }
    chosen = [setting for setting in first.values() if setting]
    for setting in ordered:
        if len(chosen) >= n:
            break
        if setting not in chosen:
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
) -> dict[str, Any]:
    """Return the numbers behind a choice."""
    bounds = interval(oof, seed=seed)
    flat_targets = np.tile(oof.targets, len(oof.preds))
    flat_preds = oof.preds.ravel()
    per_class = recalls(flat_targets, flat_preds, oof.n_classes)
    return {
        "setting": setting,
        "variant": variant,
        "oof_macro_f1": bounds.estimate,
        "low": bounds.low,
        "high": bounds.high,
        "low_rounded": round(bounds.low, 2),
        "oof_accuracy": float(np.mean(flat_targets == flat_preds)),
        "worst_class": min(per_class, key=lambda k: (per_class[k], k)),
        "worst_class_recall": min(per_class.values()),
        "total_variation": total_variation(flat_targets, flat_preds, oof.n_classes),
        "n_params": n_params,
        "search_score": search_score,
        "n_groups": bounds.n_groups,
        "n_samples": bounds.n_samples,
        "n_seeds": len(oof.preds),
    }


def rank(candidates: Sequence[dict[str, Any]], policy: str | list[str]) -> list[dict[str, Any]]:
    """Return candidates in the order of a policy, best first.

    A leaderboard ranks by `board_score`; those that it has not scored come last, and do not vote.
    """
    if policy in ("robust", "diverse"):
        return sorted(
            candidates,
            key=lambda c: (
                -c["low_rounded"],
                -c["worst_class_recall"],
                c["total_variation"],
                c["n_params"],
                c["setting"],
            ),
        )
    if policy == "validation":
        return sorted(candidates, key=lambda c: (-(c["search_score"] or 0.0), c["setting"]))
    if policy == "leaderboard":
        return sorted(
            candidates,
            key=lambda c: (c["board_score"] is None, -(c["board_score"] or 0.0), c["setting"]),
        )
    if isinstance(policy, list):
        wanted = [c for c in candidates if c["variant"] in policy]
        return sorted(
            wanted,
            key=lambda c: (policy.index(c["variant"]), -(c["search_score"] or 0.0), c["setting"]),
        )
    raise UserError(
        f"select.policy {policy}: required one of {', '.join(RULES)} or a list of variants"
    )


def give_scores(
    candidates: Sequence[dict[str, Any]], scores: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Give variants' scores of a leaderboard, typed in by hand, to the best finalist of each by its search score."""
    best: dict[str, str] = {}
    for one in rank(candidates, "validation"):
        best.setdefault(one["variant"], one["setting"])
    return [
        {
            **one,
            "board_score": scores.get(one["variant"])
            if best[one["variant"]] == one["setting"]
            else None,
        }
        for one in candidates
    ]


def choose(
    candidates: Sequence[dict[str, Any]],
    policy: str | list[str],
    n: int,
    picks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return selection.json without the ensemble's scores: every candidate, its rank, and the members.

    An explicit list takes the best finalist of each variant that it names.

    Args:
        candidates: as `candidate` returns them.
        policy: of the spec.
        n: votes of the ensemble.
        picks: of policy diverse, the settings it added one by one; one that stands twice has two votes.
    """
    ranked = rank(candidates, policy)
    if isinstance(policy, list):
        firsts = {c["variant"]: c for c in reversed(ranked)}
        members = [firsts[name]["setting"] for name in policy if name in firsts]
    elif picks is not None:
        members = [c["setting"] for c in ranked if c["setting"] in picks]
    else:
        members = [
            c["setting"] for c in ranked if policy != "leaderboard" or c["board_score"] is not None
        ][:n]
    weights = (
        [list(picks).count(setting) for setting in members]
        if picks is not None
        else [1] * len(members)
    )
    rows = []
    for place, found in enumerate(ranked, 1):
        chosen = found["setting"] in members
        reason = (
            f"rank {place} of {len(ranked)} by {policy if isinstance(policy, str) else 'the list'}"
        )
        if picks is not None:
            reason = f"added {list(picks).count(found['setting'])} times; rank {place} of {len(ranked)} by robustness"
        rows.append({**found, "rank": place, "chosen": chosen, "reason": reason})
    wanted = len(policy) if isinstance(policy, list) else n
    short = (
        f"{len(members)} members instead of {wanted}: there are no more candidates"
        if sum(weights) < wanted
        else None
    )
    rule = RULES[policy] if isinstance(policy, str) else "the spec's order"
    return {
        "policy": policy,
        "rule": rule,
        "level": 0.9,
        "members": members,
        "weights": weights,
        "candidates": rows,
        "short_of": short,
    }
