"""Roles and folds: pure functions of ids, labels, groups and a seed.

Every choice comes from the sha256 of seed, purpose and name. So a split does not depend on the order
of files, the platform, or the version of a library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.catalog.label_schema import Schema
from data_prep.config import Split
from data_prep.errors import LEAVE_OUT, DataError, some
from data_prep.exclusions import excluded

Ints = NDArray[np.int64]
PARTIAL = "partial"
"""The role of a photo that lacks a label: it may train, and is never scored."""
_OK = "ok"
_FEW_GROUPS = 2  # of a class: no deal puts it into every part
_N_DEALS = 20
"""Deals of an inner part, until its training part has every class; usually the first has."""


def assign(
    catalog: pa.Table,
    schema: Schema,
    split: Split,
    exclude: list[dict[str, Any]],
    n_folds: int | None,
    seeds: Sequence[int] = (0,),
) -> pa.Table:
    """Give every usable sample its role, and per confirm seed its fold.

    Roles and folds are dealt over all labelled samples, so that arms with different exclusions stay
    paired. Exclusions act on training alone: an excluded sample has a fold and is predicted out of
    fold. Folds are dealt anew for every confirm seed: so seeds also average the luck of the training
    sets. The test set keeps all its samples.

    Args:
        catalog: as `build_catalog` returns it; quarantined photos get no row.
        schema: of its labels.
        split: strategy, share of val, seed.
        exclude: rules of the spec; a sample goes when any rule fits, a rule fits when all its columns do.
        n_folds: None for no folds.
        seeds: of confirm.

    Returns:
        seed, sample_id, group, label (null for test), role (train, val, test, excluded), fold
        (int64, from 0; null for test and without folds): one block of rows per seed, each in the
        catalog's order. Without folds one block, whose seed is null. A sample that lacks a label
        has the role partial (or excluded), no label and no fold; `may_learn` says where it trains.

    Raises:
        DataError: an exclusion names an unknown column, or there are too few groups, or no training
            photo of a class.
    """
    usable = catalog.filter(pc.equal(catalog["status"], _OK))
    labelled = usable.filter(pc.is_valid(usable["label"]))
    samples = labelled["sample_id"].to_pylist()
    groups = labelled["group"].to_pylist()
    labels = labelled["label"].to_numpy()
    owners, codes = _units(split, samples, groups, schema.decode(labels))
    val = deal_share(owners, codes, split.val, seed=split.seed, purpose="val")
    out = excluded(labelled, schema, exclude)
    roles = np.where(out, "excluded", np.where(val, "val", "train"))
    _refuse_missing(roles, schema, labels, groups)
    is_labelled = pc.is_valid(usable["label"]).to_numpy()
    all_roles = np.full(len(usable), "test", dtype=object)
    all_roles[is_labelled] = roles
    lacks_some = _lacks_some(usable, schema)
    partial = usable.filter(pa.array(lacks_some))
    all_roles[lacks_some] = np.where(excluded(partial, schema, exclude), "excluded", PARTIAL)
    table = usable.select(["sample_id", "group", "label"])
    table = table.append_column("role", pa.array(all_roles, pa.string()))
    if not n_folds:
        return _with_folds(table, None, np.full(len(usable), -1, dtype=np.int64))
    blocks = []
    for seed in seeds:
        folds = np.full(len(usable), -1, dtype=np.int64)
        folds[is_labelled] = deal_folds(
            owners, codes, n_folds, seed=split.seed, purpose=f"fold, seed {seed}"
        )
        blocks.append(_with_folds(table, seed, folds))
    return pa.concat_tables(blocks)


def rows_of_seed(table: pa.Table, seed: int | None = None) -> pa.Table:
    """Return the rows of one confirm seed, of the first one by default: one row per sample."""
    if seed is None:
        seed = table["seed"][0].as_py() if len(table) else None
    if seed is None:
        return table.filter(pc.is_null(table["seed"]))
    return table.filter(pc.equal(table["seed"], seed))


def _with_folds(table: pa.Table, seed: int | None, folds: Ints) -> pa.Table:
    table = table.append_column("fold", pa.array(folds, pa.int64(), mask=folds < 0))
    return table.add_column(0, "seed", pa.array([seed] * len(table), pa.int64()))


def inner_part(
    folds: pa.Table, fold: int, split: Split, schema: Schema
) -> tuple[list[str], list[str]]:
    """Split the samples to train on outside a fold into (train, inner val), like train and val.

    The inner val part drives the schedule, early stopping and the best epoch of a confirm trial,
    which predicts its fold only at the end. It depends on the split's seed, the confirm seed and the
    fold. Groups are dealt again where the training part would lack a class: a model could never
    answer it.

    Args:
        folds: rows of one confirm seed, of `rows_of_seed`.
        fold: the one held out.
        split: of the variant.
        schema: of its labels.

    Returns:
        Sample ids of the two parts, in the table's order.

    Raises:
        DataError: there are too few groups for two parts, or a class has none outside the fold to train on.
    """
    is_outside = pc.fill_null(pc.not_equal(folds["fold"], fold), fill_value=False)
    rows = folds.filter(pc.and_(is_outside, pc.not_equal(folds["role"], "excluded")))
    purpose = f"inner {fold}"
    if len(rows):
        purpose = f"inner {fold}, seed {rows['seed'][0].as_py()}"
    samples = rows["sample_id"].to_pylist()
    groups = rows["group"].to_pylist()
    owners, codes = _units(split, samples, groups, schema.decode(rows["label"].to_numpy()))
    labels = rows["label"].to_numpy()
    val = deal_share(owners, codes, split.val, seed=split.seed, purpose=purpose)
    for attempt in range(1, _N_DEALS):
        if _missing_classes(labels[~val], schema) is None:
            break
        # balances nothing: strata of one group each would be dealt alike again
        val = deal_share(
            owners,
            codes[:, :0],
            split.val,
            seed=split.seed,
            purpose=f"{purpose}, deal {attempt}",
        )
    if missing := _missing_classes(labels[~val], schema):
        name, classes = missing
        all_rows = rows_with_labels(folds)
        advice = _advice(
            schema,
            missing,
            all_rows["group"].to_pylist(),
            all_rows["label"].to_numpy(),
            "use strategy balanced_profile, another split.seed, or more confirm.folds",
        )
        raise DataError(
            "data.split",
            f"every class of {name} was required in the training part of fold {fold} of confirm, "
            f"found none of {some(classes)}{advice}",
        )
    train = [samples[index] for index in np.flatnonzero(~val)]
    return train, [samples[index] for index in np.flatnonzero(val)]


def may_learn(folds: pa.Table, split: Split, scored: Collection[str]) -> list[str]:
    """Return the samples that lack a label and may train beside a part that is scored.

    Args:
        folds: rows of one confirm seed, of `rows_of_seed`.
        split: of the variant.
        scored: groups that the training is validated or judged on. By strategy `random`, which
            deals single photos, they keep nothing out.
    """
    partial = folds.filter(pc.equal(folds["role"], PARTIAL))
    samples = partial["sample_id"].to_pylist()
    if split.strategy == "random":
        return list(samples)
    groups = partial["group"].to_pylist()
    pairs = zip(samples, groups, strict=True)
    return [sample for sample, group in pairs if group not in scored]


def _lacks_some(usable: pa.Table, schema: Schema) -> NDArray[np.bool_]:
    """Return which samples have some label and not all: (n_samples,) bool."""
    has_some = np.zeros(len(usable), dtype=bool)
    for name in schema.names:
        if f"label_{name}" in usable.column_names:
            has_some |= pc.is_valid(usable[f"label_{name}"]).to_numpy()
    return has_some & pc.is_null(usable["label"]).to_numpy()


def rows_with_labels(folds: pa.Table) -> pa.Table:
    """Return the rows whose joint class is known: not those of the test set, nor partial ones."""
    return folds.filter(pc.is_valid(folds["label"]))


def deal_share(
    groups: Sequence[str],
    codes: Ints,
    share: float,
    *,
    seed: int,
    purpose: str,
    where: str = "data.split",
) -> NDArray[np.bool_]:
    """Choose a share of the groups, the same share of every stratum to within one group.

    Systematic sampling: the groups are in one line, stratum after stratum, shuffled within each.
    Number i is chosen where floor(i * share + u) rises, with a start u by the seed. Any n neighbours
    have n * share of them to within one, and so has the whole. Every group is chosen with the
    probability `share`, also one that is alone in its stratum.

    Args:
        groups: (n_samples,) names.
        codes: (n_samples, n_labels) int64, what to balance; no columns: nothing.
        share: above 0, below 1; counted in groups.
        seed: of the split.
        purpose: another one gives another choice by the same seed.
        where: the spec's entry, for messages.

    Returns:
        (n_samples,) bool, equal within a group.

    Raises:
        DataError: fewer than two groups.
    """
    inverse, place = _line(groups, codes, seed, purpose)
    n_groups = len(place)
    if n_groups < 2:
        raise DataError(
            where,
            f"at least 2 groups were required for two parts, found {n_groups}; name a data.group "
            "that tells the subjects apart, or add photos of others",
        )
    # integers: floats would round differently on some machine
    exact = Fraction(str(share)).limit_denominator(1_000_000)
    if n_groups * exact < 1 or n_groups * (1 - exact) < 1:  # neither part may be empty
        exact = Fraction(1 if exact < Fraction(1, 2) else n_groups - 1, n_groups)
    top = exact.numerator
    bottom = exact.denominator
    start = int.from_bytes(_hash(seed, f"{purpose}, start", "")[:8], "big") % bottom
    marks = (top * np.arange(n_groups + 1, dtype=np.int64) + start) // bottom
    return (np.diff(marks) > 0)[place][inverse]


def deal_folds(
    groups: Sequence[str], codes: Ints, n_folds: int, *, seed: int, purpose: str = "fold"
) -> Ints:
    """Deal groups to folds round-robin along the same kind of line.

    Every stratum is within one group of even.

    Returns:
        (n_samples,) int64 from 0 to n_folds - 1, equal within a group.

    Raises:
        DataError: fewer groups than folds.
    """
    inverse, place = _line(groups, codes, seed, purpose)
    if len(place) < n_folds:
        raise DataError(
            "confirm.folds",
            f"at least one group per fold was required, found {len(place)} groups for {n_folds} "
            f"folds; set confirm.folds: {max(len(place), 2)} or less, or name a finer data.group",
        )
    return (place % n_folds)[inverse]


class Strata(NamedTuple):
    """What a split by groups can balance."""

    names: list[str]
    """Of the groups, sorted."""
    inverse: Ints
    """(n_samples,) number of each sample's group."""
    labels: list[int]
    """Numbers of the labels that are constant in most groups."""
    codes: Ints
    """(n_groups, n_labels) of these labels, what most samples of the group have."""


def strata(groups: Sequence[str], codes: Ints) -> Strata:
    """Find the labels that are constant within most groups, and the majority code of each group.

    A label that differs inside groups, such as the mask state, cannot be balanced by moving groups.
    One wrong label, or two people joined to one group, changes the code of that group at most.
    """
    names = sorted(set(groups))
    number = {name: index for index, name in enumerate(names)}
    inverse = np.fromiter(map(number.__getitem__, groups), dtype=np.int64, count=len(groups))
    kept = []
    majorities = np.zeros((len(names), codes.shape[1]), dtype=np.int64)
    for label in range(codes.shape[1]):
        counts = np.zeros((len(names), int(codes[:, label].max(initial=0)) + 1), dtype=np.int64)
        np.add.at(counts, (inverse, codes[:, label]), 1)
        majorities[:, label] = counts.argmax(axis=1)
        is_constant = counts.max(axis=1) == counts.sum(axis=1)
        if 2 * is_constant.sum() > len(names):
            kept.append(label)
    return Strata(names, inverse, kept, majorities[:, kept])


def _units(
    split: Split, samples: Sequence[str], groups: Sequence[str], codes: Ints
) -> tuple[Sequence[str], Ints]:
    """Return what a strategy moves as one and what it balances."""
    if split.strategy == "random":
        return samples, codes[:, :0]
    if split.strategy == "profile":
        return groups, codes[:, :0]
    return groups, codes


def _line(groups: Sequence[str], codes: Ints, seed: int, purpose: str) -> tuple[Ints, Ints]:
    """Order the groups by stratum, shuffled within each.

    Returns:
        Each sample's group, and each group's place in the line.
    """
    of_groups = strata(groups, codes)
    keys = []
    for name, stratum in zip(of_groups.names, of_groups.codes.tolist(), strict=True):
        keys.append((stratum, _hash(seed, purpose, name)))
    line = sorted(range(len(keys)), key=keys.__getitem__)
    place = np.empty(len(keys), dtype=np.int64)
    place[line] = np.arange(len(keys))
    return of_groups.inverse, place


def _hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}|{purpose}|{name}".encode("utf-8", "surrogateescape")).digest()


def _refuse_missing(
    roles: NDArray[np.str_], schema: Schema, labels: Ints, groups: Sequence[str]
) -> None:
    for role in ("train", "val"):
        if not (roles == role).any():
            raise DataError(
                "data.exclude",
                f"samples of role {role} were required, the exclusions leave none; loosen them",
            )
    if missing := _missing_classes(labels[roles == "train"], schema):
        name, classes = missing
        other = "use another split.seed, a smaller split.val, or fewer exclusions"
        advice = _advice(schema, missing, groups, labels, other)
        raise DataError(
            "data.split",
            f"every class of {name} was required in the training part, found none of "
            f"{some(classes)}{advice}",
        )


def _advice(
    schema: Schema,
    missing: _Missing,
    groups: Sequence[str],
    labels: Ints,
    other: str,
) -> str:
    """Say what helps a missing class: another deal only where it has groups enough."""
    column = schema.names.index(missing.label)
    codes = schema.decode(labels)[:, column].tolist()
    wanted = {schema.classes[missing.label].index(name) for name in missing.classes}
    owners = {group for group, code in zip(groups, codes, strict=True) if code in wanted}
    n_groups = len(owners)
    if n_groups > _FEW_GROUPS * len(wanted):
        return f"; {other}"
    return f": only {n_groups} group(s) have it; {LEAVE_OUT}"


class _Missing(NamedTuple):
    label: str
    classes: list[str]


def _missing_classes(labels: Ints, schema: Schema) -> _Missing | None:
    """Return the first label of which classes are missing, and these classes."""
    codes = schema.decode(labels)
    for column, (name, classes) in enumerate(schema.classes.items()):
        present = set(codes[:, column].tolist())
        missing = [text for code, text in enumerate(classes) if code not in present]
        if missing:
            return _Missing(name, missing)
    return None
