"""The phases that train: search and confirm, one Tune experiment each, and their tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels import train_borders, train_codes
from data_prep.section import identity
from data_prep.split import inner_part
from orchestrator import fair, tables
from orchestrator import select as selection
from orchestrator.bridge import OBJECTIVE, Bridge
from orchestrator.errors import UserError
from orchestrator.keys import digest, stage_key
from orchestrator.ledger import State, TrialState, read, replay
from orchestrator.plan import VERSIONS
from orchestrator.search import Studies, search_bridge
from orchestrator.space import Search
from orchestrator.stages import Context, Done
from orchestrator.store import file_sha256
from orchestrator.trial import TrialSpec


def _parts_file(context: Context, variant: str, fold: int | None) -> Path:
    """Write which sample is for what in one training: train and val, or the inner parts and the held-out fold."""
    key, schema = context.folds[variant].key, context.schema
    moved = train_borders(context.experiment.arms[variant].data.labels)
    part = "search" if fold is None else f"fold{fold}"
    path = context.paths.parts / f"{key[:12]}{f'-{digest(moved)[:8]}' if moved else ''}-{part}.parquet"
    if path.is_file():
        return path
    folds = tables.read(context.folds[variant].file("folds.parquet"))
    rows = {row["sample_id"]: row for row in folds.to_pylist()}
    if fold is None:
        parts = {sample: row["role"] for sample, row in rows.items() if row["role"] in {"train", "val"}}
    else:
        train, val = inner_part(folds, fold, context.experiment.arms[variant].data.split, schema)
        parts = {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}
        parts |= {
            sample: "holdout" for sample, row in rows.items() if row["fold"] == fold and row["role"] in {"train", "val"}
        }
    samples = sorted(parts)
    codes = [list(schema.decode(rows[sample]["label"])) for sample in samples]
    for name, found in _moved_codes(context, variant).items():  # what is scored keeps its borders
        for sample, code in zip(samples, codes, strict=True):
            if parts[sample] == "train":
                code[schema.names.index(name)] = found[sample]
    columns: dict[str, Any] = {
        "sample_id": pa.array(samples, pa.string()),
        "part": [parts[sample] for sample in samples],
    }
    columns |= {
        f"label_{name}": pa.array([int(code[at]) for code in codes], pa.int64()) for at, name in enumerate(schema.names)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def _moved_codes(context: Context, variant: str) -> dict[str, dict[str, int]]:
    """Return the codes under `train_bins` by label and sample."""
    catalog = context.catalog_table()
    rows = catalog.filter(pc.is_valid(catalog["label"]))
    found = train_codes(context.experiment.arms[variant].data.labels, rows)
    return {name: dict(zip(rows["sample_id"].to_pylist(), codes, strict=True)) for name, codes in found.items()}


def _trial(
    context: Context, trial_id: str, phase: str, variant: str, point: dict[str, Any], seed: int, fold: int | None
) -> TrialSpec:
    setting, arm = context.experiment.setting(variant, point)
    parts, sizes = (
        _parts_file(context, variant, fold),
        dict(zip(context.schema.names, context.schema.sizes, strict=True)),
    )
    train = arm.train.model_dump(mode="json", by_alias=True)
    key = stage_key(
        "trial",
        VERSIONS["trial"],
        {"train": identity(arm.train), "seed": seed, "labels": sizes, "fold": fold},
        {"prepare": context.prepared[variant].key, "parts": file_sha256(parts)},
    )
    share = context.experiment.spec.resources.per_trial
    return TrialSpec(
        trial_id,
        setting,
        variant,
        phase,
        seed,
        fold,
        point,
        train,
        key,
        str(context.store.root),
        str(context.rows[variant].path),
        str(parts),
        sizes,
        threads=max(1, int(share.cpu)),
        device="cuda" if share.gpu else "cpu",
    )


def _run(context: Context, bridge: Bridge, phase: str) -> None:
    from orchestrator.tuning import run  # noqa: PLC0415

    resources = context.experiment.spec.resources
    share = resources.per_trial
    fit = int(min(context.cpus / share.cpu, context.gpus / share.gpu if share.gpu else np.inf))
    concurrent = max(1, fit if resources.max_concurrent == "auto" else min(fit, resources.max_concurrent))
    run(bridge, context.paths.tune / phase, cpu=share.cpu, gpu=share.gpu, max_concurrent=concurrent)


def phase_trials(context: Context, phase: str) -> list[TrialState]:
    """Return the trials of a phase in the order they were started."""
    return [trial for trial in replay(context.ledger.events).trials.values() if trial.phase == phase]


def _reuse(context: Context, kind: str, key: str) -> bool:
    """Take a finished phase out of the store: its events into the ledger, its Tune folder into the run."""
    found = context.store.find(kind, key)
    if found is None or phase_trials(context, kind):
        return False
    for event in read(found.file("events.jsonl")):
        context.ledger.append(event.pop("event"), **{k: v for k, v in event.items() if k not in {"n", "time"}})
    shutil.rmtree(context.paths.tune / kind, ignore_errors=True)
    shutil.copytree(found.path / "tune", context.paths.tune / kind)
    return True


def _keep(context: Context, kind: str, key: str, result: dict[str, Any]) -> None:
    """Put a finished phase into the store, for the next run that asks for the same."""
    if context.store.find(kind, key):
        return
    names = {trial.trial_id for trial in phase_trials(context, kind)}
    events = [
        e
        for e in context.ledger.events
        if e["event"] in {"trial_started", "report", "trial_ended"} and e["trial_id"] in names
    ]
    with context.store.draft(kind, key, params={}, inputs={}) as draft:
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        (draft.path / "events.jsonl").write_text(text, encoding="utf-8")
        shutil.copytree(context.paths.tune / kind, draft.path / "tune")
        draft.result |= result


def _note(trials: list[TrialState]) -> str:
    counted = {name: sum(trial.status == name for trial in trials) for name in ("COMPLETE", "PRUNED", "FAILED")}
    return ", ".join(f"{n} {name.lower()}" for name, n in counted.items() if n)


def _write_tables(context: Context) -> None:
    state = replay(context.ledger.events)
    tables.write(trials_table(state, context.schema.names), context.paths.trials)
    tables.write(curves_table(state), context.paths.curves)


def search(context: Context) -> Done:
    """Try settings: one trial each, on role train, scored on role val."""
    spec, key = context.experiment.spec, context.keys.search(context.require_catalog())
    reused = _reuse(context, "search", key)
    if not reused:

        def make(trial_id: str, variant: str, point: dict[str, Any]) -> TrialSpec:
            return _trial(
                context,
                f"s-{trial_id}" if not trial_id.startswith("s-") else trial_id,
                "search",
                variant,
                point,
                spec.seed,
                None,
            )

        studies = Studies(
            context.paths.run_id, spec.search or Search(trials=1), list(context.experiment.arms), spec.seed, make
        )
        with context.reporter.task("search", studies.budget() * len(studies.variants)) as advance:
            durations = {name: arm.train.duration for name, arm in context.experiment.arms.items()}
            _run(context, search_bridge(studies, context.ledger, durations, advance), "search")
    trials = phase_trials(context, "search")
    _write_tables(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.end.get("error")) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, all {len(trials)} failed: {'; '.join(causes[:3])}"
        )
    _keep(context, "search", key, {"ranking": [list(row) for row in ranking(trials)]})
    return Done("CACHED" if reused else "SUCCEEDED", _note(trials))


def ranking(trials: list[TrialState]) -> list[tuple[str, str, float]]:
    """Return (setting, variant, score) of the finished trials, scored on the val samples that all of them kept."""
    done = [trial for trial in trials if trial.status == "COMPLETE"]
    scores = fair.search_scores(done, OBJECTIVE)
    return [(t.facts["setting"], t.facts["variant"], score) for t, score in zip(done, scores, strict=True)]


def confirm(context: Context) -> Done:
    """Train the finalists again over seeds and folds, each blind to its fold."""
    wanted = context.experiment.spec.confirm
    context.paths.tune.joinpath("confirm").mkdir(parents=True, exist_ok=True)
    if wanted is None:
        _collect(context)
        return Done("SUCCEEDED", "confirm: null")
    found = phase_trials(context, "search")
    chosen = selection.finalists(ranking(found), wanted.finalists, list(context.experiment.arms))
    points = {t.facts["setting"]: (t.facts["variant"], t.facts["params"]) for t in found if t.status == "COMPLETE"}
    key = context.keys.confirm(context.require_catalog(), chosen)
    reused = _reuse(context, "confirm", key)
    if not reused:
        specs = [
            _trial(context, f"c-{setting}-s{seed}-f{fold}", "confirm", *points[setting], seed, fold)
            for setting in chosen
            for seed in wanted.seeds
            for fold in range(wanted.folds)
        ]
        by_id = {spec.trial_id: spec for spec in specs}
        known = {trial.trial_id for trial in phase_trials(context, "confirm")}
        with context.reporter.task("confirm", len(specs)) as advance:
            bridge = Bridge(
                context.ledger,
                "confirm",
                ((spec, None) for spec in specs if spec.trial_id not in known),
                resume=lambda trial: (by_id[trial.trial_id], None),
                progress=advance,
            )
            _run(context, bridge, "confirm")
    trials = phase_trials(context, "confirm")
    _write_tables(context)
    _collect(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        raise UserError(f"confirm: at least one finished trial was required, all {len(trials)} failed; see `results`")
    _keep(context, "confirm", key, {})
    return Done("CACHED" if reused else "SUCCEEDED", _note(trials))


def _collect(context: Context) -> None:
    """Gather the predictions of all finished trials."""
    parts = []
    for trial in replay(context.ledger.events).trials.values():
        if trial.status == "COMPLETE":
            table = tables.read(context.store.get("trial", trial.facts["key"]).file("predictions.parquet"))
            parts.append(_renamed(table, trial))
    tables.write(pa.concat_tables(parts) if parts else tables.PREDICTIONS.empty_table(), context.paths.predictions)


def _renamed(table: pa.Table, trial: TrialState) -> pa.Table:
    """Give a trial's predictions the names they have in this run; the artifact may come from another one."""
    for name in ("trial_id", "setting", "variant"):
        value = trial.trial_id if name == "trial_id" else trial.facts[name]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([value] * len(table), pa.string()))
    return table.cast(tables.PREDICTIONS)


def trials_table(state: State, labels: Iterable[str]) -> pa.Table:
    """Return trials.parquet from what the ledger tells."""
    schema = tables.trials_schema(labels)
    rows = []
    for trial in state.trials.values():
        if trial.status is None:
            continue
        best = trial.end.get("metrics") or {}
        rows.append(
            {
                **{name: trial.facts[name] for name in ("setting", "variant", "phase", "seed", "fold")},
                "trial_id": trial.trial_id,
                "params": json.dumps(trial.facts["params"], sort_keys=True),
                **{name: trial.end.get(name) for name in ("status", "epochs", "wall_s", "checkpoint", "error")},
                **{name: value for name, value in best.items() if name in schema.names},
            }
        )
    return tables.from_rows(rows, schema)


def curves_table(state: State) -> pa.Table:
    """Return curves.parquet from what the ledger tells."""
    metrics = sorted({name for trial in state.trials.values() for one in trial.reports.values() for name in one})
    rows = [
        {"trial_id": t.trial_id, "epoch": epoch, **found}
        for t in state.trials.values()
        for epoch, found in sorted(t.reports.items())
    ]
    return tables.from_rows(rows, tables.curves_schema(metrics))


def best_trial(state: State) -> dict[str, Any] | None:
    """Return the best search trial so far."""
    done = [t for t in state.trials.values() if t.phase == "search" and t.end.get("metrics")]
    if not done:
        return None
    top = max(done, key=lambda t: t.end["metrics"][OBJECTIVE])
    return {
        "trial_id": top.trial_id,
        "setting": top.facts["setting"],
        "variant": top.facts["variant"],
        OBJECTIVE: top.end["metrics"][OBJECTIVE],
    }
