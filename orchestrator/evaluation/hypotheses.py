"""Hypotheses: claims of a spec, judged on out-of-fold predictions that both arms made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.evaluation.power import needed
from orchestrator.spec.claims import Claim, parse

ALPHA = 0.10
_NOTHING = dict.fromkeys(("difference", "low", "high", "p_value", "p_adjusted", "needs")) | {
    "n_groups": 0,
    "verdict": "undecided",
}


def judge(claims: list[str], arms: dict[str, Any], *, seed: int) -> list[dict[str, Any]]:
    """Judge all claims of a file.

    Args:
        claims: as the spec states them.
        arms: variant -> its best finalist's out-of-fold predictions .
        seed: of the bootstrap and the permutations.

    Returns:
        The rows of hypotheses.json, in the order of the claims: supported or refuted where the p value after Holm's
        correction is below 0.10, by sign; undecided otherwise, and then `needs` says how many groups or seeds would
        decide a difference of the size that was seen. A claim whose arms cannot be compared is undecided too, with
        null numbers and a `reason`; it still counts in the correction, which is over all that was claimed.
    """
    from orchestrator.evaluation.metrics import holm, paired_difference  # noqa: PLC0415

    rows = []
    for text in claims:
        claim = parse(text)
        row: dict[str, Any] = {
            "claim": text,
            "metric": claim.metric,
            "reason": _unjudged(claim, arms),
        }
        if row["reason"]:
            rows.append({**row, **_NOTHING})
        else:
            found = paired_difference(
                arms[claim.better], arms[claim.worse], metric=claim.metric, seed=seed
            )
            rows.append({**row, **found})
    p_values = [1.0 if row["reason"] else row["p_value"] for row in rows]
    for row, adjusted in zip(rows, holm(p_values), strict=True):
        if row["reason"]:
            continue
        row["p_adjusted"] = adjusted
        decided = adjusted < ALPHA
        row["verdict"] = (
            ("supported" if row["difference"] > 0 else "refuted") if decided else "undecided"
        )
        errors = {
            name: row[name]
            for name in ("standard_error", "standard_error_one_seed", "n_groups", "n_seeds")
        }
        row["needs"] = (
            None if decided else needed(row["difference"], alpha=ALPHA / len(rows), **errors)
        )
    return rows


def _unjudged(claim: Claim, arms: Mapping[str, Any]) -> str | None:
    """Return why the two arms of a claim cannot be compared."""
    if missing := [side for side in (claim.better, claim.worse) if side not in arms]:
        sides = " and ".join(map(repr, dict.fromkeys(missing)))
        return f"not judged: {sides} has no finalist that finished all its trials over all labels; see `results`"
    if set(arms[claim.better].sample_ids).isdisjoint(arms[claim.worse].sample_ids):
        return f"not judged: {claim.better!r} and {claim.worse!r} have no photo in common; their exclusions leave none"
    return None


def needs_text(row: Mapping[str, Any]) -> str:
    """Say what would decide an undecided claim, or why it could not be judged; empty for a decided one."""
    if row.get("reason"):
        return str(row["reason"])
    needs = row.get("needs") or {}
    ways = [
        f"{needs[name]} {what} in total"
        for name, what in (("n_groups", "groups"), ("n_seeds", "seeds"))
        if needs.get(name)
    ]
    if ways:
        return f"if the difference is real, {' or '.join(ways)} would decide it"
    return "the difference is too near to zero for any number to decide it" if needs else ""
