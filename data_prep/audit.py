"""The audit: what makes a validation score lie, counted before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels import Schema
from data_prep.split import strata

_EXAMPLES = 5
_IMBALANCE = 20.0
"""A class this many times rarer than the largest: the contest's 50 to 1 decided its score."""
_RANK = (
    "train_and_test",
    "test_group",
    "leak",
    "label_conflicts",
    "across_groups",
    "quarantined",
    "rare",
    "missing",
    "imbalance",
    "no_groups",
    "within_group",
)


def audit(catalog: pa.Table, folds_by_variant: dict[str, pa.Table], schema: Schema) -> dict[str, Any]:
    """Examine a catalog and its splits.

    Args:
        catalog: as `build_catalog` returns it.
        folds_by_variant: per variant what `assign` returns.
        schema: of the labels.

    Returns:
        JSON: n_photos, n_usable, n_test, n_groups, counts (label -> class -> n), classes (joint class -> n, those that
        occur), n_classes_missing, group_labels (constant within every group), sizes (the ten most frequent),
        quarantined ({sample_id, reason}), n_quarantined, reasons (-> n), duplicates (kind -> {n, n_photos, examples}),
        imbalance (largest over smallest class), variants (-> roles, groups, counts, classes, folds, fold_classes,
        leak), leak (variant -> share of val photos whose group is in train too), and warnings, the worst first:
        {what, n, examples, do}.
    """
    usable = catalog.filter(pc.equal(catalog["status"], "ok"))
    labelled = usable.filter(pc.is_valid(usable["label"]))
    labels, groups = labelled["label"].to_numpy(), labelled["group"].to_pylist()
    codes = schema.decode(labels)
    names, _, kept = strata(groups, codes)
    lost = catalog.filter(pc.not_equal(catalog["status"], "ok"))
    quarantined = [
        {"sample_id": sample, "reason": reason}
        for sample, reason in zip(lost["sample_id"].to_pylist(), lost["status"].to_pylist(), strict=True)
    ]
    classes = _classes(labels, schema)
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
        "sizes": _sizes(usable),
        "quarantined": quarantined,
        "n_quarantined": len(quarantined),
        "reasons": dict(Counter(found["reason"] for found in quarantined).most_common()),
        "duplicates": _duplicates(usable),
        "imbalance": round(max(classes.values()) / min(classes.values()), 2) if classes else None,
        "test_groups_in_train": _shared_groups(usable),
        "variants": {name: _variant(table, schema) for name, table in folds_by_variant.items()},
    }
    facts["leak"] = {name: variant["leak"] for name, variant in facts["variants"].items()}
    facts["warnings"] = _warnings(facts, schema)
    return facts


def leak(folds: pa.Table) -> float:
    """Return the share of val photos whose group also stands in train: 0 for a group-disjoint split."""
    roles, groups = folds["role"].to_pylist(), folds["group"].to_pylist()
    train = {group for group, role in zip(groups, roles, strict=True) if role == "train"}
    val = [group in train for group, role in zip(groups, roles, strict=True) if role == "val"]
    return sum(val) / len(val) if val else 0.0


def _variant(folds: pa.Table, schema: Schema) -> dict[str, Any]:
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
        "counts": {role: _counts(schema.decode(found), schema) for role, found in parts.items() if len(found)},
        "classes": {role: _classes(found, schema) for role, found in parts.items() if len(found)},
        "folds": {str(fold): int((numbers == fold).sum()) for fold in dealt},
        "fold_classes": {str(fold): _classes(labels[numbers == fold], schema) for fold in dealt},
        # photos that a confirm trial of this fold trains on, against its labels
        "folds_without": {
            str(fold): gone
            for fold in dealt
            if (gone := _absent(schema.decode(labels[(numbers >= 0) & (numbers != fold)]), schema))
        },
        "leak": leak(folds),
    }


def _counts(codes: Any, schema: Schema) -> dict[str, dict[str, int]]:
    return {
        name: dict(zip(classes, np.bincount(codes[:, at], minlength=len(classes)).tolist(), strict=True))
        for at, (name, classes) in enumerate(schema.classes.items())
    }


def _absent(codes: Any, schema: Schema) -> list[str]:
    return [f"{label} {name}" for label, found in _counts(codes, schema).items() for name, n in found.items() if n == 0]


def _classes(labels: Any, schema: Schema) -> dict[str, int]:
    values, counts = np.unique(labels, return_counts=True)
    return {schema.class_name(label): n for label, n in zip(values.tolist(), counts.tolist(), strict=True)}


def _constant_labels(groups: list[str], codes: Any, schema: Schema) -> list[str]:
    return [name for at, name in enumerate(schema.names) if strata(groups, codes[:, at : at + 1])[2].shape[1]]


def _strata_sizes(codes: Any) -> dict[str, int]:
    """Count groups per stratum of balanced_profile; a stratum is named by its codes."""
    return dict(sorted(Counter("/".join(map(str, row)) for row in codes.tolist()).items()))


def _sizes(usable: pa.Table) -> list[dict[str, int]]:
    pairs = Counter(zip(usable["width"].to_pylist(), usable["height"].to_pylist(), strict=True))
    return [{"width": width, "height": height, "n": n} for (width, height), n in pairs.most_common(10)]


def _shared_groups(usable: pa.Table) -> list[str]:
    is_test = pc.starts_with(usable["sample_id"], "test/")
    test, train = (set(usable.filter(part)["group"].to_pylist()) for part in (is_test, pc.invert(is_test)))
    return sorted((test & train) - {None})


def _duplicates(usable: pa.Table) -> dict[str, Any]:
    """Sort sets of byte-equal photos by where they stand; a set with two labels is counted as a conflict too."""
    same: dict[str, list[int]] = defaultdict(list)
    for at, sha in enumerate(usable["sha256"].to_pylist()):
        same[sha].append(at)
    ids, groups, labels = (usable[name].to_pylist() for name in ("sample_id", "group", "label"))
    kinds: dict[str, list[list[str]]] = {
        "train_and_test": [],
        "across_groups": [],
        "within_group": [],
        "label_conflicts": [],
    }
    for found in (rows for rows in same.values() if len(rows) > 1):
        names = [ids[at] for at in found]
        sides = {name.partition("/")[0] for name in names}
        one_group = len({groups[at] or ids[at] for at in found}) == 1
        kinds["train_and_test" if len(sides) > 1 else "within_group" if one_group else "across_groups"].append(names)
        if len({labels[at] for at in found} - {None}) > 1:
            kinds["label_conflicts"].append(names)
    return {
        kind: {
            "n": len(sets),
            "n_photos": sum(map(len, sets)),
            "examples": [names[:_EXAMPLES] for names in sets[:_EXAMPLES]],
        }
        for kind, sets in kinds.items()
    }


def _warnings(facts: dict[str, Any], schema: Schema) -> list[dict[str, Any]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def warn(kind: str, what: str, n: int, examples: list[Any], do: str) -> None:
        if n:
            found.append((kind, {"what": what, "n": n, "examples": examples[:_EXAMPLES], "do": do}))

    equal = {
        "train_and_test": (
            "equal photos stand both in the training and in the test set",
            "remove them from one of the two",
        ),
        "label_conflicts": ("equal photos carry different labels", "correct the table or the file names"),
        "across_groups": (
            "equal photos stand in different groups",
            "give them one value of data.group, or validation leaks",
        ),
        "within_group": ("equal photos stand in one group; they count twice", "remove the copies"),
    }
    for kind, (what, do) in equal.items():
        warn(kind, what, facts["duplicates"][kind]["n"], facts["duplicates"][kind]["examples"], do)
    warn(
        "test_group",
        "groups stand both in the training and in the test set",
        len(facts["test_groups_in_train"]),
        facts["test_groups_in_train"],
        "take them out of one of the two, or the test score is too good",
    )
    lost = [f"{found['sample_id']}: {found['reason']}" for found in facts["quarantined"]]
    warn("quarantined", "photos cannot be used and are left out", len(lost), lost, "replace or remove them")
    for name, variant in facts["variants"].items():
        n_leaked = round(variant["leak"] * variant["roles"].get("val", 0))
        warn(
            "leak",
            f"variant {name}: {variant['leak']:.0%} of the validation photos belong to groups that are in training too",
            n_leaked,
            [],
            "data.split.strategy: balanced_profile",
        )
        gone = [f"fold {fold}: {label}" for fold, lacking in variant["folds_without"].items() for label in lacking]
        warn(
            "missing",
            f"variant {name}: classes without a training photo when a fold is held out",
            len(gone),
            gone,
            "use fewer confirm.folds, or add groups of that class",
        )
        unseen = _unseen(variant, schema)
        warn(
            "missing",
            f"variant {name}: joint classes that training has and validation lacks",
            len(unseen),
            unseen,
            "raise data.split.val, or read macro F1 with care: it averages the classes that are present",
        )
    rare = [f"stratum {codes}: {n} group" for codes, n in facts["group_strata"].items() if n == 1]
    warn(
        "rare",
        "strata of one group can stand on one side only",
        len(rare),
        rare,
        "add groups, or use wider classes or bins",
    )
    if facts["imbalance"] and facts["imbalance"] >= _IMBALANCE:
        least = sorted(facts["classes"].items(), key=lambda item: (item[1], item[0]))
        warn(
            "imbalance",
            f"the largest class has {facts['imbalance']:.0f} times the photos of the smallest",
            least[0][1],
            [f"{name}: {n}" for name, n in least],
            "train.balance: weighted_sampler, or train.loss: focal",
        )
    if facts["n_groups"] == sum(facts["classes"].values()):
        warn(
            "no_groups",
            "every photo is its own group: nothing keeps photos of one subject on one side",
            facts["n_groups"],
            [],
            "name the column of the subject in data.group, if there is one",
        )
    return [warning for _, warning in sorted(found, key=lambda item: _RANK.index(item[0]))]


def _unseen(variant: dict[str, Any], schema: Schema) -> list[str]:
    train, val = variant["classes"].get("train", {}), variant["classes"].get("val", {})
    return [name for name in train if name not in val] if schema.n_classes > 1 else []
