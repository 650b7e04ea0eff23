"""Hypotheses: claims of a spec, judged on out-of-fold predictions that both arms made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.spec.claims import Claim, parse
from orchestrator.spec.score import DEFAULT, parse_score

if TYPE_CHECKING:  # NumPy, which the report's pages need not load
    from data_prep.catalog.label_schema import Schema
    from orchestrator.evaluation.paired_test import PairedTest
    from orchestrator.evaluation.predictions import Predictions

ALPHA = 0.10
CountLook = Callable[[Claim, "Predictions", "Predictions"], int]
_NUMBERS = (
    "difference", "low", "high", "p_value", "p_adjusted", "needs", "standard_error",
    "standard_error_one_seed", "df", "v_people", "v_train", "v_noise", "luck_of_one_training",
)  # fmt: skip
_NOTHING = dict.fromkeys(_NUMBERS) | {"n_groups": 0, "verdict": "undecided", "look": None}


@dataclass(frozen=True)
class _Case:
    """A claim and its test; `reason` says why there is none."""

    text: str
    claim: Claim
    tested: PairedTest | None
    reason: str | None
    look: int | None  # at this claim, 1 for the first; None where looks are not counted

    @property
    def p_value(self) -> float:
        """The two-sided p value of the claim; 1 where nothing was tested."""
        return 1.0 if self.tested is None else _p_value(self.claim, self.tested)


def judge(
    claims: Sequence[str],
    arms: Mapping[str, Predictions],
    *,
    score: str = DEFAULT,
    schema: Schema | None = None,
    count_look: CountLook | None = None,
) -> list[dict[str, Any]]:
    """Judge all claims of a file.

    A claim 'a > b' is supported or refuted where its p value is below 0.10, by sign. A claim
    'a = b within m' is practically equal where the 90 % interval lies within -m and m, and refuted
    where the difference is larger than m. Else it is undecided, and `needs` says how many people
    or seeds would decide. All p values are corrected for earlier looks at the same claim, then for
    the number of claims (Holm).

    Args:
        claims: as the spec states them.
        arms: variant -> its best finalist's out-of-fold predictions.
        score: of the spec; claims that name no other one are about it.
        schema: of the labels; needed where a score is about a label.
        count_look: returns the number of this look at a claim, 1 for the first; None: looks are
            not counted.

    Returns:
        The rows of hypotheses.json, in the order of the claims. A claim that cannot be tested is
        undecided with null numbers and a `reason`; it still counts in the correction.
    """
    from orchestrator.evaluation.paired_test import holm  # noqa: PLC0415
    from orchestrator.evaluation.sequential_testing import penalty  # noqa: PLC0415

    cases = [_test(parse(text, score), text, arms, schema, count_look) for text in claims]
    p_values = [min(1.0, case.p_value * penalty(case.look or 1)) for case in cases]
    rows = []
    for case, adjusted in zip(cases, holm(p_values), strict=True):
        claim = case.claim
        row: dict[str, Any] = {"claim": case.text, "metric": claim.metric, "margin": claim.margin}
        if case.tested is None:
            rows.append(row | _NOTHING | {"reason": case.reason})
            continue
        row |= case.tested.to_json()
        row |= {"p_value": case.p_value, "look": case.look, "p_adjusted": adjusted}
        rows.append(row | _verdict(claim, case.tested, adjusted, case.look, len(cases)))
    return rows


def _test(
    claim: Claim,
    text: str,
    arms: Mapping[str, Predictions],
    schema: Schema | None,
    count_look: CountLook | None,
) -> _Case:
    """Test one claim where its two arms can be compared; only then it is a look."""
    from orchestrator.evaluation.paired_test import paired_difference  # noqa: PLC0415
    from orchestrator.evaluation.scores_with_intervals import scorer_of  # noqa: PLC0415

    if reason := _unjudged(claim, arms):
        return _Case(text, claim, None, reason, None)
    first = arms[claim.better]
    second = arms[claim.worse]
    tested = paired_difference(first, second, metric=scorer_of(parse_score(claim.metric), schema))
    if tested.reason is not None:
        return _Case(text, claim, None, tested.reason, None)
    look = None if count_look is None else count_look(claim, first, second)
    return _Case(text, claim, tested, None, look)


def _unjudged(claim: Claim, arms: Mapping[str, Predictions]) -> str | None:
    """Return why the two arms of a claim cannot be compared."""
    if missing := [side for side in (claim.better, claim.worse) if side not in arms]:
        names = " and ".join(map(repr, dict.fromkeys(missing)))
        return (
            f"not judged: {names} has no finalist that finished all its trials over all labels; "
            "see `results`"
        )
    if set(arms[claim.better].sample_ids).isdisjoint(arms[claim.worse].sample_ids):
        return (
            f"not judged: {claim.better!r} and {claim.worse!r} have no photo in common; "
            "their exclusions leave none"
        )
    return None


def _p_value(claim: Claim, tested: PairedTest) -> float:
    """Return the two-sided p value of a claim; below 0.10 exactly where the interval decides it.

    For a margin it is that of the distance between the difference and the margin, twice one tail.
    Source: Schuirmann 1987, two one-sided tests.
    """
    from orchestrator.evaluation.paired_test import tail  # noqa: PLC0415

    if claim.margin is None or tested.standard_error is None or tested.df is None:
        return float(tested.p_value or 0.0)
    distance = abs(abs(tested.difference) - claim.margin)
    return min(1.0, 2 * tail(distance, tested.standard_error, tested.df))


def _verdict(
    claim: Claim, tested: PairedTest, adjusted: float, look: int | None, n_claims: int
) -> dict[str, Any]:
    """Return the verdict of a tested claim, and what an undecided one needs."""
    from orchestrator.evaluation.power import needed  # noqa: PLC0415
    from orchestrator.evaluation.sequential_testing import penalty  # noqa: PLC0415

    if adjusted < ALPHA:
        if claim.margin is not None:
            equal = abs(tested.difference) < claim.margin
            return {"verdict": "practically equal" if equal else "refuted", "needs": None}
        return {"verdict": "supported" if tested.difference > 0 else "refuted", "needs": None}
    distance = tested.difference
    if claim.margin is not None:
        distance = claim.margin - abs(tested.difference)
    alpha = ALPHA / n_claims
    next_look = 1.0 if look is None else penalty(look + 1)
    needs = needed(tested, alpha=alpha, alpha_more_seeds=alpha / next_look, difference=distance)
    return {"verdict": "undecided", "needs": needs.to_json()}


def needs_text(row: Mapping[str, Any]) -> str:
    """Say what would decide an undecided claim, or why it could not be judged."""
    if row.get("reason"):
        return str(row["reason"])
    needs = row.get("needs")
    if not needs:
        return ""
    ways = []
    if needs.get("n_groups"):
        ways.append(f"{needs['n_groups']} groups in total")
    if needs.get("n_seeds"):
        ways.append(f"{needs['n_seeds']} seeds in total")
    if both := needs.get("both"):
        ways.append(f"{both['n_groups']} groups and {both['n_seeds']} seeds together")
    if ways:
        return f"if the difference is real, {' or '.join(ways)} would decide it"
    if row.get("rests_on") == "folds":
        return "with one seed the luck of training is not known; add a second seed"
    return "the difference is too near to zero for any number to decide it"
