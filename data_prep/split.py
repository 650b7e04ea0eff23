"""Roles and folds: pure functions of ids, labels, groups and a seed.

Every choice comes from sha256 of (seed, purpose, name), so that a split does not depend on the order of files, the
platform, or the version of a library.
"""
from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_prep.config import Split
from data_prep.errors import DataError
from data_prep.labels import Schema

Codes = Sequence[Sequence[int]]  # (n_samples, n_labels)


def rank(seed: int, purpose: str, name: str) -> str:
    """Return a sort key that shuffles names the same way everywhere."""
    return hashlib.sha256(f"{seed}|{purpose}|{name}".encode("utf-8", "surrogateescape")).hexdigest()


def strata_of(groups: Sequence[str], codes: Codes) -> dict[str, tuple[int, ...]]:
    """Return per group the codes of the labels that are constant within every group.

    A label that differs inside any group (mask state, say) cannot be balanced by moving groups, so it is left out.
    """
    by_group: dict[str, list[Sequence[int]]] = defaultdict(list)
    for group, row in zip(groups, codes, strict=True):
        by_group[group].append(row)
    n_labels = len(codes[0]) if codes else 0
    constant = [at for at in range(n_labels) if all(len({row[at] for row in rows}) == 1 for rows in by_group.values())]
    return {group: tuple(rows[0][at] for at in constant) for group, rows in by_group.items()}


def order(strata: Mapping[str, tuple[int, ...]], purpose: str, seed: int) -> list[str]:
    """Return the groups stratum after stratum, shuffled within each."""
    return sorted(strata, key=lambda group: (strata[group], rank(seed, purpose, group)))


def deal(groups: Sequence[str], codes: Codes, fraction: float, purpose: str, seed: int) -> dict[str, bool]:
    """Choose a share of the groups, the same share of every stratum to within one group.

    Walking the strata one after another, group number i (from 1) is chosen where floor(i * fraction + offset) rises.
    The count runs on from stratum to stratum, so that small strata do not all round the same way.
    """
    strata = strata_of(groups, codes)
    chosen, position = {}, 0.5
    for group in order(strata, purpose, seed):
        before, position = position, position + fraction
        chosen[group] = int(position + 1e-9) > int(before + 1e-9)
    return chosen


def deal_folds(groups: Sequence[str], codes: Codes, n_folds: int, seed: int) -> dict[str, int]:
    """Deal groups to folds round-robin, stratum after stratum: each stratum is within one group of ideal everywhere."""
    return {group: at % n_folds for at, group in enumerate(order(strata_of(groups, codes), "fold", seed))}


def units(split: Split, samples: Sequence[str], groups: Sequence[str], codes: Codes) -> tuple[Sequence[str], Codes]:
    """Return what a strategy moves as one, and the codes that it balances.

    random moves photos and balances nothing; profile moves groups and balances nothing; balanced_profile moves
    groups and balances the labels that are constant within them.
    """
    if split.strategy == "balanced_profile":
        return groups, codes
    return (samples if split.strategy == "random" else groups), [[] for _ in samples]


def assign(catalog: pa.Table, schema: Schema, split: Split, exclude: list[dict[str, Any]], n_folds: int | None) -> pa.Table:
    """Give every usable sample its role and fold.

    Roles and folds are dealt over all labelled samples; exclusions then only take samples out, so that arms with
    different exclusions stay paired.

    Returns:
        sample_id, group, label, role (train, val, test, excluded), fold (null unless train or val), and label_<name>.

    Raises:
        DataError: an exclusion names an unknown column, or a class is missing from the training part.
    """
    rows = [row for row in catalog.to_pylist() if row["status"] == "ok"]
    labelled = [row for row in rows if row["label"] is not None]
    samples, groups = [row["sample_id"] for row in labelled], [row["group"] for row in labelled]
    codes = [[row[f"label_{name}"] for name in schema.names] for row in labelled]
    owners, balanced = units(split, samples, groups, codes)
    val = deal(owners, balanced, split.val, "val", split.seed)
    folds = deal_folds(owners, balanced, n_folds, split.seed) if n_folds else {}
    if n_folds and len(set(owners)) < n_folds:
        raise DataError("confirm.folds", f"at least {n_folds} groups were required for {n_folds} folds, found {len(set(owners))}")
    role, fold = {}, {}
    for row, owner in zip(labelled, owners, strict=True):
        out = is_excluded(row, exclude)
        role[row["sample_id"]] = "excluded" if out else "val" if val[owner] else "train"
        fold[row["sample_id"]] = None if out else folds.get(owner)
    _refuse_missing(labelled, role, schema)
    kept = [row for row in rows if row["sample_id"] in role or row["sample_id"].startswith("test/")]
    return pa.table(
        {
            "sample_id": pa.array([row["sample_id"] for row in kept], pa.string()),
            "group": pa.array([row["group"] for row in kept], pa.string()),
            "label": pa.array([row["label"] for row in kept], pa.int64()),
            "role": pa.array([role.get(row["sample_id"], "test") for row in kept], pa.string()),
            "fold": pa.array([fold.get(row["sample_id"]) for row in kept], pa.int64()),
            **{f"label_{name}": pa.array([row[f"label_{name}"] for row in kept], pa.int64()) for name in schema.names},
        }
    )


def inner_part(folds: pa.Table, fold: int, split: Split, schema: Schema) -> tuple[list[str], list[str]]:
    """Split the samples outside a fold into (train, inner val), by the same strategy and share.

    The inner val part drives the schedule, early stopping and the best epoch of a confirm trial, whose fold is
    never looked at before the end.

    Raises:
        DataError: nothing is left for one of the two.
    """
    rows = [row for row in folds.to_pylist() if row["role"] in {"train", "val"} and row["fold"] != fold]
    samples, groups = [row["sample_id"] for row in rows], [row["group"] for row in rows]
    codes = [[row[f"label_{name}"] for name in schema.names] for row in rows]
    owners, balanced = units(split, samples, groups, codes)
    val = deal(owners, balanced, split.val, f"inner {fold}", split.seed)
    parts: tuple[list[str], list[str]] = ([], [])
    for sample, owner in zip(samples, owners, strict=True):
        parts[val[owner]].append(sample)
    if not all(parts):
        raise DataError("data.split.val", f"samples for training and inner validation of fold {fold} were required, found "
                        f"{len(parts[0])} and {len(parts[1])}; use fewer folds, another val share, or more groups")
    return parts


def is_excluded(row: Mapping[str, Any], rules: list[dict[str, Any]]) -> bool:
    """Say whether any rule takes a sample out; all columns of one rule must fit.

    Raises:
        DataError: a rule names a column that the table does not have.
    """
    return any(all(_fits(row, column, wanted) for column, wanted in rule.items()) for rule in rules)


def _fits(row: Mapping[str, Any], column: str, wanted: Any) -> bool:
    if column not in row:
        raise DataError("data.exclude", f"a column of the table was required, found {column!r}; columns are {', '.join(row)}")
    value = row[column]
    if isinstance(wanted, dict):
        values = wanted["not"] if isinstance(wanted["not"], list) else [wanted["not"]]
        return str(value) not in {str(item) for item in values}
    if isinstance(wanted, list) and all(isinstance(item, int | float) for item in wanted):
        return value is not None and not isinstance(value, str) and bool(wanted[0] <= value <= wanted[1])
    values = wanted if isinstance(wanted, list) else [wanted]
    return str(value) in {str(item) for item in values}


def _refuse_missing(labelled: list[dict[str, Any]], role: Mapping[str, str], schema: Schema) -> None:
    for name, classes in schema.classes.items():
        there = {row[f"label_{name}"] for row in labelled if role[row["sample_id"]] == "train"}
        if lost := [text for code, text in enumerate(classes) if code not in there]:
            raise DataError("data.split", f"every class of {name} was required in the training part, found none of "
                            f"{', '.join(lost)}; use another split.val or split.seed, or fewer exclusions")
