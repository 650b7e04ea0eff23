"""The audit as a page: what is in the data, what leaks, and what quick models see in it."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.report import charts
from orchestrator.report.load import Run, dicts, listed, mapping, number

_KINDS = (
    ("train_and_test", "in training and test"),
    ("across_groups", "in different groups"),
    ("within_group", "in one group"),
    ("label_conflicts", "with different labels"),
)
_MAX_CLASSES = 60
_MAX_TELLS = 8
_MAX_PEOPLE = 10


def audit(run: Run) -> dict[str, Any]:
    """Return the audit's facts in the order a reader asks for them."""
    facts = run.audit
    if not facts:
        return {"known": False}
    return {
        "known": True,
        "numbers": _numbers(facts),
        "copies": _copies(facts),
        "people": [
            " = ".join(map(str, names)) for names in listed(facts.get("people"))[:_MAX_PEOPLE]
        ],
        "n_people": len(listed(facts.get("people"))),
        "reasons": list(mapping(facts.get("reasons")).items()),
        "histograms": [
            _histogram(name, one) for name, one in mapping(facts.get("histograms")).items()
        ],
        "joint": dicts(facts.get("joint")),
        "tells": [one for one in dicts(facts.get("tells")) if number(one.get("association"))][
            :_MAX_TELLS
        ],
        "sizes": mapping(facts.get("photo_sizes")),
        "folds": _folds(facts),
        "gaps": _gaps(facts),
        "excluded": _excluded(facts),
        "probe": _probe(facts),
    }


def _numbers(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    named = (
        ("n_photos", "photos"),
        ("n_usable", "usable"),
        ("n_quarantined", "not usable"),
        ("n_groups", "labelled groups"),
        ("n_test", "test photos"),
        ("n_classes_missing", "joint classes without a photo"),
    )
    return [(text, facts[name]) for name, text in named if number(facts.get(name)) is not None]


def _copies(facts: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    rows = []
    for kind, text in _KINDS:
        cells = [
            mapping(mapping(facts.get(name)).get(kind)).get("n")
            for name in ("duplicates", "near_duplicates")
        ]
        rows.append((text, cells))
    return rows


def _histogram(name: str, one: dict[str, Any]) -> tuple[str, Any]:
    counts = [float(n) for n in listed(one.get("counts"))]
    start, width = number(one.get("start")) or 0.0, number(one.get("width")) or 1.0
    marks = [(float(border), "border") for border in listed(one.get("borders"))]
    marks += [(float(border), "in training") for border in listed(one.get("train_borders"))]
    return name, charts.histogram(counts, start, width, marks, title=f"Photos per value of {name}")


def _folds(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one table per distinct split: classes down, roles and folds across."""
    tables: dict[str, dict[str, Any]] = {}
    for name, variant in mapping(facts.get("variants")).items():
        parts = {
            f"{role}": mapping(found) for role, found in mapping(variant.get("classes")).items()
        }
        parts |= {
            f"fold {fold}": mapping(found)
            for fold, found in mapping(variant.get("fold_classes")).items()
        }
        key = json.dumps(parts, sort_keys=True)
        classes = list(mapping(facts.get("classes")))[:_MAX_CLASSES]
        rows = [(one, [found.get(one, 0) for found in parts.values()]) for one in classes]
        tables.setdefault(key, {"variants": [], "columns": list(parts), "rows": rows})[
            "variants"
        ].append(name)
    return list(tables.values())


def _gaps(facts: dict[str, Any]) -> list[dict[str, Any]]:
    found = mapping(facts.get("leak_gap"))
    ends = [0.0] + [
        number(one.get(end)) or 0.0 for one in found.values() for end in ("low", "high")
    ]
    scale = (min(ends) - 0.02, max(ends) + 0.02)
    rows = []
    for name, variant in mapping(facts.get("variants")).items():
        gap = mapping(found.get(name))
        low, middle, high = (number(gap.get(end)) for end in ("low", "difference", "high"))
        known = low is not None and middle is not None and high is not None
        plot = charts.interval((low, middle, high), scale, strong=True, mark=0.0) if known else ""  # type: ignore[arg-type]
        rows.append({"name": name, "leak": variant.get("leak"), **gap, "plot": plot})
    return rows


def _excluded(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**one, "variant": name, "rule": json.dumps(one.get("rule"), ensure_ascii=False)}
        for name, variant in mapping(facts.get("variants")).items()
        for one in dicts(variant.get("excluded"))
    ]


def _probe(facts: dict[str, Any]) -> dict[str, Any]:
    probe = mapping(facts.get("probe"))
    rows: list[dict[str, Any]] = []
    for name, one in mapping(probe.get("labels")).items():
        bounds = {part: mapping(one.get(part)) for part in ("macro_f1", "rim", "chance")}
        plots = {
            part: charts.interval(
                (found["low"], found["estimate"], found["high"]),
                (0.0, 1.0),
                strong=part == "macro_f1",
            )
            for part, found in bounds.items()
        }
        names = [str(text) for text in listed(one.get("classes"))]
        rows.append(
            {
                "name": name,
                **bounds,
                "plots": plots,
                "matrix": charts.matrix(
                    listed(one.get("confusion")), names, title=f"Confusion of {name}"
                ),
            }
        )
    rows.sort(key=lambda row: row["macro_f1"].get("estimate", 0.0))
    return {**probe, "rows": rows, "axis": charts.scale_axis((0.0, 1.0)) if rows else ""}
