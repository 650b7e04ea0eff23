"""The hypotheses stage: the spec's claims are judged."""

from __future__ import annotations

from data_prep.files import write_json
from orchestrator.evaluation.predictions import Predictions
from orchestrator.stages.confirm import (
    complete_settings,
    held_out,
    search_scores,
)
from orchestrator.stages.context import Context, Done


def hypotheses(context: Context) -> Done:
    """Judge the spec's claims on the out-of-fold predictions of each arm's best finalist.

    A claim about an arm that has none, because its trials failed, is a row like the others: undecided, with the reason.
    """
    from orchestrator.evaluation.hypotheses import judge  # noqa: PLC0415

    claims, rows = context.experiment.spec.hypotheses, []
    if claims:
        arms = held_out(context)
        scores, variants = search_scores(context), complete_settings(context)
        best: dict[str, Predictions] = {}
        for setting in sorted(arms, key=lambda s: (-scores.get(s, 0.0), s)):
            best.setdefault(variants[setting], arms[setting])
        rows = judge(claims, best, seed=context.experiment.spec.seed)
    write_json(context.paths.hypotheses, rows)
    return Done("SUCCEEDED", "; ".join(f"{row['claim']}: {row['verdict']}" for row in rows))
