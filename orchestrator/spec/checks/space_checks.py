"""Checks of the search: its space, grid, folds and start points, and variants that are alike in it."""

from __future__ import annotations

import json
import random

from data_prep.section_base import identity
from orchestrator.base.keys import digest
from orchestrator.spec.checks.draft import Draft
from orchestrator.spec.messages import validate
from orchestrator.spec.models import Arm
from orchestrator.spec.search_space import (
    FloatRange,
    Point,
    Space,
    apply,
    assignments,
    grid_size,
    start_in,
)
from orchestrator.spec.yaml_source import KeyPath, Place, Problem

_MAX_ASSIGNMENTS = 256
_MAX_GRID = 1_000_000  # points, which a study keeps in memory
_FOR_VARIANTS = {
    "train.recipe": "write a variant per recipe, or begin with search.start: [{train.recipe: NAME}]",
    "train.model.weights": "write a variant per file",
    "train.model.weights_sha256": "write a variant per file",
    **dict.fromkeys(
        ("train.model.views", "train.model.views.flip", "train.model.views.margins"),
        "the score of a search is of the photo alone; write a variant with views and one without",
    ),
}
"""Settings that no search can choose -> what to do in place of searching them."""


def check_space(draft: Draft) -> None:
    """Check what a search may choose from, and the folds that it asks for."""
    _check_grid(draft)
    _check_folds(draft)
    _check_points(draft)


def _check_grid(draft: Draft) -> None:
    """Check that a grid has a number of points that can be listed."""
    search = draft.spec.search
    if search is None or search.sampler != "grid":
        return
    for where, space in draft.spaces():
        for path, entry in space.items():
            if not isinstance(entry, FloatRange) or entry.step is not None:
                continue
            low, high = entry.float_
            if low < high:
                text = (
                    f"{path}: sampler grid needs a step or a list of choices, found all numbers "
                    f"from {low:g} to {high:g}; add step:, write choice: [{low:g}, ..., {high:g}], "
                    "or use another sampler"
                )
                draft.refuse((*where, path), text, key=True)
        n_points = grid_size(space)
        if n_points > _MAX_GRID:
            draft.refuse(
                where,
                f"sampler grid: at most {_MAX_GRID:,} points were required, found {n_points:,}; "
                "give fewer values or larger steps, or use another sampler",
                key=True,
            )


def _check_folds(draft: Draft) -> None:
    """Check that confirm has the folds that a search asks for."""
    search = draft.spec.search
    confirm = draft.spec.confirm
    if search is None or search.folds is None:
        return
    text = None
    if confirm is None:
        text = "the folds of confirm were required, found confirm: null; remove one of the two"
    elif search.folds > len(confirm.seeds) * confirm.folds:
        n_seeds = len(confirm.seeds)
        text = (
            f"at most {n_seeds * confirm.folds} were required, as many as confirm has "
            f"({n_seeds} seeds x {confirm.folds} folds), found {search.folds}"
        )
    if text is not None:
        draft.refuse(("search", "folds"), f"search.folds: {text}")


def _check_points(draft: Draft) -> None:
    """Try the corners of the space on every variant: paths must exist, values must be valid."""
    for where, space in draft.spaces():
        for path in space:
            text = None
            if not path.startswith("train."):
                text = f"paths begin with train., found {path!r}"
            if path in _FOR_VARIANTS:
                text = f"{path} is set in a variant, never in the space; {_FOR_VARIANTS[path]}"
            if text is not None:
                draft.refuse((*where, path), f"{'.'.join(where)}: {text}", key=True)
                return
    reported = set[str]()
    for name, arm in draft.arms.items():
        space = draft.space_of(name)
        base = arm.model_dump(mode="json", by_alias=True)
        for point in _corner_points(space) if space else []:
            faults: list[Problem] = []
            where = ("search", "space")
            validate(Arm, apply(base, point), draft.document, faults, where, "search.space: ")
            for fault in faults:
                if fault.text not in reported:
                    reported.add(fault.text)
                    place = _place_in_space(fault.text, draft)
                    draft.problems.append(Problem(*place, fault.text))


def check_starts(draft: Draft) -> None:
    """Check that some variant can try every setting of each start point."""
    search = draft.spec.search
    starts = search.start if search else []
    for number, start in enumerate(starts):
        taken = set[str]()
        for name in draft.arms:
            taken |= start_in(draft.space_of(name), start).keys()
        for path in start:
            if path not in taken:
                text = (
                    f"search.start: conditions of {path} that hold at this point were required, "
                    "found none of a variant that do; remove it, or change what they name"
                )
                draft.refuse(("search", "start", number, path), text, key=True)


def _corner_points(space: Space) -> list[Point]:
    rng = random.Random(0)  # noqa: S311 - no secret
    return assignments(space, limit=_MAX_ASSIGNMENTS, rng=rng)


def _place_in_space(text: str, draft: Draft) -> Place:
    """Return the place of the entry that a message names, by its path or by the parent of that."""
    places: dict[str, KeyPath] = {}
    for where, space in draft.spaces():
        for path in space:
            places.setdefault(path, (*where, path))
    parents: dict[str, KeyPath] = {}
    for path, place in places.items():
        parents.setdefault(path.rsplit(".", 1)[0], place)
    for candidates in (places, parents):
        for path in sorted(candidates, key=len, reverse=True):
            if path in text:
                return draft.document.where(candidates[path], key=True)
    return draft.document.where(("search", "space"))


def check_twins(draft: Draft) -> None:
    """Check that no two variants resolve to the same settings: one of them would have no result."""
    first_names: dict[str, str] = {}
    for name, arm in draft.arms.items():
        space = draft.space_of(name)
        points = _corner_points(space) if space else [{}]
        entries = {path: repr(entry) for path, entry in space.items()}
        key = digest([_settings(arm, points[0]), entries])
        first = first_names.setdefault(key, name)
        if first == name:
            continue
        other = draft.arms[first]
        if all(_settings(arm, point) == _settings(other, point) for point in points):
            text = f"settings of its own were required, found those of {first!r}"
            text = f"variants.{name}: {text}; remove one of the two"
            draft.refuse(("variants", name), text, key=True)


def _settings(arm: Arm, point: Point) -> Point:
    """Return what an arm resolves to at a point of its space."""
    data = apply(arm.model_dump(mode="json", by_alias=True), point)
    return identity(Arm.model_validate_json(json.dumps(data)))
