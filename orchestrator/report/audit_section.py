"""The audit of the data: what is in it, what leaks, and what quick models see in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from orchestrator.report import charts
from orchestrator.report.data_section import BASE64
from orchestrator.report.load import Run, View
from orchestrator.report.scales import Scale
from orchestrator.store.run_files.audit import AuditFacts, Exclusion, Histogram, LabelProbe, LeakGap
from orchestrator.store.run_files.duplicate_photos import Pictured

_KINDS = {
    "train_and_test": "in training and test",
    "across_groups": "in different groups",
    "within_group": "in one group",
    "label_conflicts": "with different labels",
}
_MAX_CLASSES = 60
_MAX_ASSOCIATIONS = 8
_MAX_PEOPLE = 10


@dataclass
class ClassTable:
    """Classes down, roles and folds across; one for all variants that share a split."""

    columns: list[str]
    rows: list[tuple[str, list[int]]]
    variants: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LeakRow:
    """The leak of one variant's split, and what a quick model gains by it."""

    name: str
    leak: float | None
    gap: LeakGap
    plot: object


@dataclass(frozen=True)
class ExclusionRow:
    """A rule of a variant that keeps photos out of training and validation."""

    variant: str
    rule: str
    counts: Exclusion


@dataclass(frozen=True)
class ProbeRow:
    """The scores of a quick model for one label, with their pictures."""

    name: str
    scores: LabelProbe
    plot: object
    rim_plot: object
    matrix: object


def audit(run: Run) -> View:
    """Return the audit's facts in the order a reader asks for them."""
    facts = run.audit
    if facts is None:
        return {"known": False}
    return {
        "known": True,
        "score": facts.score,
        "numbers": _numbers(facts),
        "copies": _copies(facts),
        "pairs": _pictured(run),
        "not_copies": run.resolved.data.not_copies,
        "people": [" = ".join(names) for names in facts.people[:_MAX_PEOPLE]],
        "n_people": len(facts.people),
        "reasons": list(facts.reasons.items()),
        "histograms": [_histogram(name, item) for name, item in facts.histograms.items()],
        "joint": facts.joint,
        "associations": [item for item in facts.tells if item.association][:_MAX_ASSOCIATIONS],
        "sizes": facts.photo_sizes,
        "folds": _folds(facts),
        "leaks": _leaks(facts),
        "excluded": _excluded(facts),
        "probe": facts.probe,
        "probe_rows": _probe_rows(facts),
        "probe_axis": charts.scale_axis(Scale(0.0, 1.0)),
    }


def _pictured(run: Run) -> list[tuple[str, list[Pictured]]]:
    """Return sets of copies with their pictures, where the spec lets photos be shown."""
    if not run.resolved.report.photos:
        return []
    sets = []
    for item in run.copies.sets:
        kind = "near-duplicates" if item.is_near else "equal files"
        # base64 of our own JPEGs; anything else must not get into an attribute
        photos = [photo for photo in item.photos if BASE64.fullmatch(photo.jpeg)]
        if len(photos) > 1:
            sets.append((f"{kind} {_KINDS.get(item.where, '')}", photos))
    return sets


def _numbers(facts: AuditFacts) -> list[tuple[str, int]]:
    named = (
        ("photos", facts.n_photos),
        ("usable", facts.n_usable),
        ("not usable", facts.n_quarantined),
        ("labelled groups", facts.n_groups),
        ("test photos", facts.n_test),
        ("joint classes without a photo", facts.n_classes_missing),
        ("lack a label", facts.partly_labelled.n),
        ("of these, train the labels they have", facts.partly_labelled.n_training),
    )
    return [(name, n) for name, n in named if n is not None]


def _copies(facts: AuditFacts) -> list[tuple[str, list[int | None]]]:
    rows = []
    for kind, name in _KINDS.items():
        equal = facts.duplicates.get(kind)
        near = facts.near_duplicates.get(kind)
        rows.append((name, [equal.n if equal else None, near.n if near else None]))
    return rows


def _histogram(name: str, histogram: Histogram) -> tuple[str, Any]:
    marks = [(border, "border") for border in histogram.borders]
    marks += [(border, "in training") for border in histogram.train_borders]
    title = f"Photos per value of {name}"
    return name, charts.histogram(
        histogram.counts, histogram.start, histogram.width, marks, title=title
    )


def _folds(facts: AuditFacts) -> list[ClassTable]:
    """Return one table per distinct split."""
    tables: dict[str, ClassTable] = {}
    classes = list(facts.classes)[:_MAX_CLASSES]
    for name, split in facts.variants.items():
        columns = {
            **split.classes,
            **{f"fold {fold}": counts for fold, counts in split.fold_classes.items()},
        }
        key = json.dumps(columns, sort_keys=True)
        if key not in tables:
            rows = []
            for label in classes:
                rows.append((label, [counts.get(label, 0) for counts in columns.values()]))
            tables[key] = ClassTable(list(columns), rows)
        tables[key].variants.append(name)
    return list(tables.values())


def _leaks(facts: AuditFacts) -> list[LeakRow]:
    ends: list[float | None] = [0.0]
    for gap in facts.leak_gap.values():
        ends += [gap.low, gap.high]
    scale = Scale.around(ends, 0.02)
    rows = []
    for name, split in facts.variants.items():
        gap = facts.leak_gap.get(name, LeakGap())
        plot: object = ""
        if gap.low is not None and gap.high is not None:
            plot = charts.interval(gap.low, gap.difference, gap.high, scale, strong=True, mark=0.0)
        rows.append(LeakRow(name, split.leak, gap, plot))
    return rows


def _excluded(facts: AuditFacts) -> list[ExclusionRow]:
    rows = []
    for name, split in facts.variants.items():
        for item in split.excluded:
            rows.append(ExclusionRow(name, json.dumps(item.rule, ensure_ascii=False), item))
    return rows


def _probe_rows(facts: AuditFacts) -> list[ProbeRow]:
    scale = Scale(0.0, 1.0)
    rows = []
    for name, probe in facts.probe.labels.items():
        whole = probe.headline
        rim = probe.rim
        rows.append(
            ProbeRow(
                name,
                probe,
                charts.interval(whole.low, whole.estimate, whole.high, scale, strong=True),
                charts.interval(rim.low, rim.estimate, rim.high, scale),
                charts.matrix(probe.confusion, probe.classes, title=f"Confusion of {name}"),
            )
        )
    rows.sort(key=lambda row: row.scores.headline.estimate or 0.0)
    return rows
