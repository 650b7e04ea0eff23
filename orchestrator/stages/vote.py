"""The vote stage: members vote on the test photos."""

from __future__ import annotations

import pyarrow as pa

from data_prep.files import write_json
from orchestrator.evaluation import vote as voting
from orchestrator.stages import test_set as board
from orchestrator.stages.confirm import (
    checkpoints,
)
from orchestrator.stages.context import Context, Done, load_json, majority_class
from orchestrator.stages.select import interval_scores
from orchestrator.store import tables


def vote(context: Context) -> Done:
    """Let the members vote on the test photos; only here are the private labels opened."""
    spec = context.experiment.spec
    if spec.data.test is None:
        return Done("SUCCEEDED", "no test set")
    chosen = load_json(context.paths.selection)
    by_setting = checkpoints(context)
    trials = [trial for setting in chosen["members"] for trial in by_setting[setting]]
    seen = board.read_board(context, (trial.variant for trial in trials))
    readable = [sample for sample, _ in seen.order if sample not in seen.lost]
    members, found = board.answers(context, trials, readable)
    known = tables.read(context.paths.predictions, filters=[("split", "!=", "test")]).cast(
        tables.PREDICTIONS
    )
    tables.write(
        pa.concat_tables([known, board.prediction_table(found, readable)]),
        context.paths.predictions,
    )
    table = voting.vote_table(
        seen.order,
        members,
        quarantined=seen.lost,
        majority=majority_class(context),
        rule=spec.vote.rule,
        weights=chosen["weights"],
    )
    tables.write(table, context.paths.votes)
    context.paths.submission.write_text(voting.submission(table), encoding="utf-8")
    labels = board.open_labels(context, seen, "whole", by="vote")
    if labels is None:
        return Done("SUCCEEDED", f"{len(table)} photos, no test labels")
    tables.write(board.label_table(seen, labels), context.paths.test_labels)
    preds = dict(zip(table["sample_id"].to_pylist(), table["pred"].to_pylist(), strict=True))
    for name, part in (("public", "public"), ("test", seen.judged)):
        if part != "public" or seen.public:
            chosen["ensemble"][name] = {
                "part": part,
                **interval_scores(context, board.scored(context, seen, part, preds, labels)),
            }
    if seen.public:
        chosen["ensemble"]["board"] = board.board_rows(context, seen, members, table, labels)
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"]["test"]["macro_f1"]
    half = "private half: " if seen.public else ""
    return Done(
        "SUCCEEDED",
        f"{len(table)} photos, {half}test macro F1 {bounds['estimate']:.3f} ({bounds['low']:.3f}-{bounds['high']:.3f})",
    )
