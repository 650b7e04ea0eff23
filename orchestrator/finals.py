"""The stages that judge: hypotheses, select, vote and report. Only vote and report see test labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.section import identity
from orchestrator import fair, stats, tables
from orchestrator import select as selection
from orchestrator import vote as voting
from orchestrator.errors import UserError
from orchestrator.ledger import TrialState
from orchestrator.phases import phase_trials, ranking
from orchestrator.stages import Context, Done, load_json, majority_class, ray_map
from orchestrator.store import write_json


def _sides(context: Context) -> tuple[dict[str, str], dict[str, str]]:
    """Return the group of every sample, and the stratum of its group: the labels constant within groups."""
    from data_prep.split import strata  # noqa: PLC0415

    rows = [row for row in context.catalog_table().to_pylist() if row["label"] is not None]
    groups = [row["group"] for row in rows]
    codes = np.array([[row[f"label_{name}"] for name in context.schema.names] for row in rows], np.int64)
    names, _, constant = strata(groups, codes)
    by_group = {name: str(row.tolist()) for name, row in zip(names, constant, strict=True)}
    return {row["sample_id"]: row["group"] for row in rows}, {row["sample_id"]: by_group[row["group"]] for row in rows}


def _judged(context: Context) -> tuple[str, str]:
    """Return the phase and the predictions that choices rest on: search and val where nothing is confirmed."""
    return ("confirm", "oof") if context.experiment.spec.confirm else ("search", "val")


def _checkpoints(context: Context) -> dict[str, list[TrialState]]:
    """Return setting -> the trials whose checkpoints answer for it. In search, its first finished one does."""
    phase, _ = _judged(context)
    by_setting: dict[str, list[TrialState]] = {}
    for trial in phase_trials(context, phase):
        by_setting.setdefault(trial.facts["setting"], []).append(trial)
    if phase == "confirm":
        return by_setting
    done = {s: [t for t in found if t.status == "COMPLETE"][:1] for s, found in by_setting.items()}
    return {setting: found for setting, found in done.items() if found}


def _complete_settings(context: Context) -> dict[str, str]:
    """Return setting -> variant of the candidates whose every trial finished."""
    by_setting = _checkpoints(context)
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
            found[setting] = selection.oof_of(
                predictions, setting, groups, strata, context.schema.n_classes, split=_judged(context)[1]
            )
        except UserError:
            continue
    return found


def _search_scores(context: Context) -> dict[str, float]:
    scores: dict[str, float] = {}
    for setting, _, score in ranking(phase_trials(context, "search")):
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
    full = _arms(context)
    arms = fair.shared(full)
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
        | {"n_left_out": len(full[setting].sample_ids) - len(oof.sample_ids)}  # photos that another arm excluded
        for setting, oof in sorted(arms.items())
    ]
    chosen = selection.choose(found, spec.select.policy, spec.select.members)
    chosen["vote"] = {"rule": spec.vote.rule, "tie": voting.TIE_RULE}
    rests_on = _judged(context)[1]
    chosen["ensemble"] = {"oof": None, rests_on: _oof_vote(context, chosen["members"]), "test": None}
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"][rests_on]["macro_f1"]
    return Done(
        "SUCCEEDED",
        f"{len(chosen['members'])} members, {'out-of-fold' if rests_on == 'oof' else 'validation'} macro F1 {bounds['estimate']:.3f} "
        f"({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def _n_params(context: Context, setting: str) -> int:
    trial = _checkpoints(context)[setting][0]
    return int(load_json(context.store.get("trial", trial.facts["key"]).path / "model.json")["n_params"])


def _oof_vote(context: Context, members: list[str]) -> dict[str, Any]:
    """Return the headline: the members' vote on samples that each of their checkpoints held out."""
    ids, targets, probs = None, {}, []
    rows = [row for row in tables.read(context.paths.predictions).to_pylist() if row["split"] == _judged(context)[1]]
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
        (t, context.store.get("trial", t.facts["key"])) for s in chosen["members"] for t in _checkpoints(context)[s]
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
