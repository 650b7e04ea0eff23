"""Roles and folds: pure functions of ids, labels, groups and a seed.

Every choice comes from the sha256 of seed, purpose and name, so that a split does not depend on the order of files,
the platform, or the version of a library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.catalog.labels import Schema, name_in_catalog
from data_prep.config import Split
from data_prep.errors import DataError, some

Ints = NDArray[np.int64]
_OK = "ok"
_N_DEALS = 20
"""Of an inner part, until its training part shows every class; the first deal stands where it does."""


def assign(
    catalog: pa.Table,
    schema: Schema,
    split: Split,
    exclude: list[dict[str, Any]],
    n_folds: int | None,
) -> pa.Table:
    """Give every usable sample its role and fold.

    Roles and folds are dealt over all labelled samples; exclusions then only take samples out, so that arms with
    different exclusions stay paired. The test set keeps all its samples.

    Args:
        catalog: as `build_catalog` returns it; quarantined photos get no row.
        schema: of its labels.
        split: strategy, share of val, seed.
        exclude: rules of the spec; a sample goes when any rule fits, a rule fits when all its columns do.
        n_folds: None for no folds.

    Returns:
        sample_id, group, label (null for test), role (train, val, test, excluded), fold (int64, from 0; null for test,
        excluded, and without folds), in the catalog's order.

    Raises:
        DataError: an exclusion names an unknown column, or there are too few groups, or no training photo of a class.
    """
    usable = catalog.filter(pc.equal(catalog["status"], _OK))
    labelled = usable.filter(pc.is_valid(usable["label"]))
    samples, groups = labelled["sample_id"].to_pylist(), labelled["group"].to_pylist()
    labels = labelled["label"].to_numpy()
    owners, codes = _units(split, samples, groups, schema.decode(labels))
    val = deal_share(owners, codes, split.val, seed=split.seed, purpose="val")
    folds = (
        deal_folds(owners, codes, n_folds, seed=split.seed)
        if n_folds
        else np.full(len(samples), -1, dtype=np.int64)
    )
    out = excluded(labelled, schema, exclude)
    roles = np.where(out, "excluded", np.where(val, "val", "train"))
    _refuse_missing(roles, schema, labels)
    role, fold = (
        dict(zip(samples, roles.tolist(), strict=True)),
        dict(zip(samples, np.where(out, -1, folds).tolist(), strict=True)),
    )
    ids = usable["sample_id"].to_pylist()
    return pa.table(
        {
            "sample_id": usable["sample_id"],
            "group": usable["group"],
            "label": usable["label"],
            "role": pa.array([role.get(sample, "test") for sample in ids], pa.string()),
            "fold": pa.array(
                [at if (at := fold.get(sample, -1)) >= 0 else None for sample in ids], pa.int64()
            ),
        }
    )


def inner_part(
    folds: pa.Table, fold: int, split: Split, schema: Schema
) -> tuple[list[str], list[str]]:
    """Split the samples outside a fold into (train, inner val), by the same strategy and share.

    The inner val part drives the schedule, early stopping and the best epoch of a confirm trial, whose fold is never
    looked at before the end. It depends on the split's seed and the fold, and on no training seed. Groups are dealt again
    where the training part would lack a class, which a model could then never answer.

    Args:
        folds: as `assign` returns it.
        fold: the one held out.
        split: of the variant.
        schema: of its labels.

    Returns:
        Sample ids of the two parts, in the table's order.

    Raises:
        DataError: there are too few groups for two parts, or a class has none outside the fold to train on.
    """
    there = pc.and_(pc.is_valid(folds["fold"]), pc.not_equal(folds["fold"], fold))
    rows = folds.filter(pc.fill_null(there, fill_value=False))
    samples, groups = rows["sample_id"].to_pylist(), rows["group"].to_pylist()
    owners, codes = _units(split, samples, groups, schema.decode(rows["label"].to_numpy()))
    labels = rows["label"].to_numpy()
    val = deal_share(owners, codes, split.val, seed=split.seed, purpose=f"inner {fold}")
    for attempt in range(1, _N_DEALS):
        if _lost_class(labels[~val], schema) is None:
            break
        # balances nothing: strata of one group each would be dealt alike again
        val = deal_share(
            owners,
            codes[:, :0],
            split.val,
            seed=split.seed,
            purpose=f"inner {fold}, deal {attempt}",
        )
    if lost := _lost_class(labels[~val], schema):
        raise DataError(
            "data.split",
            f"every class of {lost[0]} was required in the training part of fold {fold} of confirm, found none of "
            f"{some(lost[1])}: too few groups show it; add some, or use strategy balanced_profile, another split.seed, "
            "or more confirm.folds",
        )
    pairs = list(zip(samples, val.tolist(), strict=True))
    return [sample for sample, out in pairs if not out], [sample for sample, out in pairs if out]


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

    The groups stand in one line, stratum after stratum, shuffled within each. Number i is chosen where
    floor(i * share + 1/2) rises: any n neighbours hold n * share of them to within one, and so does the whole.

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
        raise DataError(where, f"at least 2 groups were required for two parts, found {n_groups}")
    exact = Fraction(str(share)).limit_denominator(
        1_000_000
    )  # integers: floats would round differently somewhere
    if (
        not 0 < (n_chosen := int(n_groups * exact + Fraction(1, 2))) < n_groups
    ):  # neither part may be empty
        exact = Fraction(min(max(n_chosen, 1), n_groups - 1), n_groups)
    top, bottom = exact.numerator, exact.denominator
    marks = (2 * top * np.arange(n_groups + 1, dtype=np.int64) + bottom) // (2 * bottom)
    return (np.diff(marks) > 0)[place][inverse]


def deal_folds(groups: Sequence[str], codes: Ints, n_folds: int, *, seed: int) -> Ints:
    """Deal groups to folds round-robin along the same kind of line: every stratum is within one group of even.

    Returns:
        (n_samples,) int64 from 0 to n_folds - 1, equal within a group.

    Raises:
        DataError: fewer groups than folds.
    """
    inverse, place = _line(groups, codes, seed, "fold")
    if len(place) < n_folds:
        raise DataError(
            "confirm.folds",
            f"at least one group per fold was required, found {len(place)} groups for {n_folds} folds",
        )
    return (place % n_folds)[inverse]


def strata(groups: Sequence[str], codes: Ints) -> tuple[list[str], Ints, Ints]:
    """Find the labels that are constant within every group, and what each group's are.

    A label that differs inside a group (mask state, say) cannot be balanced by moving groups.

    Returns:
        Names of the groups in sorted order, (n_samples,) number of each sample's group, and (n_groups, n_constant)
        codes of the constant labels.
    """
    names = sorted(set(groups))
    number = {name: at for at, name in enumerate(names)}
    inverse = np.fromiter((number[group] for group in groups), dtype=np.int64, count=len(groups))
    first = np.zeros((len(names), codes.shape[1]), dtype=np.int64)
    first[inverse] = codes
    constant = (first[inverse] == codes).all(axis=0)
    return names, inverse, first[:, constant]


def excluded(
    table: pa.Table, schema: Schema, rules: Sequence[Mapping[str, Any]], where: str = "data.exclude"
) -> NDArray[np.bool_]:
    """Say which samples a list of rules takes out: (n_samples,) bool. `where` is the spec's entry, for messages.

    Raises:
        DataError: a column is unknown, or a rule compares numbers with text.
    """
    out = np.zeros(len(table), dtype=bool)
    for number, rule in enumerate(rules):
        fits = np.ones(len(table), dtype=bool)
        for column, wanted in rule.items():
            fits &= _fits(table, schema, column, wanted, f"{where}[{number}].{column}")
        out |= fits & bool(rule)
    return out


def cells(table: pa.Table, schema: Schema, columns: Sequence[str], where: str) -> Ints:
    """Number the samples so that equal numbers mean equal values in all columns (or labels): (n_samples,) int64.

    Raises:
        DataError: a column is unknown.
    """
    values = [_values(table, schema, column, where)[0] for column in columns]
    numbers: dict[tuple[Any, ...], int] = {}
    rows = zip(*values, strict=True) if columns else [()] * len(table)
    return np.array([numbers.setdefault(tuple(row), len(numbers)) for row in rows], np.int64)


def _fits(
    table: pa.Table, schema: Schema, column: str, wanted: Any, where: str
) -> NDArray[np.bool_]:
    if isinstance(wanted, Mapping):
        return ~_fits(table, schema, column, wanted["not"], where)
    values, numeric = _values(table, schema, column, where)
    test = _test_of(wanted, numeric, where)
    known = {value: value is not None and test(value) for value in set(values)}
    return np.fromiter((known[value] for value in values), dtype=bool, count=len(values))


def _values(table: pa.Table, schema: Schema, column: str, where: str) -> tuple[list[Any], bool]:
    """Return a column of the user's table, or the class names of a label, and whether it holds numbers."""
    own = {
        "path",
        "label",
        "sha256",
        "width",
        "height",
        "status",
        "fold",
        "role",
        *(f"label_{name}" for name in schema.names),
    }
    if (
        name := name_in_catalog(column, table.column_names)
    ) in table.column_names and name not in own:
        kind = table[name].type
        return table[name].to_pylist(), pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if column in schema.names:
        return [
            schema.classes[column][code] for code in table[f"label_{column}"].to_pylist()
        ], False
    there = [name.removeprefix("table_") for name in table.column_names if name not in own]
    there += [name for name in schema.names if name not in there]
    raise DataError(
        where,
        f"a column of the table or a label was required, found {column!r}; there are {', '.join(there)}",
    )


def _test_of(wanted: Any, numeric: bool, where: str) -> Callable[[Any], bool]:
    listed = wanted if isinstance(wanted, list) else [wanted]
    numbers = [
        value for value in listed if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if isinstance(wanted, list) and len(wanted) == 2 and len(numbers) == 2:
        if not numeric:
            raise DataError(
                where,
                f"a range fits columns of numbers only, found text; list the values in quotes instead of {wanted}",
            )
        return lambda value: bool(numbers[0] <= value <= numbers[1])
    if numeric:
        if len(numbers) < len(listed):
            raise DataError(
                where, f"the column holds numbers, found {wanted!r}; write numbers without quotes"
            )
        return set(numbers).__contains__
    return {
        str(value).lower() if isinstance(value, bool) else str(value) for value in listed
    }.__contains__


def _units(
    split: Split, samples: Sequence[str], groups: Sequence[str], codes: Ints
) -> tuple[Sequence[str], Ints]:
    """Return what a strategy moves as one, and what it balances: random moves photos, the others groups."""
    if split.strategy == "balanced_profile":
        return groups, codes
    return samples if split.strategy == "random" else groups, codes[:, :0]


def _line(groups: Sequence[str], codes: Ints, seed: int, purpose: str) -> tuple[Ints, Ints]:
    """Order the groups by stratum, shuffled within each: each sample's group, and each group's place in the line."""
    names, inverse, kept = strata(groups, codes)
    hashes = [
        hashlib.sha256(f"{seed}|{purpose}|{name}".encode("utf-8", "surrogateescape")).digest()
        for name in names
    ]
    line = sorted(range(len(names)), key=lambda at: (kept[at].tolist(), hashes[at]))
    place = np.empty(len(names), dtype=np.int64)
    place[line] = np.arange(len(names))
    return inverse, place


def _refuse_missing(roles: NDArray[np.str_], schema: Schema, labels: Ints) -> None:
    for role in ("train", "val"):
        if not (roles == role).any():
            raise DataError(
                "data.exclude",
                f"samples of role {role} were required, the exclusions leave none; loosen them",
            )
    if lost := _lost_class(labels[roles == "train"], schema):
        raise DataError(
            "data.split",
            f"every class of {lost[0]} was required in the training part, found none of {some(lost[1])}; "
            f"use another split.seed, a smaller split.val, or fewer exclusions",
        )


def _lost_class(labels: Ints, schema: Schema) -> tuple[str, list[str]] | None:
    """Return the first label of which classes are missing, and these."""
    there = schema.decode(labels)
    for column, (name, classes) in enumerate(schema.classes.items()):
        found = set(there[:, column].tolist())
        if lost := [text for code, text in enumerate(classes) if code not in found]:
            return name, lost
    return None
