"""The tables of a run's trials: trials.parquet, curves.parquet and their predictions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import (
    FOLD_SCORE,
    N_PARAMS,
    OBJECTIVE,
    SCORE,
    objective,
)
from orchestrator.store.fold_means import best_setting, fold_trainings
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
    extra = []
    for name in (SCORE, FOLD_SCORE, N_PARAMS):
        if any(name in trial.metrics for trial in state.trials.values()):
            extra.append(name)
    schema = tables.trials_schema(labels, extra)
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


def collect_predictions(
    trials: Iterable[TrialRecord],
    store: Store,
    of_val: Mapping[str, Collection[str]] | None = None,
) -> pa.Table:
    """Return the predictions of all finished trials.

    Args:
        trials: of any phase.
        store: with their artifacts.
        of_val: variant -> its samples of role val; what a search has held out of the others is left
            out, because it has chosen nothing by them. Needed where it trains folds.
    """
    collected = [tables.PREDICTIONS.empty_table()]
    for trial in trials:
        if trial.status == "COMPLETE":
            path = store.get("trial", trial.key).file("predictions.parquet")
            table = _rename(tables.read(path), trial)
            if trial.phase == "search" and trial.started.fold is not None:
                table = _as_val(table, of_val[trial.variant] if of_val else ())
            collected.append(table)
    return pa.concat_tables(collected)


def _rename(table: pa.Table, trial: TrialRecord) -> pa.Table:
    """Give predictions the names of this run; the artifact may come from another one."""
    for name in ("trial_id", "setting", "variant"):
        column = pa.array([getattr(trial, name)] * len(table), pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table.cast(tables.PREDICTIONS)


def _as_val(table: pa.Table, samples: Collection[str]) -> pa.Table:
    """Return the rows that a search scores, with their split."""
    is_scored = pc.is_in(table["sample_id"], value_set=pa.array(sorted(samples), pa.string()))
    table = table.filter(is_scored)
    split = pa.array(["val"] * len(table), pa.string())
    return table.set_column(table.schema.get_field_index("split"), "split", split)


def best_trial(state: State) -> dict[str, Any] | None:
    """Return the best search trial so far; where settings have folds, the first one of the best setting."""
    folds = fold_trainings(state.trials.values())
    if folds:
        setting = best_setting(folds)
        if setting is None:
            return None
        facts = _facts(state.trials[setting.trial_id])
        return facts | {"fold_score": setting.score, "n_folds": setting.n_folds}
    scored = [t for t in state.trials.values() if t.phase == "search" and t.metrics]
    best = max(scored, key=lambda trial: objective(trial.metrics), default=None)
    return _facts(best) if best else None


def _facts(best: TrialRecord) -> dict[str, Any]:
    facts = {
        "trial_id": best.trial_id,
        "setting": best.setting,
        "variant": best.variant,
        OBJECTIVE: best.metrics[OBJECTIVE],
    }
    if SCORE in best.metrics:
        facts[SCORE] = best.metrics[SCORE]
    return facts
