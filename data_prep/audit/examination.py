"""The audit: what makes a validation score lie, counted before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit import distributions
from data_prep.audit.duplicates import candidates, sets_of
from data_prep.audit.findings import ranked
from data_prep.catalog.builder import near_left_out
from data_prep.catalog.labels import Schema
from data_prep.config import Label
from data_prep.split import excluded, strata

_EXAMPLES = 5
_MAX_SETS = 500
_VERY_NEAR = 8  # bits of 256: within a group nobody compares the pixels


def audit(
    catalog: pa.Table,
    folds_by_variant: dict[str, pa.Table],
    schema: Schema,
    *,
    labels: Mapping[str, Label] | None = None,
    exclude: Mapping[str, list[dict[str, Any]]] | None = None,
    gaps: Mapping[str, dict[str, Any]] | None = None,
    probe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Examine a catalog and its splits.

    Args:
        catalog: as `build_catalog` returns it.
        folds_by_variant: per variant what `assign` returns.
        schema: of the labels.
        labels: their rules, for histograms.
        exclude: per variant its rules.
        gaps: per variant what a quick model scored under its split and a disjoint one, where that was measured.
        probe: what quick models of each label scored, where that was measured.

    Returns:
        JSON: n_photos, n_usable, n_test, n_groups, counts (label -> class -> n), classes (joint class -> n, those that
        occur), n_classes_missing, group_labels (constant within every group), joint (tables of label pairs),
        histograms (label -> bars with borders), tells (how columns and photo sizes go with labels), sizes (the ten most
        frequent), photo_sizes, quarantined ({sample_id, reason}), n_quarantined, reasons (-> n), duplicates and
        near_duplicates (kind -> {n, n_photos, examples, sets}), n_near_left_out (pairs that look alike and were not compared:
        only the 20,000 closest are), people (groups that share a picture), imbalance (largest
        over smallest class), variants (-> roles, groups, counts, classes, folds, fold_classes, leak, excluded), leak
        (variant -> share of val photos whose group, or one that shares a picture with it, is in train too), leak_gap,
        probe, and warnings, the worst first: {kind, what, n, examples, do}.
    """
    usable = catalog.filter(pc.equal(catalog["status"], "ok"))
    labelled = usable.filter(pc.is_valid(usable["label"]))
    found, groups = labelled["label"].to_numpy(), labelled["group"].to_pylist()
    codes = schema.decode(found)
    names, _, kept = strata(groups, codes)
    lost = catalog.filter(pc.not_equal(catalog["status"], "ok"))
    quarantined = [
        {"sample_id": sample, "reason": reason}
        for sample, reason in zip(
            lost["sample_id"].to_pylist(), lost["status"].to_pylist(), strict=True
        )
    ]
    classes = _classes(found, schema)
    alike = people(usable)
    shown = distributions.sizes(usable)
    facts: dict[str, Any] = {
        "n_photos": len(catalog),
        "n_usable": len(usable),
        "n_test": pc.sum(pc.starts_with(catalog["sample_id"], "test/")).as_py() or 0,
        "n_groups": len(names),
        "counts": _counts(codes, schema),
        "classes": classes,
        "n_classes_missing": schema.n_classes - len(classes),
        "group_labels": _constant_labels(groups, codes, schema),
        "group_strata": _strata_sizes(kept),
        "joint": distributions.joint_tables(codes, schema),
        "histograms": distributions.histograms(labelled, labels or {}),
        "tells": distributions.tells(labelled, codes, schema, labels or {}),
        "sizes": shown["frequent"],
        "photo_sizes": shown,
        "quarantined": quarantined,
        "n_quarantined": len(quarantined),
        "reasons": dict(Counter(one["reason"] for one in quarantined).most_common()),
        "duplicates": _duplicates(usable),
        "near_duplicates": _near_duplicates(usable),
        "n_near_left_out": near_left_out(catalog),
        "people": alike,
        "imbalance": round(max(classes.values()) / min(classes.values()), 2) if classes else None,
        "test_groups_in_train": _shared_groups(usable),
        "variants": {
            name: _variant(table, schema, alike) for name, table in folds_by_variant.items()
        },
        "leak_gap": dict(gaps or {}),
        "probe": probe,
    }
    for name, rules in (exclude or {}).items():
        facts["variants"][name]["excluded"] = _excluded(labelled, schema, rules)
    facts["leak"] = {name: variant["leak"] for name, variant in facts["variants"].items()}
    facts["warnings"] = ranked(facts, schema)
    return facts


def people(usable: pa.Table) -> list[list[str]]:
    """Return the sets of groups that share a picture, byte-equal or near, and so look like one person each."""
    column = "own_group" if "own_group" in usable.column_names else "group"
    groups = usable[column].to_pylist()
    names = sorted({group for group in groups if group is not None})
    number = {name: at for at, name in enumerate(names)}
    first: dict[str, int] = {}
    links = []
    for group, *marks in zip(
        groups, usable["sha256"].to_pylist(), usable["near"].to_pylist(), strict=True
    ):
        for mark in marks:
            if (
                group is not None
                and mark is not None
                and (one := first.setdefault(mark, number[group])) != number[group]
            ):
                links.append((one, number[group]))
    return [[names[at] for at in members] for members in sets_of(links)]


def leak(folds: pa.Table, alike: Sequence[Sequence[str]] = ()) -> float:
    """Return the share of val photos whose group also stands in train: 0 for a group-disjoint split.

    Args:
        folds: as `assign` returns it.
        alike: of `people`; groups of one set count as one.
    """
    one_of = {name: members[0] for members in alike for name in members}
    roles, groups = (
        folds["role"].to_pylist(),
        [one_of.get(group, group) for group in folds["group"].to_pylist()],
    )
    train = {group for group, role in zip(groups, roles, strict=True) if role == "train"}
    val = [group in train for group, role in zip(groups, roles, strict=True) if role == "val"]
    return sum(val) / len(val) if val else 0.0


def _excluded(
    labelled: pa.Table, schema: Schema, rules: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Count what each rule takes out; a photo may stand under two."""
    groups = np.array(labelled["group"].to_pylist(), dtype=object)
    found = []
    for rule in rules:
        out = excluded(labelled, schema, [rule])
        found.append({"rule": rule, "n": int(out.sum()), "n_groups": len(set(groups[out]))})
    return found


def _variant(folds: pa.Table, schema: Schema, alike: Sequence[Sequence[str]]) -> dict[str, Any]:
    roles = folds["role"].to_numpy(zero_copy_only=False)
    labels = folds["label"].fill_null(-1).to_numpy()
    numbers = folds["fold"].fill_null(-1).to_numpy()
    groups = np.array(folds["group"].fill_null("").to_pylist(), dtype=object)
    parts = {role: labels[(roles == role) & (labels >= 0)] for role in ("train", "val", "excluded")}
    dealt = [int(fold) for fold in np.unique(numbers) if fold >= 0]
    return {
        "roles": dict(Counter(roles.tolist())),
        "groups": {
            role: len(set(groups[roles == role]) - {""})
            for role in ("train", "val", "test", "excluded")
            if (roles == role).any()
        },
        "counts": {
            role: _counts(schema.decode(found), schema)
            for role, found in parts.items()
            if len(found)
        },
        "classes": {role: _classes(found, schema) for role, found in parts.items() if len(found)},
        "folds": {str(fold): int((numbers == fold).sum()) for fold in dealt},
        "fold_classes": {str(fold): _classes(labels[numbers == fold], schema) for fold in dealt},
        # photos that a confirm trial of this fold trains on, against its labels
        "folds_without": {
            str(fold): gone
            for fold in dealt
            if (gone := _absent(schema.decode(labels[(numbers >= 0) & (numbers != fold)]), schema))
        },
        "leak": leak(folds, alike),
        "leak_groups": leak(folds),
    }


def _counts(codes: Any, schema: Schema) -> dict[str, dict[str, int]]:
    return {
        name: dict(
            zip(classes, np.bincount(codes[:, at], minlength=len(classes)).tolist(), strict=True)
        )
        for at, (name, classes) in enumerate(schema.classes.items())
    }


def _absent(codes: Any, schema: Schema) -> list[str]:
    return [
        f"{label} {name}"
        for label, found in _counts(codes, schema).items()
        for name, n in found.items()
        if n == 0
    ]


def _classes(labels: Any, schema: Schema) -> dict[str, int]:
    values, counts = np.unique(labels, return_counts=True)
    return {
        schema.class_name(label): n
        for label, n in zip(values.tolist(), counts.tolist(), strict=True)
    }


def _constant_labels(groups: list[str], codes: Any, schema: Schema) -> list[str]:
    return [
        name
        for at, name in enumerate(schema.names)
        if strata(groups, codes[:, at : at + 1])[2].shape[1]
    ]


def _strata_sizes(codes: Any) -> dict[str, int]:
    """Count groups per stratum of balanced_profile; a stratum is named by its codes."""
    return dict(sorted(Counter("/".join(map(str, row)) for row in codes.tolist()).items()))


def _shared_groups(usable: pa.Table) -> list[str]:
    is_test = pc.starts_with(usable["sample_id"], "test/")
    test, train = (
        set(usable.filter(part)["group"].to_pylist()) for part in (is_test, pc.invert(is_test))
    )
    return sorted((test & train) - {None})


def _duplicates(usable: pa.Table) -> dict[str, Any]:
    """Sort sets of byte-equal photos by where they stand; a set with two labels is counted as a conflict too."""
    return _sorted_sets(usable, usable["sha256"].to_pylist())


def _near_duplicates(usable: pa.Table) -> dict[str, Any]:
    """Sort sets of near-duplicates likewise. Those within a group are told by their hashes alone."""
    facts = _sorted_sets(usable, usable["near"].to_pylist(), unlike=usable["sha256"].to_pylist())
    hashes, groups = (usable[name].to_pylist() for name in ("phash", "group"))
    pairs, _ = candidates(hashes, far=_VERY_NEAR)
    sha, ids = usable["sha256"].to_pylist(), usable["sample_id"].to_pylist()
    within = [
        (a, b)
        for a, b in pairs.tolist()
        if groups[a] is not None and groups[a] == groups[b] and sha[a] != sha[b]
    ]
    facts["within_group"] = _counted([[ids[at] for at in members] for members in sets_of(within)])
    return facts


def _sorted_sets(
    usable: pa.Table, keys: Sequence[str | None], unlike: Sequence[str] | None = None
) -> dict[str, Any]:
    """Sort sets of photos with one key; with `unlike`, only sets that differ in it."""
    same: dict[str, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        if key is not None:
            same[key].append(at)
    ids, groups, labels = (usable[name].to_pylist() for name in ("sample_id", "group", "label"))
    kinds: dict[str, list[list[str]]] = {
        "train_and_test": [],
        "across_groups": [],
        "within_group": [],
        "label_conflicts": [],
    }
    for found in (rows for rows in same.values() if len(rows) > 1):
        if unlike is not None and len({unlike[at] for at in found}) == 1:
            continue
        names = [ids[at] for at in found]
        sides = {name.partition("/")[0] for name in names}
        one_group = (
            len({groups[at] for at in found}) == 1
        )  # of a test table without groups nothing is known
        kinds[
            "train_and_test" if len(sides) > 1 else "within_group" if one_group else "across_groups"
        ].append(names)
        if len({labels[at] for at in found} - {None}) > 1:
            kinds["label_conflicts"].append(names)
    return {kind: _counted(sets) for kind, sets in kinds.items()}


def _counted(sets: list[list[str]]) -> dict[str, Any]:
    return {
        "n": len(sets),
        "n_photos": sum(map(len, sets)),
        "examples": [names[:_EXAMPLES] for names in sets[:_EXAMPLES]],
        "sets": sets[:_MAX_SETS],  # to be put right one by one; catalog.parquet has all of them
    }
