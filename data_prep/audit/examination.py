"""The audit: what makes a validation score too good, counted before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit import descriptive_statistics
from data_prep.audit.fact_types import (
    AuditFacts,
    Duplicates,
    ExcludedByRule,
    PartlyLabelled,
    PhotoSets,
    Quarantined,
    ScoreWords,
    VariantFacts,
)
from data_prep.audit.findings import ranked
from data_prep.catalog.builder import near_left_out
from data_prep.catalog.label_schema import Schema
from data_prep.catalog.near_duplicates import candidates, sets_of
from data_prep.config import Label
from data_prep.exclusions import excluded
from data_prep.split import rows_of_seed, strata

_EXAMPLES = 5
_MAX_SETS = 500
_VERY_NEAR = 8  # bits of 256: within a group nobody compares the pixels


def audit(
    catalog: pa.Table,
    folds_by_variant: Mapping[str, pa.Table],
    schema: Schema,
    *,
    labels: Mapping[str, Label] | None = None,
    exclude: Mapping[str, list[dict[str, Any]]] | None = None,
    gaps: Mapping[str, Mapping[str, Any]] | None = None,
    probe: Mapping[str, Any] | None = None,
    score: ScoreWords = ScoreWords(),  # noqa: B008 - frozen
    file_bytes: Mapping[str, int] | None = None,
) -> AuditFacts:
    """Examine a catalog and its splits.

    Args:
        catalog: as `build_catalog` returns it.
        folds_by_variant: per variant what `assign` returns.
        schema: of the labels.
        labels: their rules, for histograms.
        exclude: per variant its rules.
        gaps: per variant the scores of a quick model under its split and a disjoint one.
        probe: the scores of quick models of each label.
        score: what `gaps` and `probe` are measured by.
        file_bytes: sample id -> size of its file.

    Returns:
        All facts, with the findings that follow from them.
    """
    usable = catalog.filter(pc.equal(catalog["status"], "ok"))
    labelled = usable.filter(pc.is_valid(usable["label"]))
    targets = labelled["label"].to_numpy()
    groups = labelled["group"].to_pylist()
    codes = schema.decode(targets)
    of_groups = strata(groups, codes)
    quarantined = _quarantined(catalog)
    classes = _classes(targets, schema)
    alike = people(usable)
    photo_sizes = descriptive_statistics.sizes(usable)
    variants = {}
    for name, folds in folds_by_variant.items():
        variant = _variant(folds, schema, alike)
        if exclude is not None and name in exclude:
            variant = replace(variant, excluded=_excluded(labelled, schema, exclude[name]))
        variants[name] = variant
    facts = AuditFacts(
        n_photos=len(catalog),
        n_usable=len(usable),
        n_test=pc.sum(pc.starts_with(catalog["sample_id"], "test/")).as_py() or 0,
        n_groups=len(of_groups.names),
        counts=_counts(codes, schema),
        classes=classes,
        n_classes_missing=schema.n_classes - len(classes),
        group_labels=[schema.names[label] for label in of_groups.labels],
        group_strata=_strata_sizes(of_groups.codes),
        joint=descriptive_statistics.joint_tables(codes, schema),
        histograms=descriptive_statistics.histograms(labelled, labels or {}),
        tells=descriptive_statistics.columns_that_tell(
            labelled, codes, schema, labels or {}, file_bytes
        ),
        sizes=photo_sizes.frequent,
        photo_sizes=photo_sizes,
        quarantined=quarantined,
        n_quarantined=len(quarantined),
        reasons=dict(Counter(photo.reason for photo in quarantined).most_common()),
        duplicates=_sorted_sets(usable, usable["sha256"].to_pylist()),
        near_duplicates=_near_duplicates(usable),
        n_near_left_out=near_left_out(catalog),
        people=alike,
        imbalance=_imbalance(classes),
        test_groups_in_train=_shared_groups(usable),
        variants=variants,
        leak_gap=dict(gaps or {}),
        probe=probe,
        leak={name: variant.leak for name, variant in variants.items()},
        warnings=[],
        partly_labelled=_partly_labelled(catalog, usable, schema),
        score=score,
    )
    return replace(facts, warnings=ranked(facts, schema))


def people(usable: pa.Table) -> list[list[str]]:
    """Return the sets of groups that share a picture, byte-equal or near.

    The groups of one set look like one person.
    """
    column = "own_group" if "own_group" in usable.column_names else "group"
    groups = usable[column].to_pylist()
    names = sorted(set(groups) - {None})
    number = {name: index for index, name in enumerate(names)}
    first_with: dict[str, int] = {}
    links = []
    hashes = usable["sha256"].to_pylist()
    near = usable["near"].to_pylist()
    for group, *marks in zip(groups, hashes, near, strict=True):
        if group is None:
            continue
        for mark in marks:
            if mark is None:
                continue
            first = first_with.setdefault(mark, number[group])
            if first != number[group]:
                links.append((first, number[group]))
    return [[names[index] for index in members] for members in sets_of(links)]


def leak(folds: pa.Table, alike: Sequence[Sequence[str]] = ()) -> float:
    """Return the share of val photos whose group is in train too: 0 for a group-disjoint split.

    Args:
        folds: as `assign` returns it.
        alike: of `people`; groups of one set count as one.
    """
    representative = {}
    for members in alike:
        representative.update(dict.fromkeys(members, members[0]))
    train = set()
    val = []
    for group, role in zip(folds["group"].to_pylist(), folds["role"].to_pylist(), strict=True):
        person = representative.get(group, group)
        if role == "train":
            train.add(person)
        elif role == "val":
            val.append(person)
    if not val:
        return 0.0
    return sum(person in train for person in val) / len(val)


def _partly_labelled(catalog: pa.Table, usable: pa.Table, schema: Schema) -> PartlyLabelled | None:
    is_train = pc.starts_with(usable["sample_id"], "train/")
    lacking = usable.filter(pc.and_(is_train, pc.is_null(usable["label"])))
    if not len(lacking):
        return None
    missing = {name: lacking[f"label_{name}"].null_count for name in schema.names}
    n_left_out = pc.sum(pc.starts_with(catalog["status"], "left out: ")).as_py()
    return PartlyLabelled(len(lacking) + n_left_out, len(lacking), missing)


def _quarantined(catalog: pa.Table) -> list[Quarantined]:
    lost = catalog.filter(pc.not_equal(catalog["status"], "ok"))
    return list(map(Quarantined, lost["sample_id"].to_pylist(), lost["status"].to_pylist()))


def _imbalance(classes: Mapping[str, int]) -> float | None:
    """Return how many times larger the largest class is than the smallest."""
    if not classes:
        return None
    return round(max(classes.values()) / min(classes.values()), 2)


def _excluded(
    labelled: pa.Table, schema: Schema, rules: list[dict[str, Any]]
) -> list[ExcludedByRule]:
    groups = np.array(labelled["group"].to_pylist(), dtype=object)
    counts = []
    for rule in rules:
        out = excluded(labelled, schema, [rule])
        counts.append(ExcludedByRule(rule, int(out.sum()), len(set(groups[out]))))
    return counts


def _variant(by_seed: pa.Table, schema: Schema, alike: Sequence[Sequence[str]]) -> VariantFacts:
    folds = rows_of_seed(by_seed)
    roles = folds["role"].to_numpy(zero_copy_only=False)
    labels = folds["label"].fill_null(-1).to_numpy()
    numbers = folds["fold"].fill_null(-1).to_numpy()
    groups = np.array(folds["group"].fill_null("").to_pylist(), dtype=object)
    groups_of_role = {}
    counts = {}
    classes = {}
    for role in ("train", "val", "test", "excluded"):
        of_role = roles == role
        if of_role.any():
            groups_of_role[role] = len(set(groups[of_role]) - {""})
        targets = labels[of_role & (labels >= 0)]
        if role != "test" and len(targets):
            counts[role] = _counts(schema.decode(targets), schema)
            classes[role] = _classes(targets, schema)
    fold_sizes = {}
    fold_classes = {}
    for fold in np.unique(numbers[numbers >= 0]).tolist():
        held_out = numbers == fold
        fold_sizes[str(fold)] = int(held_out.sum())
        fold_classes[str(fold)] = _classes(labels[held_out], schema)
    return VariantFacts(
        roles=dict(Counter(roles.tolist())),
        groups=groups_of_role,
        counts=counts,
        classes=classes,
        folds=fold_sizes,
        fold_classes=fold_classes,
        folds_without=_folds_without(by_seed, schema),
        leak=leak(folds, alike),
        leak_groups=leak(folds),
    )


def _folds_without(by_seed: pa.Table, schema: Schema) -> dict[str, list[str]]:
    """Return the classes that confirm trials of a fold cannot train on, under any seed."""
    missing: dict[str, list[str]] = {}
    for seed in pc.unique(by_seed["seed"]).to_pylist():
        folds = rows_of_seed(by_seed, seed)
        labels = folds["label"].fill_null(-1).to_numpy()
        numbers = folds["fold"].fill_null(-1).to_numpy()
        is_trained_on = pc.not_equal(folds["role"], "excluded").to_numpy() & (numbers >= 0)
        for fold in np.unique(numbers[numbers >= 0]).tolist():
            targets = labels[is_trained_on & (numbers != fold)]
            for name in _missing_classes(schema.decode(targets), schema):
                of_fold = missing.setdefault(str(fold), [])
                if name not in of_fold:
                    of_fold.append(name)
    return dict(sorted(missing.items()))


def _counts(codes: Any, schema: Schema) -> dict[str, dict[str, int]]:
    counts = {}
    for column, (name, classes) in enumerate(schema.classes.items()):
        n_photos = np.bincount(codes[:, column], minlength=len(classes)).tolist()
        counts[name] = dict(zip(classes, n_photos, strict=True))
    return counts


def _missing_classes(codes: Any, schema: Schema) -> list[str]:
    missing = []
    for label, counts in _counts(codes, schema).items():
        missing += [f"{label} {name}" for name, n in counts.items() if n == 0]
    return missing


def _classes(labels: Any, schema: Schema) -> dict[str, int]:
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(map(schema.class_name, values.tolist()), counts.tolist(), strict=True))


def _strata_sizes(codes: Any) -> dict[str, int]:
    """Count groups per stratum of balanced_profile; a stratum is named by its codes."""
    return dict(sorted(Counter("/".join(map(str, row)) for row in codes.tolist()).items()))


def _shared_groups(usable: pa.Table) -> list[str]:
    is_test = pc.starts_with(usable["sample_id"], "test/")
    test = set(usable.filter(is_test)["group"].to_pylist())
    train = set(usable.filter(pc.invert(is_test))["group"].to_pylist())
    return sorted((test & train) - {None})


def _near_duplicates(usable: pa.Table) -> Duplicates:
    """Sort sets of near-duplicates by place. Within a group, the hashes alone decide."""
    sha256 = usable["sha256"].to_pylist()
    duplicates = _sorted_sets(usable, usable["near"].to_pylist(), unlike=sha256)
    groups = usable["group"].to_pylist()
    pairs, _ = candidates(usable["phash"].to_pylist(), far=_VERY_NEAR)
    within = []
    for first, second in pairs.tolist():
        is_one_group = groups[first] is not None and groups[first] == groups[second]
        if is_one_group and sha256[first] != sha256[second]:
            within.append((first, second))
    ids = usable["sample_id"].to_pylist()
    sets = [[ids[index] for index in members] for members in sets_of(within)]
    return replace(duplicates, within_group=_counted(sets))


def _sorted_sets(
    usable: pa.Table, keys: Sequence[str | None], unlike: Sequence[str] | None = None
) -> Duplicates:
    """Sort sets of photos with equal keys by place; with `unlike`, only sets that differ in it."""
    members_of: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            members_of[key].append(index)
    ids = usable["sample_id"].to_pylist()
    groups = usable["group"].to_pylist()
    labels = usable["label"].to_pylist()
    sets: dict[str, list[list[str]]] = defaultdict(list)
    for members in members_of.values():
        if len(members) < 2 or (unlike and len({unlike[index] for index in members}) == 1):
            continue
        names = [ids[index] for index in members]
        if len({name.partition("/")[0] for name in names}) > 1:
            sets["train_and_test"].append(names)
        # a test table without groups: all its groups are null, and count as one
        elif len({groups[index] for index in members}) == 1:
            sets["within_group"].append(names)
        else:
            sets["across_groups"].append(names)
        if len({labels[index] for index in members} - {None}) > 1:
            sets["label_conflicts"].append(names)
    return Duplicates(
        train_and_test=_counted(sets["train_and_test"]),
        across_groups=_counted(sets["across_groups"]),
        within_group=_counted(sets["within_group"]),
        label_conflicts=_counted(sets["label_conflicts"]),
    )


def _counted(sets: list[list[str]]) -> PhotoSets:
    return PhotoSets(
        n=len(sets),
        n_photos=sum(map(len, sets)),
        examples=[names[:_EXAMPLES] for names in sets[:_EXAMPLES]],
        sets=sets[:_MAX_SETS],
    )
