"""What the models saw and how the run was made: distributions, preparation, provenance."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from data_prep.split import PARTIAL, rows_of_seed
from orchestrator.report import charts
from orchestrator.report.load import Run, View
from orchestrator.store.event_types import DriverStarted, ShardWritten, WorkerDied
from orchestrator.store.run_files.preparation import Film, PreparedSet

_ROLES = ("train", "val", "test", "excluded")
_MAX_CLASSES = 30
BASE64 = re.compile(r"[A-Za-z0-9+/]+=*")
_SHEETS = {
    "face": "Missing and doubtful faces, the least certain first",
    "mask": "Masks of almost nothing or almost the whole photo",
    "ordinary": "Ordinary photos",
}
_MEASURES = {"face": "confidence", "mask": "share"}


@dataclass
class Distribution:
    """The photos of one split: counts per role and class, groups per role."""

    variants: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def roles(self) -> list[RoleCount]:
        """Return the number of photos and groups of each role that has photos."""
        totals: Counter[str] = Counter()
        for (role, _), n in self.counts.items():
            totals[role] += n
        present = [role for role in (*_ROLES, PARTIAL) if totals[role]]
        return [RoleCount(role, totals[role], len(self.groups[role])) for role in present]


@dataclass(frozen=True)
class RoleCount:
    """How many photos and groups a role has."""

    role: str
    n: int
    n_groups: int


def distributions(run: Run) -> View:
    """Return how many photos of each class each role has, once for variants that share a split."""
    if run.folds is None:
        return {"sets": []}
    facts = []
    if run.audit is not None:
        named = (
            ("photos", run.audit.n_photos),
            ("usable", run.audit.n_usable),
            ("labelled groups", run.audit.n_groups),
            ("test photos", run.audit.n_test),
        )
        facts = [(name, n) for name, n in named if n is not None]
    sets = []
    for split in _distinct_splits(run):
        sets.append(
            {"variants": split.variants, "roles": split.roles(), "plots": _plots(run, split)}
        )
    legend = [(role, f"c{index}") for index, role in enumerate(_ROLES)]
    return {"sets": sets, "legend": legend, "facts": facts}


def _distinct_splits(run: Run) -> list[Distribution]:
    """Count the photos of folds.parquet; variants with equal counts share one result."""
    truth: dict[str, int] = {}
    if run.test_labels is not None:
        samples = run.test_labels["sample_id"].to_pylist()
        truth = dict(zip(samples, run.test_labels["label"].to_pylist(), strict=True))
    by_variant: dict[str, Distribution] = defaultdict(Distribution)
    names = ("variant", "sample_id", "group", "label", "role")
    folds = run.folds
    if folds and "seed" in folds.column_names:  # all confirm seeds have the same roles
        folds = rows_of_seed(folds)
    columns = [folds[name].to_pylist() for name in names] if folds else []
    for variant, sample, group, label, role in zip(*columns, strict=True):
        split = by_variant[variant]
        split.counts[role, truth.get(sample) if role == "test" else label] += 1
        if group is not None:
            split.groups[role].add(group)
    distinct: dict[tuple[Any, ...], Distribution] = {}
    for variant, split in by_variant.items():
        key = tuple(sorted(split.counts.items(), key=str))
        distinct.setdefault(key, split).variants.append(variant)
    return list(distinct.values())


def _plots(run: Run, split: Distribution) -> list[tuple[str, Any]]:
    """Draw the shares of the classes in each role, one picture per label."""
    if run.schema is None:
        return []
    plots = []
    for position, (label, names) in enumerate(run.schema.classes.items()):
        if len(names) > _MAX_CLASSES:
            continue
        per_role: dict[str, Counter[int]] = defaultdict(Counter)
        for (role, code), n in split.counts.items():
            if code is not None and 0 <= code < run.schema.n_classes:
                per_role[role][run.schema.decode(code)[position]] += n
        groups = []
        for number, name in enumerate(names):
            bars = []
            for color, role in enumerate(_ROLES):
                if per_role[role]:
                    n = per_role[role][number]
                    share = n / per_role[role].total()
                    bars.append(charts.Bar(share, f"{share:.0%} ({n})", color))
            groups.append((name, bars))
        plots.append((label, charts.bars(groups, title=f"Shares of {label} by role")))
    return plots


def preparation(run: Run) -> View:
    """Return the steps, failure rates, warnings and sample photos of every prepared set."""
    shards = [event for event in run.events if isinstance(event, ShardWritten)]
    facts = []
    if shards:
        facts = [
            ("photos prepared in this run", sum(shard.n_prepared for shard in shards)),
            ("photos copied from earlier shards", sum(shard.n_copied for shard in shards)),
        ]
    sets = [_prepared_set(item, photos=run.resolved.report.photos) for item in run.prep.sets]
    return {"facts": facts, "sets": sets, "steps": [] if sets else _steps(run.resolved.prep.steps)}


def _steps(steps: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Return (name, settings in words) of every step."""
    rows = []
    for step in steps:
        if isinstance(step, dict):
            settings = [f"{key} {_text(value)}" for key, value in step.items() if key != "name"]
            rows.append((str(step.get("name")), ", ".join(settings)))
    return rows


def _prepared_set(prepared: PreparedSet, *, photos: bool) -> View:
    described = [step.get("step") for step in prepared.steps if isinstance(step, dict)]
    steps = _steps(tuple(described))
    films = []
    for kind, title in _SHEETS.items():
        sheet = [_photo(film) for film in prepared.sheet if photos and film.kind == kind]
        films.append((title, sheet))
    return {
        "variants": prepared.variants,
        "steps": steps,
        "counts": list(prepared.counts.items()),
        "times": [(name, 1000 * seconds) for name, seconds in prepared.seconds.items()],
        "warnings": prepared.warnings,
        "rates": prepared.rates,
        "frames": ["photo", *(name.replace("_", " ") for name, _ in steps)],
        "films": films,
    }


@dataclass(frozen=True)
class Photo:
    """One photo of the sheet after every step."""

    name: str
    text: str
    frames: list[str]


def _photo(film: Film) -> Photo:
    measure = _MEASURES.get(film.kind)
    text = f"{measure} {film.worth}" if measure else ""
    # base64 of our own JPEGs; anything else must not get into an attribute
    frames = [frame for frame in film.frames if BASE64.fullmatch(frame)]
    return Photo(film.sample_id, text, frames)


def provenance(run: Run) -> View:
    """Return stages, versions, overrides and the resolved spec."""
    start = run.started()
    overrides = start.overrides or {}
    return {
        "stages": list(run.stages().values()),
        "packages": sorted((start.packages or {}).items()),
        "commit": start.git_commit,
        "key": start.key,
        "overrides": [(name, _text(value)) for name, value in overrides.items()],
        "n_starts": sum(isinstance(event, DriverStarted) for event in run.events),
        "n_deaths": sum(isinstance(event, WorkerDied) for event in run.events),
        "spec": run.resolved_text,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
