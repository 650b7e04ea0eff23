"""The bodies of the later stages: search, confirm, hypotheses, select, vote, report."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.section import identity
from orchestrator import select as selection
from orchestrator import stats, tables
from orchestrator import vote as voting
from orchestrator.bridge import OBJECTIVE, Bridge
from orchestrator.errors import UserError
from orchestrator.keys import stage_key
from orchestrator.ledger import State, TrialState, replay
from orchestrator.plan import VERSIONS
from orchestrator.search import Studies, search_bridge
from orchestrator.space import Search
from orchestrator.stages import Context, Done, majority_class
from orchestrator.store import file_sha256, write_json
from orchestrator.trial import TrialSpec


# -- trials ------------------------------------------------------------------------------------------------------------
def _parts_file(context: Context, variant: str, fold: int | None) -> Path:
    """Write which sample is for what in one training: train and val, or the inner parts and the held-out fold."""
    from data_prep.split import inner_part  # noqa: PLC0415

    key, schema = context.folds[variant].key, context.schema
    path = context.paths.parts / f"{key[:12]}-{'search' if fold is None else f'fold{fold}'}.parquet"
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
    codes = [schema.decode(rows[sample]["label"]) for sample in samples]
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


def _phase(context: Context, phase: str) -> list[TrialState]:
    return [trial for trial in replay(context.ledger.events).trials.values() if trial.phase == phase]


def _reuse(context: Context, kind: str, key: str) -> bool:
    """Take a finished phase out of the store: its events into the ledger, its Tune folder into the run."""
    found = context.store.find(kind, key)
    if found is None or _phase(context, kind):
        return False
    from orchestrator.ledger import read  # noqa: PLC0415

    for event in read(found.file("events.jsonl")):
        context.ledger.append(event.pop("event"), **{k: v for k, v in event.items() if k not in {"n", "time"}})
    shutil.rmtree(context.paths.tune / kind, ignore_errors=True)
    shutil.copytree(found.path / "tune", context.paths.tune / kind)
    return True


def _keep(context: Context, kind: str, key: str, result: dict[str, Any]) -> None:
    """Put a finished phase into the store, for the next run that asks for the same."""
    import json  # noqa: PLC0415

    if context.store.find(kind, key):
        return
    names = {trial.trial_id for trial in _phase(context, kind)}
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


# -- search ------------------------------------------------------------------------------------------------------------
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
    trials = _phase(context, "search")
    _write_tables(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.end.get("error")) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, all {len(trials)} failed: {'; '.join(causes[:3])}"
        )
    _keep(context, "search", key, {"ranking": [list(row) for row in _ranking(trials)]})
    return Done("CACHED" if reused else "SUCCEEDED", _note(trials))


def _ranking(trials: list[TrialState]) -> list[tuple[str, str, float]]:
    return [
        (t.facts["setting"], t.facts["variant"], t.end["metrics"][OBJECTIVE]) for t in trials if t.status == "COMPLETE"
    ]


# -- confirm -----------------------------------------------------------------------------------------------------------
def confirm(context: Context) -> Done:
    """Train the finalists again over seeds and folds, each blind to its fold."""
    wanted = context.experiment.spec.confirm
    context.paths.tune.joinpath("confirm").mkdir(parents=True, exist_ok=True)
    if wanted is None:
        _collect(context)
        return Done("SUCCEEDED", "confirm: null")
    found = _phase(context, "search")
    chosen = selection.finalists(_ranking(found), wanted.finalists, list(context.experiment.arms))
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
        known = {trial.trial_id for trial in _phase(context, "confirm")}
        with context.reporter.task("confirm", len(specs)) as advance:
            bridge = Bridge(
                context.ledger,
                "confirm",
                ((spec, None) for spec in specs if spec.trial_id not in known),
                resume=lambda trial: (by_id[trial.trial_id], None),
                progress=advance,
            )
            _run(context, bridge, "confirm")
    trials = _phase(context, "confirm")
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


# -- judging -----------------------------------------------------------------------------------------------------------
def _sides(context: Context) -> tuple[dict[str, str], dict[str, str]]:
    """Return the group of every sample, and the stratum of its group: the labels constant within groups."""
    from data_prep.split import strata  # noqa: PLC0415

    rows = [row for row in context.catalog_table().to_pylist() if row["label"] is not None]
    groups = [row["group"] for row in rows]
    codes = np.array([[row[f"label_{name}"] for name in context.schema.names] for row in rows], np.int64)
    names, _, constant = strata(groups, codes)
    by_group = {name: str(row.tolist()) for name, row in zip(names, constant, strict=True)}
    return {row["sample_id"]: row["group"] for row in rows}, {row["sample_id"]: by_group[row["group"]] for row in rows}


def _complete_settings(context: Context) -> dict[str, str]:
    """Return setting -> variant of the finalists whose every confirm trial finished."""
    by_setting: dict[str, list[TrialState]] = {}
    for trial in _phase(context, "confirm"):
        by_setting.setdefault(trial.facts["setting"], []).append(trial)
    return {
        s: found[0].facts["variant"] for s, found in by_setting.items() if all(t.status == "COMPLETE" for t in found)
    }


def _arms(context: Context) -> dict[str, stats.Oof]:
    """Return per finalist its out-of-fold predictions, those over other classes left out."""
    groups, strata = _sides(context)
    predictions = tables.read(context.paths.predictions)
    found = {}
    for setting in _complete_settings(context):
        try:
            found[setting] = selection.oof_of(predictions, setting, groups, strata, context.schema.n_classes)
        except UserError:
            continue
    return found


def _search_scores(context: Context) -> dict[str, float]:
    scores: dict[str, float] = {}
    for setting, _, score in _ranking(_phase(context, "search")):
        scores[setting] = max(score, scores.get(setting, 0.0))
    return scores


def hypotheses(context: Context) -> Done:
    """Judge the spec's claims on the out-of-fold predictions of each arm's best finalist."""
    from orchestrator.hypotheses import judge, parse  # noqa: PLC0415

    claims, rows = context.experiment.spec.hypotheses, []
    if claims:
        arms, scores, variants = _arms(context), _search_scores(context), _complete_settings(context)
        best: dict[str, stats.Oof] = {}
        for setting in sorted(arms, key=lambda s: (-scores.get(s, 0.0), s)):
            best.setdefault(variants[setting], arms[setting])
        splits = {name: artifact.key for name, artifact in context.folds.items()}
        for claim in map(parse, claims):
            for side in (claim.better, claim.worse):
                if side not in best:
                    raise UserError(
                        f"hypotheses: out-of-fold predictions of {side!r} over all labels were required, found none"
                    )
            same = identity(context.experiment.arms[claim.better].data.split) == identity(
                context.experiment.arms[claim.worse].data.split
            )
            if not same and splits[claim.better] != splits[claim.worse]:
                raise UserError(
                    f"hypotheses: {claim.better!r} and {claim.worse!r} are split differently, so nothing pairs them"
                )
        rows = judge(claims, best, seed=context.experiment.spec.seed)
    write_json(context.paths.hypotheses, rows)
    return Done("SUCCEEDED", "; ".join(f"{row['claim']}: {row['verdict']}" for row in rows))


def select(context: Context) -> Done:
    """Choose the members of the ensemble."""
    spec, scores, variants = context.experiment.spec, _search_scores(context), _complete_settings(context)
    arms = _arms(context)
    if not arms:
        raise UserError("select: finalists with out-of-fold predictions over all labels were required, found none")
    found = [
        selection.candidate(
            setting,
            variants[setting],
            oof,
            search_score=scores.get(setting),
            n_params=_n_params(context, setting),
            seed=spec.seed,
        )
        for setting, oof in sorted(arms.items())
    ]
    chosen = selection.choose(found, spec.select.policy, spec.select.members)
    chosen["vote"] = {"rule": spec.vote.rule, "tie": voting.TIE_RULE}
    chosen["ensemble"] = {"oof": _oof_vote(context, chosen["members"]), "test": None}
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"]["oof"]["macro_f1"]
    return Done(
        "SUCCEEDED",
        f"{len(chosen['members'])} members, out-of-fold macro F1 {bounds['estimate']:.3f} "
        f"({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def _n_params(context: Context, setting: str) -> int:
    from orchestrator.stages import load_json  # noqa: PLC0415

    trial = next(t for t in _phase(context, "confirm") if t.facts["setting"] == setting)
    return int(load_json(context.store.get("trial", trial.facts["key"]).path / "model.json")["n_params"])


def _oof_vote(context: Context, members: list[str]) -> dict[str, Any]:
    """Return the headline: the members' vote on samples that each of their checkpoints held out."""
    ids, targets, probs = None, {}, []
    rows = [row for row in tables.read(context.paths.predictions).to_pylist() if row["split"] == "oof"]
    means = []
    for setting in members:
        total: dict[str, Any] = {}
        for row in rows:
            if row["setting"] == setting:
                total.setdefault(row["sample_id"], []).append(row["probs"])
                targets[row["sample_id"]] = row["target"]
        means.append({sample: np.mean(found, axis=0) for sample, found in total.items()})
    ids = sorted(set.intersection(*(set(mean) for mean in means)))
    probs = [np.array([mean[sample] for sample in ids], np.float32) for mean in means]
    preds = np.stack([one.argmax(1) for one in probs]).astype(np.int64)
    votes = voting.cast(preds, probs, context.experiment.spec.vote.rule)
    groups, strata = _sides(context)
    truth = np.array([targets[sample] for sample in ids], np.int64)
    oof = stats.Oof(
        ids, truth, votes.pred[None], [groups[s] for s in ids], [strata[s] for s in ids], context.schema.n_classes
    )
    return _scores(context, oof)


def _scores(context: Context, oof: stats.Oof) -> dict[str, Any]:
    """Return macro F1 and accuracy with intervals, and macro F1 per label."""
    seed = context.experiment.spec.seed
    found: dict[str, Any] = {
        metric: stats.interval(oof, metric=metric, seed=seed).to_json() for metric in ("macro_f1", "accuracy")
    }
    codes = [
        np.array([context.schema.decode(int(label)) for label in labels]) for labels in (oof.targets, oof.preds[0])
    ]
    for at, (name, size) in enumerate(zip(context.schema.names, context.schema.sizes, strict=True)):
        found[f"macro_f1_{name}"] = stats.macro_f1(codes[0][:, at], codes[1][:, at], size)
    return found


# -- vote --------------------------------------------------------------------------------------------------------------
def _predict_checkpoint(job: tuple[str, str, list[int]]) -> Any:
    """Predict some rows with one checkpoint; runs as a Ray task."""
    from data_prep.shards import open_rows  # noqa: PLC0415
    from trainers.predict import load, predict  # noqa: PLC0415

    folder, rows, at = job
    return predict(load(Path(folder)), open_rows(Path(rows)).images[np.array(at, np.int64)])


def vote(context: Context) -> Done:
    """Let the members vote on the test photos; only here are the test labels opened."""
    from data_prep.catalog import test_labels, test_order  # noqa: PLC0415
    from data_prep.shards import open_rows  # noqa: PLC0415
    from orchestrator.stages import load_json, ray_map  # noqa: PLC0415

    data, base = context.experiment.spec.data, context.experiment.base
    if data.test is None:
        return Done("SUCCEEDED", "no test set")
    chosen = load_json(context.paths.selection)
    order = test_order(data, base, context.catalog_table())
    quarantined = _lost_test_photos(context, [sample for sample, _ in order])
    readable = [sample for sample, _ in order if sample not in quarantined]
    members: dict[str, tuple[list[str], Any]] = {}
    rows: list[dict[str, Any]] = []
    checkpoints = [
        (t, context.store.get("trial", t.facts["key"]))
        for s in chosen["members"]
        for t in _phase(context, "confirm")
        if t.facts["setting"] == s
    ]
    jobs = []
    for trial, artifact in checkpoints:
        artifact.file("weights.safetensors")  # checks its hash
        folder = str(context.rows[trial.facts["variant"]].path)
        index = open_rows(Path(folder)).index
        jobs.append((str(artifact.path), folder, [index[sample] for sample in readable]))
    with context.reporter.task("vote", len(jobs)) as advance:
        for done, ((trial, _), probs) in enumerate(
            zip(checkpoints, ray_map(_predict_checkpoint, jobs), strict=True), 1
        ):
            setting = trial.facts["setting"]
            names, total = members.get(setting, (readable, 0))
            members[setting] = (names, total + probs)
            rows += _test_rows(trial, readable, probs)
            advance(done, "checkpoints")
    share = {s: sum(t.facts["setting"] == s for t, _ in checkpoints) for s in members}
    means = {s: (names, total / share[s]) for s, (names, total) in members.items()}
    known = [row for row in tables.read(context.paths.predictions).to_pylist() if row["split"] != "test"]
    tables.write(tables.from_rows([*known, *rows], tables.PREDICTIONS), context.paths.predictions)
    table = voting.vote_table(
        order, means, quarantined=quarantined, majority=majority_class(context), rule=context.experiment.spec.vote.rule
    )
    tables.write(table, context.paths.votes)
    context.paths.submission.write_text(voting.submission(table), encoding="utf-8")
    labels = test_labels(data, base, context.catalog_table())
    if labels is None:
        return Done("SUCCEEDED", f"{len(table)} photos, no test labels")
    tables.write(labels.cast(tables.TEST_LABELS), context.paths.test_labels)
    chosen["ensemble"]["test"] = _test_scores(context, table, labels)
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"]["test"]["macro_f1"]
    return Done(
        "SUCCEEDED",
        f"{len(table)} photos, test macro F1 {bounds['estimate']:.3f} ({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def _test_rows(trial: TrialState, samples: list[str], probs: Any) -> list[dict[str, Any]]:
    facts = trial.facts
    return [
        {
            "trial_id": trial.trial_id,
            "setting": facts["setting"],
            "variant": facts["variant"],
            "seed": facts["seed"],
            "fold": facts["fold"],
            "sample_id": sample,
            "split": "test",
            "target": None,
            "pred": int(one.argmax()),
            "probs": one.tolist(),
        }
        for sample, one in zip(samples, probs, strict=True)
    ]


def _lost_test_photos(context: Context, samples: Iterable[str]) -> dict[str, str]:
    """Return the test photos that nobody can read, by the catalog or by preparation, with the reason."""
    lost = dict(context.require_catalog().result["quarantined"])
    for artifact in context.prepared.values():
        lost |= artifact.result["quarantined"]
    return {sample: lost[sample] for sample in samples if sample in lost}


def _test_scores(context: Context, table: pa.Table, labels: pa.Table) -> dict[str, Any]:
    """Score the vote on the test set, once."""
    truth = dict(zip(labels["sample_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    rows = table.to_pylist()
    groups = {row["sample_id"]: row["group"] for row in context.catalog_table().to_pylist()}
    named = [groups[row["sample_id"]] for row in rows]
    known = all(name is not None for name in named)
    oof = stats.Oof(
        [row["sample_id"] for row in rows],
        np.array([truth[row["sample_id"]] for row in rows], np.int64),
        np.array([[row["pred"] for row in rows]], np.int64),
        named if known else None,
        None,
        context.schema.n_classes,
    )
    return _scores(context, oof)


def report(context: Context) -> Done:
    """Write the page."""
    from orchestrator.report import build  # noqa: PLC0415

    return Done("SUCCEEDED", str(build(context.paths.root)))


# -- tables and summaries ------------------------------------------------------------------------------------------------
def trials_table(state: State, labels: Iterable[str]) -> pa.Table:
    """Return trials.parquet from what the ledger tells."""
    import json  # noqa: PLC0415

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
