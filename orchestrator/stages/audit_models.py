"""Quick models of the audit: a linear head on frozen features, scored on photos it never saw.

They answer two questions before anything is trained. How much better does a score look by a split
that leaves one person on both sides? Which label is hard, or shown by what is around the subject?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.audit.examination import leak, people
from data_prep.catalog.label_schema import Schema
from data_prep.config import Split
from data_prep.split import deal_folds
from orchestrator.base.json_types import Json
from orchestrator.base.stage_versions import QUICK_BACKBONE
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import Metric, score_of
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.planning.run_environment import Env
from orchestrator.spec.score import DEFAULT
from orchestrator.stages.quick_features import chosen, features

N_SEEDS = 10
LEVEL = 0.90
_T_90 = 1.833  # Student's t, 95th percentile, 9 degrees of freedom: of ten seeds
_N_COMPONENTS = 256
_RIDGE = 0.5
"""Times a component's mean variance times the samples.

On 120 real portraits 0.1 to 1 give equal scores; 0.01 and 10 score up to 0.08 lower.
"""
_FOLDS = (2, 10)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LeakGap:
    """The score by a split that leaks, and by one that keeps people apart."""

    split: float
    disjoint: float
    difference: float
    low: float  # of the difference: 90 %, Student's t over the seeds
    high: float
    level: float
    strategy: str
    n_seeds: int
    n_photos: int
    n_groups: int
    n_folds: int
    n_train: float  # mean
    per_seed: list[list[float]]  # both scores


def leak_gaps(env: Env, catalog: pa.Table, folds: Mapping[str, pa.Table]) -> dict[str, LeakGap]:
    """Measure how much a leaking split lifts the score of a quick model, per variant.

    Returns:
        Variant -> its gap; empty where every split is disjoint, because then nothing can leak.
    """
    alike = people(catalog.filter(pc.equal(catalog["status"], "ok")))
    leaking = {name for name, table in folds.items() if leak(table, alike) > 0}
    if not leaking or not _has_backbone(env, "leak gap"):
        return {}
    rows = chosen(catalog)
    owners = persons(rows, alike)
    if len(set(owners)) < 2:
        return {}
    x = compress(features(env, rows, "whole"))
    scorer = scorer_of(env.experiment.spec.parsed_score, env.schema)
    by_split: dict[str, LeakGap] = {}
    gaps = {}
    for name in sorted(leaking):
        split = env.experiment.arms[name].data.split
        key = split.model_dump_json()
        if key not in by_split:
            by_split[key] = leak_gap(x, rows, owners, env.schema, split, metric=scorer)
        gaps[name] = by_split[key]
    return gaps


def _has_backbone(env: Env, purpose: str) -> bool:
    """Return True if the weights of the quick model are here; say so where they are not."""
    from data_prep.weights.cache import local  # noqa: PLC0415

    if local(QUICK_BACKBONE) is not None:
        return True
    env.console.say(
        f"audit: the {purpose} needs `python -m orchestrator weights {QUICK_BACKBONE}`; left out"
    )
    return False


def persons(rows: pa.Table, alike: Sequence[Sequence[str]]) -> list[str]:
    """Return every photo's group, groups that share a picture under one name."""
    names = {group: members[0] for members in alike for group in members}
    column = "own_group" if "own_group" in rows.column_names else "group"
    return [names.get(group, group) for group in rows[column].to_pylist()]


def leak_gap(
    x: Floats,
    rows: pa.Table,
    owners: Sequence[str],
    schema: Schema,
    split: Split,
    n_seeds: int = N_SEEDS,
    *,
    metric: Metric = DEFAULT,
) -> LeakGap:
    """Score one quick model under a split's strategy and under a disjoint one.

    Both deal the same photos to 1 / val folds, so both are scored on all of them; the larger
    training part of a fold is cut to the size of the smaller. `random` is compared with `profile`;
    the others with themselves over groups joined by shared pictures.

    Args:
        x: (n_photos, n) features.
        rows: the photos' rows of the catalog.
        owners: whom each photo shows.
        schema: of the labels.
        split: strategy and share of val; its seed is the first of ten.
        n_seeds: how often the folds are dealt.
        metric: the score of the spec.
    """
    labels = rows["label"].to_numpy()
    codes = schema.decode(labels)
    groups = rows["sample_id" if split.strategy == "random" else "group"].to_pylist()
    balanced = codes if split.strategy == "balanced_profile" else codes[:, :0]
    n_folds = min(max(round(1 / split.val), _FOLDS[0]), _FOLDS[1], len(set(owners)))
    pairs = []
    sizes = []
    for seed in range(split.seed, split.seed + n_seeds):
        leaking = deal_folds(groups, balanced, n_folds, seed=seed)
        disjoint = deal_folds(list(owners), balanced, n_folds, seed=seed)
        pair = []
        for dealt, other in ((leaking, disjoint), (disjoint, leaking)):
            parts = _equal_parts(dealt, other, n_folds, seed)
            preds = schema.encode(_out_of_fold(x, codes, dealt, parts, schema.sizes))
            pair.append(score_of(labels, preds, schema.n_classes, metric))
            sizes += [len(part) for part in parts]
        pairs.append(pair)
    scores = np.array(pairs)
    gaps = scores[:, 0] - scores[:, 1]
    reach = _T_90 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return LeakGap(
        split=float(scores[:, 0].mean()),
        disjoint=float(scores[:, 1].mean()),
        difference=float(gaps.mean()),
        low=float(gaps.mean() - reach),
        high=float(gaps.mean() + reach),
        level=LEVEL,
        strategy=split.strategy,
        n_seeds=n_seeds,
        n_photos=len(labels),
        n_groups=len(set(owners)),
        n_folds=n_folds,
        n_train=float(np.mean(sizes)),
        per_seed=scores.round(6).tolist(),
    )


def _equal_parts(dealt: Ints, other: Ints, n_folds: int, seed: int) -> list[Ints]:
    """Return the training rows of every fold, no more of them than the other deal leaves."""
    rng = np.random.default_rng([seed, 1])
    parts = []
    for fold in range(n_folds):
        rows = np.flatnonzero(dealt != fold)
        n_train = min(len(rows), int((other != fold).sum()))
        parts.append(np.sort(rng.permutation(rows)[:n_train]))
    return parts


def probe_labels(env: Env, catalog: pa.Table) -> Json | None:
    """Train a quick model of each label on the whole photo and on its rim alone.

    Groups are never on both sides.

    Returns:
        The section `probe` of audit.json; None without the backbone's weights.
    """
    if not _has_backbone(env, "probe"):
        return None
    rows = chosen(catalog)
    owners = persons(rows, people(catalog.filter(pc.equal(catalog["status"], "ok"))))
    if len(set(owners)) < 2:
        return None
    views = {view: compress(features(env, rows, view)) for view in ("whole", "rim")}
    spec = env.experiment.spec
    return probe(views, rows, owners, env.schema, seed=spec.seed, metric=spec.parsed_score.metric)


def probe(
    views: Mapping[str, Floats],
    rows: pa.Table,
    owners: Sequence[str],
    schema: Schema,
    *,
    seed: int,
    n_folds: int = 5,
    metric: str = DEFAULT,
) -> Json:
    """Score quick models of each label out of fold.

    Intervals resample groups. Chance is the score of models whose groups were permuted.

    Args:
        views: view -> (n_photos, n) features.
        rows: the photos' rows of the catalog.
        owners: whom each photo shows.
        schema: of the labels.
        seed: of the folds and resamples.
        n_folds: at most so many.
        metric: of each label's classes; `rim` and `chance` are by it.

    Returns:
        {n_photos, n_groups, n_folds, labels: {name: {macro_f1, rim, chance: {estimate, low, high},
        classes, confusion (truth x answer)}}}; score where the metric is another.
    """
    codes = schema.decode(rows["label"].to_numpy())
    n_folds = min(n_folds, len(set(owners)))
    dealt = deal_folds(list(owners), codes, n_folds, seed=seed)
    parts = [np.flatnonzero(dealt != fold) for fold in range(n_folds)]
    answers = {}
    for view, x in views.items():
        answers[view] = _out_of_fold(x, codes, dealt, parts, schema.sizes)
    shuffled = [_permuted(codes, owners, seed + i) for i in range(N_SEEDS)]
    blind = [_out_of_fold(views["whole"], c, dealt, parts, schema.sizes) for c in shuffled]
    samples = rows["sample_id"].to_pylist()
    labels = {}
    for i, (name, size) in enumerate(zip(schema.names, schema.sizes, strict=True)):
        scores = {}
        macro_f1s = {}
        for view, preds in answers.items():
            arm = Predictions(samples, codes[:, i], preds[None, :, i], size, list(owners))
            scores[view] = _interval_of(arm, metric, seed)
            macro_f1s[view] = (
                scores[view] if metric == DEFAULT else _interval_of(arm, DEFAULT, seed)
            )
        chance = []
        for truth, preds in zip(shuffled, blind, strict=True):
            chance.append(score_of(truth[:, i], preds[:, i], size, metric))
        confusion = np.zeros((size, size), dtype=np.int64)
        np.add.at(confusion, (codes[:, i], answers["whole"][:, i]), 1)
        labels[name] = {
            "macro_f1": macro_f1s["whole"],
            "rim": scores["rim"],
            "chance": _span(float(np.mean(chance)), min(chance), max(chance)),
            "classes": schema.classes[name],
            "confusion": confusion.tolist(),
        }
        if metric != DEFAULT:
            labels[name]["score"] = scores["whole"]
    return {
        "n_photos": len(rows),
        "n_groups": len(set(owners)),
        "n_folds": n_folds,
        "labels": labels,
    }


def _interval_of(arm: Predictions, metric: str, seed: int) -> dict[str, float]:
    bounds = interval(arm, metric=metric, seed=seed)
    return _span(bounds.estimate, bounds.low, bounds.high)


def _span(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high}


def compress(x: Any) -> Floats:
    """Return the first 256 principal components of standardised features; no label is used."""
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
    inputs = np.column_stack([x[train], np.ones(len(train))])
    unseen = np.column_stack([x[asked], np.ones(len(asked))])
    penalty = np.full(inputs.shape[1], _RIDGE * float((x[train] ** 2).mean()) * len(train))
    penalty[-1] = 0.0
    answers = []
    for i, size in enumerate(sizes):
        label = codes[train, i]
        counts = np.bincount(label, minlength=size)
        weight = len(label) / (np.count_nonzero(counts) * np.maximum(counts, 1)[label])
        target = np.where(np.arange(size) == label[:, None], 1.0, -1.0)
        weighted = inputs * weight[:, None]
        heads = np.linalg.solve(weighted.T @ inputs + np.diag(penalty), weighted.T @ target)
        scores = unseen @ heads
        scores[:, counts == 0] = -np.inf
        answers.append(scores.argmax(1))
    return np.stack(answers, axis=1)


def _out_of_fold(
    x: Floats, codes: Ints, dealt: Ints, parts: Sequence[Ints], sizes: Sequence[int]
) -> Ints:
    """Answer every photo by the model of its fold, which learns from that fold's part."""
    preds = np.zeros_like(codes)
    for fold, train in enumerate(parts):
        held_out = np.flatnonzero(dealt == fold)
        preds[held_out] = answer(x, codes, train, held_out, sizes)
    return preds


def _permuted(codes: Ints, owners: Sequence[str], seed: int) -> Ints:
    """Give every group the codes of another one: what is constant within groups stays so."""
    rng = np.random.default_rng([seed, 2])
    names = sorted(set(owners))
    rows_of: dict[str, list[int]] = {name: [] for name in names}
    for row, owner in enumerate(owners):
        rows_of[owner].append(row)
    permuted = np.empty_like(codes)
    for name, giver in zip(names, rng.permutation(len(names)), strict=True):
        given = rng.permutation(rows_of[names[giver]])
        permuted[rows_of[name]] = codes[np.resize(given, len(rows_of[name]))]
    return permuted
