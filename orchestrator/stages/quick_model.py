"""Quick models of the audit: a linear head on frozen features, scored on photos that its training never saw.

They answer two questions before anything is trained: how much better does a score look by a split that leaves one
person on both sides, and which label is hard, or told by what stands around the subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.audit.examination import leak, people
from data_prep.catalog.labels import Schema
from data_prep.config import Split
from data_prep.split import deal_folds
from orchestrator.base.versions import QUICK_BACKBONE
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.predictions import Predictions
from orchestrator.planning.stage import Env
from orchestrator.stages.quick_features import chosen, features

N_SEEDS = 10
LEVEL = 0.90
_T_90 = 1.833  # Student's t, 95th percentile, 9 degrees of freedom: of ten seeds
_N_COMPONENTS = 256
_RIDGE = 0.5
"""Times a component's mean variance times the samples.

On 120 real portraits 0.1 to 1 score alike; 0.01 and 10 score up to 0.08 lower.
"""
_FOLDS = (2, 10)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def leak_gaps(
    env: Env, catalog: pa.Table, folds: Mapping[str, pa.Table]
) -> dict[str, dict[str, Any]]:
    """Measure, per variant whose split leaks, how much too well a quick model scores by it.

    Returns:
        Variant -> what `leak_gap` returns; {} where every split is disjoint, for then nothing can leak.
    """
    from data_prep.weights.cache import local  # noqa: PLC0415

    alike = people(catalog.filter(pc.equal(catalog["status"], "ok")))
    leaking = {name for name, table in folds.items() if leak(table, alike) > 0}
    if not leaking:
        return {}
    if local(QUICK_BACKBONE) is None:
        env.console.say(
            f"audit: the leak gap needs `python -m orchestrator weights {QUICK_BACKBONE}`; left out"
        )
        return {}
    rows = chosen(catalog)
    people_of = persons(rows, alike)
    if len(set(people_of)) < 2:
        return {}
    x = compress(features(env, rows, "whole"))
    arms = env.experiment.arms
    by_split: dict[str, dict[str, Any]] = {}
    for name in sorted(leaking):
        split = arms[name].data.split
        by_split.setdefault(
            split.model_dump_json(), leak_gap(x, rows, people_of, env.schema, split)
        )
    return {name: by_split[arms[name].data.split.model_dump_json()] for name in sorted(leaking)}


def persons(rows: pa.Table, alike: Sequence[Sequence[str]]) -> list[str]:
    """Return every photo's group, groups that share a picture under one name."""
    one_of = {name: members[0] for members in alike for name in members}
    column = "own_group" if "own_group" in rows.column_names else "group"
    return [one_of.get(group, group) for group in rows[column].to_pylist()]


def leak_gap(
    x: Floats,
    rows: pa.Table,
    owners: Sequence[str],
    schema: Schema,
    split: Split,
    n_seeds: int = N_SEEDS,
) -> dict[str, Any]:
    """Score one quick model under a split's strategy and under a disjoint one.

    Both deal the same photos to 1 / val folds, so both are scored on all of them; the larger training part of a fold is
    cut to the size of the smaller. `random` is held against `profile`; the others against themselves over groups joined
    by shared pictures.

    Args:
        x: (n_photos, n) features.
        rows: the photos' rows of the catalog.
        owners: whom each photo shows.
        schema: of the labels.
        split: strategy and share of val; its seed is the first of ten.
        n_seeds: how often the folds are dealt.

    Returns:
        {split, disjoint, difference, low, high (90 %, Student's t over the seeds), level, n_seeds, n_photos, n_groups,
        n_folds, n_train (mean), per_seed}: macro F1 of the joint class.
    """
    labels = rows["label"].to_numpy()
    codes = schema.decode(labels)
    names = rows["sample_id"].to_pylist()
    groups = names if split.strategy == "random" else rows["group"].to_pylist()
    balanced = codes if split.strategy == "balanced_profile" else codes[:, :0]
    n_folds = min(max(round(1 / split.val), _FOLDS[0]), _FOLDS[1], len(set(owners)))
    scores = []
    sizes = []
    for seed in range(split.seed, split.seed + n_seeds):
        theirs = deal_folds(groups, balanced, n_folds, seed=seed)
        ours = deal_folds(list(owners), balanced, n_folds, seed=seed)
        pair = []
        for dealt, other in ((theirs, ours), (ours, theirs)):
            rng = np.random.default_rng([seed, 1])
            pred = np.full(len(labels), -1, dtype=np.int64)
            for fold in range(n_folds):
                train = np.flatnonzero(dealt != fold)
                n_train = min(len(train), int((other != fold).sum()))
                train = np.sort(rng.permutation(train)[:n_train])
                pred[dealt == fold] = schema.encode(
                    answer(x, codes, train, np.flatnonzero(dealt == fold), schema.sizes)
                )
                sizes.append(n_train)
            pair.append(macro_f1(labels, pred, schema.n_classes))
        scores.append(pair)
    found = np.array(scores)
    gaps = found[:, 0] - found[:, 1]
    reach = _T_90 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return {
        "split": float(found[:, 0].mean()),
        "disjoint": float(found[:, 1].mean()),
        "difference": float(gaps.mean()),
        "low": float(gaps.mean() - reach),
        "high": float(gaps.mean() + reach),
        "level": LEVEL,
        "strategy": split.strategy,
        "n_seeds": n_seeds,
        "n_photos": len(labels),
        "n_groups": len(set(owners)),
        "n_folds": n_folds,
        "n_train": float(np.mean(sizes)),
        "per_seed": found.round(6).tolist(),
    }


def probe_labels(env: Env, catalog: pa.Table) -> dict[str, Any] | None:
    """Train a quick model of each label on the whole photo and on its rim alone; groups are never on both sides.

    Returns:
        {n_photos, n_groups, n_folds, labels: {name: {macro_f1, rim, chance: {estimate, low, high}, classes, confusion
        (truth x answer)}}}, None without the backbone's weights.
    """
    from data_prep.weights.cache import local  # noqa: PLC0415

    if local(QUICK_BACKBONE) is None:
        env.console.say(
            f"audit: the probe needs `python -m orchestrator weights {QUICK_BACKBONE}`; left out"
        )
        return None
    rows = chosen(catalog)
    owners = persons(rows, people(catalog.filter(pc.equal(catalog["status"], "ok"))))
    if len(set(owners)) < 2:
        return None
    views = {view: compress(features(env, rows, view)) for view in ("whole", "rim")}
    return probe(views, rows, owners, env.schema, seed=env.experiment.spec.seed)


def probe(
    views: Mapping[str, Floats],
    rows: pa.Table,
    owners: Sequence[str],
    schema: Schema,
    *,
    seed: int,
    n_folds: int = 5,
) -> dict[str, Any]:
    """Score quick models of each label out of fold; intervals resample groups, chance is of permuted groups."""
    codes = schema.decode(rows["label"].to_numpy())
    n_folds = min(n_folds, len(set(owners)))
    dealt = deal_folds(list(owners), codes, n_folds, seed=seed)
    answers = {view: _out_of_fold(x, codes, dealt, schema.sizes) for view, x in views.items()}
    shuffled = [_permuted(codes, owners, seed + at) for at in range(N_SEEDS)]
    blind = [_out_of_fold(views["whole"], one, dealt, schema.sizes) for one in shuffled]
    found = {}
    for at, (name, size) in enumerate(zip(schema.names, schema.sizes, strict=True)):
        chance = [
            macro_f1(one[:, at], pred[:, at], size)
            for one, pred in zip(shuffled, blind, strict=True)
        ]
        scored = {}
        for view, pred in answers.items():
            oof = Predictions(
                rows["sample_id"].to_pylist(), codes[:, at], pred[None, :, at], size, list(owners)
            )
            bounds = interval(oof, seed=seed)
            scored[view] = {"estimate": bounds.estimate, "low": bounds.low, "high": bounds.high}
        confusion = np.zeros((size, size), dtype=np.int64)
        np.add.at(confusion, (codes[:, at], answers["whole"][:, at]), 1)
        found[name] = {
            "macro_f1": scored["whole"],
            "rim": scored["rim"],
            "chance": {"estimate": float(np.mean(chance)), "low": min(chance), "high": max(chance)},
            "classes": schema.classes[name],
            "confusion": confusion.tolist(),
        }
    return {
        "n_photos": len(rows),
        "n_groups": len(set(owners)),
        "n_folds": n_folds,
        "labels": found,
    }


def compress(x: Any) -> Floats:
    """Turn features into standardised ones' first 256 principal components; no label is looked at."""
    values = np.asarray(x, dtype=np.float64)
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)
    if len(values) < values.shape[1]:  # the smaller side is the cheaper one
        left, lengths, _ = np.linalg.svd(values, full_matrices=False)
        return np.asarray((left * lengths)[:, :_N_COMPONENTS])
    _, axes = np.linalg.eigh(values.T @ values)
    return np.asarray(values @ axes[:, ::-1][:, :_N_COMPONENTS])


def answer(x: Floats, codes: Ints, train: Ints, asked: Ints, sizes: Sequence[int]) -> Ints:
    """Fit one linear head per label by ridge regression on balanced classes, and answer.

    Returns:
        (n_asked, n_labels) codes.
    """
    own = np.column_stack([x[train], np.ones(len(train))])
    other = np.column_stack([x[asked], np.ones(len(asked))])
    penalty = np.full(own.shape[1], _RIDGE * float((x[train] ** 2).mean()) * len(train))
    penalty[-1] = 0.0
    out = []
    for at, size in enumerate(sizes):
        label = codes[train, at]
        counts = np.bincount(label, minlength=size)
        weight = len(label) / (np.count_nonzero(counts) * np.maximum(counts, 1)[label])
        target = np.where(np.arange(size) == label[:, None], 1.0, -1.0)
        weighted = own * weight[:, None]
        scores = other @ np.linalg.solve(weighted.T @ own + np.diag(penalty), weighted.T @ target)
        scores[:, counts == 0] = -np.inf
        out.append(scores.argmax(1))
    return np.stack(out, axis=1)


def _out_of_fold(x: Floats, codes: Ints, dealt: Ints, sizes: Sequence[int]) -> Ints:
    pred = np.zeros_like(codes)
    for fold in np.unique(dealt):
        held = np.flatnonzero(dealt == fold)
        pred[held] = answer(x, codes, np.flatnonzero(dealt != fold), held, sizes)
    return pred


def _permuted(codes: Ints, owners: Sequence[str], seed: int) -> Ints:
    """Give every group the photos' codes of another one: what is constant within groups stays so."""
    rng = np.random.default_rng([seed, 2])
    names = sorted(set(owners))
    places: dict[str, list[int]] = {name: [] for name in names}
    for at, owner in enumerate(owners):
        places[owner].append(at)
    out = np.empty_like(codes)
    for name, giver in zip(names, rng.permutation(len(names)), strict=True):
        given = rng.permutation(places[names[giver]])
        out[places[name]] = codes[np.resize(given, len(places[name]))]
    return out
