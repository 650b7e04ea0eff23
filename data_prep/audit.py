"""The audit: what makes a validation score lie, counted before anything is trained."""
from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from data_prep.labels import Schema

_EXAMPLES = 5
_IMBALANCE = 20.0


def audit(catalog: pa.Table, folds_by_variant: dict[str, pa.Table], schema: Schema) -> dict[str, Any]:
    """Examine a catalog and its splits.

    Returns:
        JSON: n_photos, counts (label -> class -> n), classes (name -> n), sizes, quarantined (sample_id, reason),
        duplicates (exact ones, by where they stand), variants (per variant: roles, counts, leak), warnings (ranked).
    """
    rows = catalog.to_pylist()
    usable = [row for row in rows if row["status"] == "ok"]
    labelled = [row for row in usable if row["label"] is not None]
    facts: dict[str, Any] = {
        "n_photos": len(rows),
        "n_usable": len(usable),
        "n_test": sum(row["sample_id"].startswith("test/") for row in rows),
        "n_groups": len({row["group"] for row in labelled}),
        "counts": {name: _named(Counter(row[f"label_{name}"] for row in labelled), schema.classes[name]) for name in schema.names},
        "classes": {schema.class_name(label): n for label, n in sorted(Counter(row["label"] for row in labelled).items())},
        "sizes": [{"width": w, "height": h, "n": n} for (w, h), n in Counter((row["width"], row["height"]) for row in usable).most_common(10)],
        "quarantined": [{"sample_id": row["sample_id"], "reason": row["status"]} for row in rows if row["status"] != "ok"],
        "n_quarantined": len(rows) - len(usable),
        "duplicates": _duplicates(usable),
        "variants": {name: _variant(table, schema) for name, table in folds_by_variant.items()},
    }
    facts["leak"] = {name: variant["leak"] for name, variant in facts["variants"].items()}
    facts["warnings"] = _warnings(facts)
    return facts


def leak(folds: pa.Table) -> float:
    """Return the share of val samples whose group also stands in train: 0 for a group-disjoint split."""
    rows = folds.to_pylist()
    train = {row["group"] for row in rows if row["role"] == "train"}
    val = [row["group"] for row in rows if row["role"] == "val"]
    return sum(group in train for group in val) / len(val) if val else 0.0


def _variant(folds: pa.Table, schema: Schema) -> dict[str, Any]:
    rows = folds.to_pylist()
    by_role: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        if row["label"] is not None:
            by_role[row["role"]][row["label"]] += 1
    return {
        "roles": dict(Counter(row["role"] for row in rows)),
        "classes": {role: _classes(counts, schema) for role, counts in by_role.items()},
        "folds": {str(fold): n for fold, n in sorted(Counter(row["fold"] for row in rows if row["fold"] is not None).items())},
        "leak": leak(folds),
    }


def _classes(counts: Counter[int], schema: Schema) -> dict[str, int]:
    return {schema.class_name(label): n for label, n in sorted(counts.items())}


def _named(counts: Counter[int], names: list[str]) -> dict[str, int]:
    return {name: counts.get(code, 0) for code, name in enumerate(names)}


def _duplicates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sort sets of byte-equal photos by where they stand."""
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        same[row["sha256"]].append(row)
    sets = [found for found in same.values() if len(found) > 1]
    kinds: dict[str, list[list[str]]] = {"train_and_test": [], "across_groups": [], "within_group": []}
    conflicts = []
    for found in sets:
        ids = [row["sample_id"] for row in found]
        sides = {sample.partition("/")[0] for sample in ids}
        groups = {row["group"] for row in found}
        kinds["train_and_test" if len(sides) > 1 else "across_groups" if len(groups) > 1 else "within_group"].append(ids)
        if len({row["label"] for row in found if row["label"] is not None}) > 1:
            conflicts.append(ids)
    return {kind: {"n": len(ids), "examples": ids[:_EXAMPLES]} for kind, ids in {**kinds, "label_conflicts": conflicts}.items()}


def _warnings(facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    duplicates = facts["duplicates"]
    texts = {
        "train_and_test": ("photos stand both in the training and in the test set", "remove them from one of the two"),
        "label_conflicts": ("equal photos carry different labels", "correct the table"),
        "across_groups": ("equal photos stand in different groups", "give them one group, or a validation score leaks"),
    }
    for kind, (what, remedy) in texts.items():
        if n := duplicates[kind]["n"]:
            found.append({"what": what, "n": n, "examples": duplicates[kind]["examples"], "do": remedy})
    for name, share in facts["leak"].items():
        if share > 0:
            found.append({"what": f"variant {name}: {share:.0%} of the validation photos show somebody who is in training too",
                          "n": round(share * facts["variants"][name]["roles"].get("val", 0)), "examples": [],
                          "do": "data.split: {strategy: balanced_profile}"})
    if facts["n_quarantined"]:
        found.append({"what": "photos cannot be read and are left out", "n": facts["n_quarantined"],
                      "examples": [f"{row['sample_id']}: {row['reason']}" for row in facts["quarantined"][:_EXAMPLES]],
                      "do": "replace or remove them"})
    counts = [n for n in facts["classes"].values() if n]
    if counts and max(counts) / min(counts) >= _IMBALANCE:
        rarest = min(facts["classes"], key=lambda name: (facts["classes"][name], name))
        found.append({"what": f"classes are imbalanced {max(counts) / min(counts):.0f} to 1", "n": min(counts),
                      "examples": [rarest], "do": "train.balance: weighted_sampler, or train.loss: focal"})
    return found
