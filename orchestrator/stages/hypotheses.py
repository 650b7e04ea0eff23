"""The hypotheses stage: the spec's claims are judged."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.files import write_json
from orchestrator.evaluation.hypotheses import judge
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.sequential_testing import claim_key, predictions_key
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.spec.claims import Claim
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed, held_out_predictions
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.store.looks import count_look


@dataclass(frozen=True)
class Judged:
    """The verdicts on the spec's claims."""

    outcome: str
    note: str


def run(env: Env, catalog: Catalog, split: Split, search: Searched, confirm: Confirmed) -> Judged:
    """Judge the claims on the out-of-fold predictions of each arm's best finalist.

    A claim about an arm whose trials failed is undecided, and its row says why.
    """
    rows = []
    if env.experiment.spec.hypotheses:
        arms = held_out_predictions(env, catalog, split, confirm)
        scores = search.scores
        variants = confirm.complete_settings
        best: dict[str, Predictions] = {}
        for setting in sorted(arms, key=lambda name: (-scores.get(name, 0.0), name)):
            best.setdefault(variants[setting], arms[setting])

        def number_of_look(claim: Claim, first: Predictions, second: Predictions) -> int:
            facts = {"what": f"claim {claim}", "run": env.paths.run_id}
            key = claim_key(claim, catalog.content)
            state = predictions_key(first, second)
            return count_look(env.paths.store, key, state, facts).number

        rows = judge(
            env.experiment.spec.hypotheses,
            best,
            score=env.experiment.spec.score,
            schema=env.schema,
            count_look=number_of_look,
        )
    write_json(env.paths.hypotheses, rows)
    return Judged(SUCCEEDED, "; ".join(f"{row['claim']}: {row['verdict']}" for row in rows))
