"""The tables of a run's trials: trials.parquet, curves.parquet and predictions.parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from orchestrator.search.controller import OBJECTIVE
from orchestrator.stages.context import Context
from orchestrator.store import tables
from orchestrator.store.ledger import State, TrialRecord, replay


def write_tables(context: Context) -> None:
    """Write trials.parquet and curves.parquet anew."""
    state = replay(context.ledger.events)
    tables.write(trials_table(state, context.schema.names), context.paths.trials)
    tables.write(curves_table(state), context.paths.curves)


def trials_table(state: State, labels: Iterable[str]) -> pa.Table:
    """Return trials.parquet from what the ledger tells."""
    schema = tables.trials_schema(labels)
    rows = []
    for trial in state.trials.values():
        if trial.status is None:
            continue
        best = trial.metrics
        rows.append(
            {
                **{
                    name: getattr(trial.started, name)
                    for name in ("setting", "variant", "phase", "seed", "fold")
                },
                "trial_id": trial.trial_id,
                "params": json.dumps(trial.params, sort_keys=True),
                **{
                    name: getattr(trial.ended, name)
                    for name in ("status", "epochs", "wall_s", "checkpoint", "error")
                },
                **{name: value for name, value in best.items() if name in schema.names},
            }
        )
    return tables.from_rows(rows, schema)


def curves_table(state: State) -> pa.Table:
    """Return curves.parquet from what the ledger tells."""
    metrics = sorted(
        {name for trial in state.trials.values() for one in trial.reports.values() for name in one}
    )
    rows = [
        {"trial_id": t.trial_id, "epoch": epoch, **found}
        for t in state.trials.values()
        for epoch, found in sorted(t.reports.items())
    ]
    return tables.from_rows(rows, tables.curves_schema(metrics))


def collect(context: Context) -> None:
    """Gather the predictions of all finished trials."""
    parts = []
    for trial in replay(context.ledger.events).trials.values():
        if trial.status == "COMPLETE":
            table = tables.read(context.store.get("trial", trial.key).file("predictions.parquet"))
            parts.append(_renamed(table, trial))
    tables.write(
        pa.concat_tables(parts) if parts else tables.PREDICTIONS.empty_table(),
        context.paths.predictions,
    )


def _renamed(table: pa.Table, trial: TrialRecord) -> pa.Table:
    """Give a trial's predictions the names they have in this run; the artifact may come from another one."""
    for name in ("trial_id", "setting", "variant"):
        value = getattr(trial, name)
        table = table.set_column(
            table.schema.get_field_index(name), name, pa.array([value] * len(table), pa.string())
        )
    return table.cast(tables.PREDICTIONS)


def best_trial(state: State) -> dict[str, Any] | None:
    """Return the best search trial so far."""
    done = [t for t in state.trials.values() if t.phase == "search" and t.metrics]
    if not done:
        return None
    top = max(done, key=lambda t: t.metrics[OBJECTIVE])
    return {
        "trial_id": top.trial_id,
        "setting": top.setting,
        "variant": top.variant,
        OBJECTIVE: top.metrics[OBJECTIVE],
    }
