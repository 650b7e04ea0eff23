"""What the models saw and how they were run: distributions, preparation, provenance."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import pyarrow.compute as pc

from orchestrator.report import charts
from orchestrator.report.load import Run, mapping, number
from orchestrator.report.overview import stage_outcomes
from orchestrator.store.events import DriverStarted, ShardWritten, WorkerDied

_ROLES = ("train", "val", "test", "excluded")
_MAX_CLASSES = 30
_BASE64 = re.compile(r"[A-Za-z0-9+/]+=*")


def distributions(run: Run) -> dict[str, Any]:
    """Return how many photos of each class stand in each role, once for variants that share it."""
    if run.folds is None:
        return {"sets": [], "known": False}
    truth: dict[str, int] = {}
    if run.test_labels is not None:
        truth = dict(
            zip(
                run.test_labels["sample_id"].to_pylist(),
                run.test_labels["label"].to_pylist(),
                strict=True,
            )
        )
    counts: dict[str, Counter[tuple[str, int | None]]] = defaultdict(Counter)
    groups: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    folds = run.folds
    if "seed" in folds.column_names:  # roles are equal for all confirm seeds
        folds = folds.filter(pc.equal(folds["seed"].fill_null(0), folds["seed"].fill_null(0)[0]))
    columns = (
        folds[name].to_pylist() for name in ("variant", "sample_id", "group", "label", "role")
    )
    for variant, sample, group, label, role in zip(*columns, strict=True):
        counts[variant][role, truth.get(sample) if role == "test" else label] += 1
        if group is not None:
            groups[variant][role].add(group)
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for variant, found in counts.items():
        alike[tuple(sorted(found.items(), key=str))].append(variant)
    sets = [
        {
            "variants": names,
            "roles": _roles(counts[names[0]], groups[names[0]]),
            "plots": _plots(run, counts[names[0]]),
        }
        for names in alike.values()
    ]
    return {
        "sets": sets,
        "known": True,
        "legend": [(role, f"c{at}") for at, role in enumerate(_ROLES)],
        "facts": [
            (text, run.audit.get(name))
            for name, text in (
                ("n_photos", "photos"),
                ("n_usable", "usable"),
                ("n_groups", "labelled groups"),
                ("n_test", "test photos"),
            )
            if number(run.audit.get(name)) is not None
        ],
    }


def _roles(
    found: Counter[tuple[str, int | None]], groups: dict[str, set[str]]
) -> list[dict[str, Any]]:
    totals = {role: sum(n for (one, _), n in found.items() if one == role) for role in _ROLES}
    return [
        {"role": role, "n": n, "n_groups": len(groups[role]) or None}
        for role, n in totals.items()
        if n
    ]


def _plots(run: Run, found: Counter[tuple[str, int | None]]) -> list[tuple[str, Any]]:
    if run.schema is None:
        return []
    plots = []
    for at, (label, names) in enumerate(run.schema.classes.items()):
        if len(names) > _MAX_CLASSES:
            continue
        per_role: dict[str, Counter[int]] = defaultdict(Counter)
        for (role, code), n in found.items():
            if code is not None and 0 <= code < run.schema.n_classes:
                per_role[role][run.schema.decode(code)[at]] += n
        roles = [role for role in _ROLES if per_role[role]]
        rows = [
            (
                name,
                [
                    charts.Bar(
                        per_role[role][code] / per_role[role].total(),
                        f"{per_role[role][code] / per_role[role].total():.0%} ({per_role[role][code]})",
                        _ROLES.index(role),
                    )
                    for role in roles
                ],
            )
            for code, name in enumerate(names)
        ]
        plots.append((label, charts.bars(rows, title=f"Shares of {label} by role")))
    return plots


def preparation(run: Run) -> dict[str, Any]:
    """Return per set of shards its steps, rates per class, warnings and contact sheet, out of prep.json."""
    shards = [event for event in run.events if isinstance(event, ShardWritten)]
    facts = [
        (
            "photos prepared in this run",
            sum(event.n_prepared for event in shards),
        ),
        (
            "photos copied from earlier shards",
            sum(event.n_copied for event in shards),
        ),
    ]
    sets = [_prepared_set(one) for one in run.prep.get("sets") or [] if isinstance(one, dict)]
    steps = [
        mapping(step)
        for step in mapping(run.resolved.get("prep")).get("steps") or []
        if isinstance(step, dict)
    ]
    return {"facts": facts if shards else [], "sets": sets, "steps": [] if sets else _named(steps)}


def _named(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            str(step.get("name")),
            ", ".join(f"{key} {_text(value)}" for key, value in step.items() if key != "name"),
        )
        for step in steps
    ]


def _prepared_set(one: dict[str, Any]) -> dict[str, Any]:
    steps = [mapping(step.get("step")) for step in one.get("steps") or [] if isinstance(step, dict)]
    frames = ["photo", *(str(step.get("name")).replace("_", " ") for step in steps)]
    films = [film for film in one.get("sheet") or [] if isinstance(film, dict)]
    rows = [
        (
            f"{rate['failure']}: {rate['label']}",
            [(part["class"], part["failed"], part["n"]) for part in rate["classes"]],
        )
        for rate in one.get("rates") or []
    ]
    return {
        "variants": one.get("variants") or [],
        "steps": _named(steps),
        "counts": list(mapping(one.get("counts")).items()),
        "seconds": [(name, 1000 * value) for name, value in mapping(one.get("seconds")).items()],
        "warnings": one.get("warnings") or [],
        "rates": rows,
        "frames": frames,
        "films": [
            (title, [_film(film) for film in films if film.get("kind") == kind])
            for kind, title in (
                ("face", "Missing and doubtful faces, the least sure first"),
                ("mask", "Masks that kept almost nothing or almost everything"),
                ("ordinary", "Ordinary photos"),
            )
        ],
    }


def _film(film: dict[str, Any]) -> dict[str, Any]:
    worth = {"face": "confidence", "mask": "share"}.get(str(film.get("kind")))
    return {
        "name": film.get("sample_id"),
        "text": f"{worth} {film.get('worth')}" if worth else "",
        # base64 of our own JPEGs; anything else must not get into an attribute
        "frames": [text for text in film.get("frames") or [] if _BASE64.fullmatch(str(text))],
    }


def provenance(run: Run) -> dict[str, Any]:
    """Return stages, versions, overrides and the resolved spec."""
    start = run.started()
    outcomes = stage_outcomes(run)
    starts = sum(isinstance(event, DriverStarted) for event in run.events)
    return {
        "stages": list(outcomes.values()),
        "packages": sorted((start.packages or {}).items()),
        "commit": start.git_commit,
        "key": start.key,
        "overrides": [(name, _text(value)) for name, value in (start.overrides or {}).items()],
        "n_starts": starts,
        "n_deaths": sum(isinstance(event, WorkerDied) for event in run.events),
        "spec": run.resolved_text,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
