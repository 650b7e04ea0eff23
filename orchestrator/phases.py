"""The phases that train: search and confirm, one Tune experiment each, and their tables."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels import train_borders, train_codes
from data_prep.section import identity
from data_prep.split import cells, excluded, inner_part
from orchestrator import fair, tables
from orchestrator import select as selection
from orchestrator.bridge import OBJECTIVE, Bridge
from orchestrator.errors import UserError
from orchestrator.history import earlier, write_families
from orchestrator.keys import digest, stage_key
from orchestrator.ledger import State, TrialState, read, replay
from orchestrator.plan import VERSIONS
from orchestrator.search import Studies, search_bridge
from orchestrator.space import Confirm, Search
from orchestrator.spec import Arm, Experiment
from orchestrator.stages import Context, Done
from orchestrator.store import file_sha256
from orchestrator.trial import TrialSpec
from orchestrator.worker import Watch
from trainers.config import FrozenDeepHead, NoMixUp, OfflineMixUp, OnlineMixUp, Train


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


def _mixable_file(context: Context, train: Train) -> Path | None:
    """Write which samples MixUp may mix, and with which; None where it does not ask.

    Raises:
        DataError: the spec names a column that the table does not have.
    """
    mixup = train.augment.mixup
    if isinstance(mixup, NoMixUp) or (isinstance(mixup, OnlineMixUp) and not mixup.only):
        return None
    within = mixup.within if isinstance(mixup, OfflineMixUp) else []
    path = context.paths.parts / f"mixable-{digest([context.require_catalog().key, mixup.only, within])[:12]}.parquet"
    if path.is_file():
        return path
    table, schema, where = context.catalog_table(), context.schema, "train.augment.mixup"
    table = table.filter(pc.is_valid(table["label"]))
    fits = excluded(table, schema, [mixup.only], f"{where}.only") if mixup.only else np.ones(len(table), bool)
    columns = {
        "sample_id": table["sample_id"],
        "fits": pa.array(fits),
        "within": pa.array(cells(table, schema, within, f"{where}.within")),
        "group": table["group"].combine_chunks().dictionary_encode().indices.cast(pa.int64()).fill_null(-1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def _moved_codes(context: Context, variant: str) -> dict[str, dict[str, int]]:
    """Return the codes under `train_bins` by label and sample."""
    labels = context.experiment.arms[variant].data.labels
    if not train_borders(labels):
        return {}
    catalog = context.catalog_table()
    rows = catalog.filter(pc.is_valid(catalog["label"]))
    found = train_codes(labels, rows)
    return {name: dict(zip(rows["sample_id"].to_pylist(), codes, strict=True)) for name, codes in found.items()}


def _trial(
    context: Context,
    trial_id: str,
    phase: str,
    variant: str,
    point: dict[str, Any],
    seed: int,
    fold: int | None,
    source: str | None = None,
) -> TrialSpec:
    """Describe one trial. `source` is the key of the trial that head frozen_deep stands on."""
    setting, arm = context.experiment.setting(variant, point)
    parts, sizes = (
        _parts_file(context, variant, fold),
        dict(zip(context.schema.names, context.schema.sizes, strict=True)),
    )
    mixable = _mixable_file(context, arm.train)
    inputs = {"prepare": context.prepared[variant].key, "parts": file_sha256(parts)}
    inputs |= {"mixable": file_sha256(mixable)} if mixable else {}
    inputs |= {"source": source} if source else {}
    train = arm.train.model_dump(mode="json", by_alias=True)
    train["precision"] = _precision(context, arm)
    key = stage_key(
        "trial",
        VERSIONS["trial"],
        {"train": identity(arm.train), "seed": seed, "labels": sizes, "fold": fold},
        inputs,
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
        inputs=inputs,
        mixable=str(mixable) if mixable else None,
        source=source,
    )


def _precision(context: Context, arm: Arm) -> str:
    """Return an arm's precision. `auto` is probed once per run, backbone and size, and stands in the ledger."""
    if arm.train.precision != "auto":
        return arm.train.precision
    share = context.experiment.spec.resources.per_trial
    device, model = "cuda" if share.gpu else "cpu", arm.train.model
    asked = {"backbone": model.backbone, "size": arm.prep.size, "device": device}
    for event in context.ledger.events:
        if event["event"] == "precision" and all(event[name] == value for name, value in asked.items()):
            return str(event["chosen"])
    seconds = _probe(context, arm, device)
    chosen = min(seconds, key=lambda name: seconds[name])
    context.ledger.append("precision", commit=True, **asked, seconds=seconds, chosen=chosen)
    return chosen


def _probe(context: Context, arm: Arm, device: str) -> dict[str, float]:
    """Time a few steps where trials run."""
    import ray  # noqa: PLC0415

    def run() -> dict[str, float]:
        from trainers.precision import probe  # noqa: PLC0415

        return probe(
            arm.train.model,
            dict(zip(schema.names, schema.sizes, strict=True)),
            size=arm.prep.size,
            batch_size=arm.train.micro_batch or arm.train.batch_size,
            device=device,
            threads=max(1, int(share.cpu)),
        )

    share, schema = context.experiment.spec.resources.per_trial, context.schema
    found: dict[str, float] = ray.get(ray.remote(num_cpus=share.cpu, num_gpus=share.gpu)(run).remote())
    return found


def _before_trials(context: Context) -> None:
    """Do what must not wait for a trial: refuse unknown columns, and probe precisions while all cores are free."""
    search = context.experiment.spec.search
    for variant, arm in context.experiment.arms.items():
        _mixable_file(context, arm.train)
        space = search.space_of(variant) if search else {}
        paths = [path for path in ("train.model.backbone", "train.precision") if path in space]
        for values in itertools.product(*(space[path].corners() for path in paths)):
            point = dict(zip(paths, values, strict=True))
            _precision(context, context.experiment.setting(variant, point)[1])


def sources(experiment: Experiment) -> dict[str, str]:
    """Return variant -> the variant whose feature map it stands on, for those with head frozen_deep."""
    heads = {name: arm.train.model.head for name, arm in experiment.arms.items()}
    return {name: head.source for name, head in heads.items() if isinstance(head, FrozenDeepHead)}


def _best_of(context: Context, variant: str) -> TrialState | None:
    """Return the best finished search trial of a variant, ordered as finalists are."""
    done = [t for t in phase_trials(context, "search") if t.facts["variant"] == variant and t.status == "COMPLETE"]
    return min(done, key=lambda t: (-t.end["metrics"][OBJECTIVE], t.facts["setting"]), default=None)


def _run(context: Context, bridge: Bridge, phase: str, total: int) -> None:
    from orchestrator.tuning import run  # noqa: PLC0415

    resources = context.experiment.spec.resources
    share = resources.per_trial
    fit = int(min(context.cpus / share.cpu, context.gpus / share.gpu if share.gpu else np.inf))
    concurrent = max(1, fit if resources.max_concurrent == "auto" else min(fit, resources.max_concurrent))
    watch = Watch(share.wall_s, share.report_s, share.memory_gb, str(context.paths.control), str(context.paths.logs))
    with context.reporter.trials(phase, total, lambda: bridge.look(total)) as tick:
        folder = context.paths.tune / phase
        run(bridge, folder, cpu=share.cpu, gpu=share.gpu, max_concurrent=concurrent, watch=watch, tick=tick)


def _in_store(context: Context) -> Callable[[TrialSpec], list[dict[str, float]] | None]:
    """Return what looks up the epochs of a finished training."""

    def find(spec: TrialSpec) -> list[dict[str, float]] | None:
        found = context.store.find("trial", spec.key)
        return found.result["history"] if found else None

    return find


def _take_over(context: Context, wanted: Search, families: dict[str, str]) -> None:
    """Write into the ledger what an earlier run of the same study tells, where this one has not begun."""
    if not phase_trials(context, "search"):
        for one in earlier(context.store, families, wanted, besides=context.paths.run_id).values():
            for event in one.events:
                context.ledger.append(event.pop("event"), **event)
            context.reporter.say(f"  search: {one.n_trials} trials are taken over from run {one.run_id}")
    write_families(context.paths.root, families)


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


def _note(context: Context, trials: list[TrialState]) -> str:
    counted = {name: sum(trial.status == name for trial in trials) for name in ("COMPLETE", "PRUNED", "FAILED")}
    told = [f"{n} {name.lower()}" for name, n in counted.items() if n]
    if n_cached := sum(bool(trial.end.get("cached")) for trial in trials):
        told.append(f"{n_cached} of them cached")
    found = [context.store.find("trial", key) for key in {t.facts["key"] for t in trials if t.status == "COMPLETE"}]
    taken = sum(facts["size_bytes"] for artifact in found if artifact for facts in artifact.manifest["files"].values())
    reached = [e["reason"] for e in context.ledger.events if e["event"] == "limit_reached"]
    return ", ".join([*told, f"{taken / 1e6:.0f} MB of checkpoints", *reached[-1:]])


def _write_tables(context: Context) -> None:
    state = replay(context.ledger.events)
    tables.write(trials_table(state, context.schema.names), context.paths.trials)
    tables.write(curves_table(state), context.paths.curves)


def search(context: Context) -> Done:
    """Try settings: one trial each, on role train, scored on role val."""
    spec, key = context.experiment.spec, context.keys.search(context.require_catalog())
    reused = _reuse(context, "search", key)
    if not reused:
        stands_on = sources(context.experiment)

        def make(trial_id: str, variant: str, point: dict[str, Any]) -> TrialSpec:
            best = _best_of(context, stands_on[variant]) if variant in stands_on else None
            return _trial(
                context,
                f"s-{trial_id}" if not trial_id.startswith("s-") else trial_id,
                "search",
                variant,
                point,
                spec.seed,
                None,
                source=best.facts["key"] if best else None,
            )

        _before_trials(context)
        wanted = spec.search or Search(trials=1)
        _take_over(context, wanted, context.keys.families(context.require_catalog()))
        context.ledger.append("phase_started", commit=True, phase="search")
        variants = list(context.experiment.arms)
        studies = Studies(context.paths.run_id, wanted, variants, spec.seed, make, stands_on, context.reporter.say)
        durations = {name: arm.train.duration for name, arm in context.experiment.arms.items()}
        bridge = search_bridge(
            studies,
            context.ledger,
            durations,
            finished=_in_store(context),
            gpus_per_trial=spec.resources.per_trial.gpu,
        )
        _run(context, bridge, "search", sum(map(studies.budget, variants)))
    trials = phase_trials(context, "search")
    _write_tables(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.end.get("error") or trial.end.get("why")) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, none of {len(trials)} is: {'; '.join(causes[:3])}"
        )
    _keep(context, "search", key, {"ranking": [list(row) for row in ranking(trials)]})
    return Done("CACHED" if reused else "SUCCEEDED", _note(context, trials))


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
        _before_trials(context)
        specs = _confirm_trials(context, wanted, {setting: points[setting] for setting in chosen})
        by_id = {spec.trial_id: spec for spec in specs}
        known = {trial.trial_id for trial in phase_trials(context, "confirm")}
        context.ledger.append("phase_started", commit=True, phase="confirm")
        bridge = Bridge(
            context.ledger,
            "confirm",
            _in_order([spec for spec in specs if spec.trial_id not in known], lambda: bridge.known),
            resume=lambda trial: (by_id[trial.trial_id], None),
            finished=_in_store(context),
        )
        _run(context, bridge, "confirm", len(specs))
    trials = phase_trials(context, "confirm")
    _write_tables(context)
    _collect(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        raise UserError(f"confirm: at least one finished trial was required, all {len(trials)} failed; see `results`")
    _keep(context, "confirm", key, {})
    return Done("CACHED" if reused else "SUCCEEDED", _note(context, trials))


def _confirm_trials(
    context: Context, wanted: Confirm, points: dict[str, tuple[str, dict[str, Any]]]
) -> list[TrialSpec]:
    """Describe the trials of confirm: settings x seeds x folds, a source's before those that stand on it.

    Head frozen_deep stands on its source's best setting at the same seed and fold. That one is always a finalist,
    because every variant has its best setting among them.
    """
    stands_on, keys, specs = sources(context.experiment), dict[tuple[str, int, int], str](), []
    for setting, (variant, point) in sorted(points.items(), key=lambda item: item[1][0] in stands_on):
        best = _best_of(context, stands_on[variant]) if variant in stands_on else None
        for seed, fold in itertools.product(wanted.seeds, range(wanted.folds)):
            source = keys.get((best.facts["setting"], seed, fold)) if best else None
            trial_id = f"c-{setting}-s{seed}-f{fold}"
            specs.append(_trial(context, trial_id, "confirm", variant, point, seed, fold, source=source))
            keys[setting, seed, fold] = specs[-1].key
    return specs


def _in_order(
    specs: list[TrialSpec], known: Callable[[], dict[str, TrialState]]
) -> Iterator[tuple[TrialSpec, None] | None]:
    """Propose each trial once what it stands on has ended; None where all that are left wait."""
    waiting = list(specs)
    while waiting:
        open_ = {trial.facts["key"] for trial in known().values() if trial.status is None}
        open_ |= {spec.key for spec in waiting}
        ready = next((spec for spec in waiting if spec.source not in open_), None)
        if ready is None:
            yield None
            continue
        waiting.remove(ready)
        yield ready, None


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
