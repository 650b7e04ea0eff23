"""The tables of a run's trials: trials.parquet, curves.parquet and their predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import OBJECTIVE, SCORE, objective
from orchestrator.store.ledger import State, TrialRecord
from orchestrator.store.run_dir import RunPaths

_STARTED = ("trial_id", "setting", "variant", "phase", "seed", "fold")
_ENDED = ("status", "epochs", "wall_s", "checkpoint", "error")


def write_tables(state: State, labels: Iterable[str], paths: RunPaths) -> None:
    """Write trials.parquet and curves.parquet anew."""
    tables.write(trials_table(state, labels), paths.trials)
    tables.write(curves_table(state), paths.curves)


def trials_table(state: State, labels: Iterable[str]) -> pa.Table:
    """Return trials.parquet: a row per trial that has ended."""
    has_score = any(SCORE in trial.metrics for trial in state.trials.values())
    schema = tables.trials_schema(labels, [SCORE] if has_score else [])
    rows = []
    for trial in state.trials.values():
        if trial.ended is None:
            continue
        row = {name: getattr(trial.started, name) for name in _STARTED}
        row["params"] = json.dumps(trial.params, sort_keys=True)
        row |= {name: getattr(trial.ended, name) for name in _ENDED}
        for name, value in trial.metrics.items():
            if name in schema.names and name not in tables.TIME_COLUMNS:  # those are of one epoch
                row[name] = value
        for part, seconds in (trial.ended.parts or {}).items():
            row[f"{part}_s"] = seconds
        rows.append(row)
    return tables.from_rows(rows, schema)


def curves_table(state: State) -> pa.Table:
    """Return curves.parquet: a row per trial and epoch."""
    names: set[str] = set()
    rows: list[dict[str, Any]] = []
    for trial in state.trials.values():
        for epoch, metrics in sorted(trial.reports.items()):
            names |= metrics.keys()
            rows.append({"trial_id": trial.trial_id, "epoch": epoch, **metrics})
    return tables.from_rows(rows, tables.curves_schema(sorted(names)))


def collect_predictions(trials: Iterable[TrialRecord], store: Store) -> pa.Table:
    """Return the predictions of all finished trials."""
    collected = [tables.PREDICTIONS.empty_table()]
    for trial in trials:
        if trial.status == "COMPLETE":
            path = store.get("trial", trial.key).file("predictions.parquet")
            collected.append(_rename(tables.read(path), trial))
    return pa.concat_tables(collected)


def _rename(table: pa.Table, trial: TrialRecord) -> pa.Table:
    """Give predictions the names of this run; the artifact may come from another one."""
    for name in ("trial_id", "setting", "variant"):
        column = pa.array([getattr(trial, name)] * len(table), pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table.cast(tables.PREDICTIONS)


def best_trial(state: State) -> dict[str, Any] | None:
    """Return the best search trial so far."""
    scored = [t for t in state.trials.values() if t.phase == "search" and t.metrics]
    if not scored:
        return None
    best = max(scored, key=lambda trial: objective(trial.metrics))
    facts = {
        "trial_id": best.trial_id,
        "setting": best.setting,
        "variant": best.variant,
        OBJECTIVE: best.metrics[OBJECTIVE],
    }
    if SCORE in best.metrics:
        facts[SCORE] = best.metrics[SCORE]
    return facts
