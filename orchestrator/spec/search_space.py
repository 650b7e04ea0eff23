"""Search spaces: declared in the spec, checked, sampled define-by-run, applied to a spec. Imports nothing heavy."""

from __future__ import annotations

import itertools
import math
import random
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from data_prep.section import BARE_NAME, Count, Section, Seed
from orchestrator.spec.limits import Limits


class _Entry(Section):
    when: dict[str, Any] = {}


class Choice(_Entry):
    """One of several values."""

    choice: Annotated[list[Any], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        texts = [repr(value) for value in self.choice]
        if len(set(texts)) < len(texts):
            raise ValueError(f"choices must differ, found {self.choice}")
        return self

    def corners(self) -> list[Any]:
        """Return the values that a check tries; every kind of entry has some."""
        return list(self.choice)


class _Range(_Entry):
    log: bool = False

    def _check(self, low: float, high: float, step: float | None) -> None:
        if low > high:
            raise ValueError(f"low <= high was required, found [{low}, {high}]")
        if self.log and low <= 0:
            raise ValueError(f"a log range begins above 0, found [{low}, {high}]")
        if self.log and step is not None:
            raise ValueError("a range has either log or step, found both")
        if step is not None and step <= 0:
            raise ValueError(f"a step above 0 was required, found {step}")


class IntRange(_Range):
    """Whole numbers from low to high, both included."""

    int_: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(alias="int")
    step: int | None = None

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self._check(self.int_[0], self.int_[1], self.step)
        return self

    def corners(self) -> list[Any]:
        return sorted(set(self.int_))


class FloatRange(_Range):
    """Numbers from low to high."""

    float_: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(alias="float")
    step: float | None = None

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self._check(self.float_[0], self.float_[1], self.step)
        return self

    def corners(self) -> list[Any]:
        return sorted(set(self.float_))


Entry = Choice | IntRange | FloatRange


def _entry(value: Any) -> Any:
    """Choose the model by its key, so that a fault is told about one form and not about three."""
    if not isinstance(value, dict):
        return value
    kinds: dict[str, type[Section]] = {"choice": Choice, "int": IntRange, "float": FloatRange}
    named = [key for key in kinds if key in value]
    if len(named) != 1:
        raise ValueError(
            f"one of choice, int, float was required, found {', '.join(value) or 'nothing'}"
        )
    return kinds[named[0]].model_validate(value)


SpaceEntry = Annotated[Entry, BeforeValidator(_entry)]


Epochs = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]* epochs?$")]
"""A scheduler looks at trials after whole epochs."""


class Asha(Section):
    """Successive halving (Li et al. 2020), one bracket: at rungs grace * reduction^k the best 1/reduction go on."""

    name: Literal["asha"] = "asha"
    grace: Epochs = "1 epochs"
    reduction: Annotated[int, Field(ge=2, le=16)] = 3


class Median(Section):
    """Stop a trial whose best so far is below the median of the others' at the same epoch."""

    name: Literal["median"] = "median"
    grace: Epochs = "1 epochs"


class NoScheduler(Section):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


Scheduler = Annotated[
    Annotated[Asha | Median | NoScheduler, Field(discriminator="name")], BARE_NAME
]


class Search(Section):
    """How settings are proposed and stopped early, per variant."""

    trials: Count = 20
    sampler: Literal["tpe", "random", "gp", "qmc", "grid"] = "tpe"
    scheduler: Scheduler = NoScheduler()
    space: dict[str, SpaceEntry] = {}
    variant_spaces: dict[str, dict[str, SpaceEntry | None]] = {}
    """What a variant has besides `space` or instead of its entries; null takes one out."""
    start: list[dict[str, Any]] = []
    """Points that are known to be good, tried first; what they leave open is sampled."""
    limits: Limits | None = None

    @model_validator(mode="after")
    def _conditions(self) -> Self:
        for name in ("", *self.variant_spaces):
            order(self.space_of(name))
        return self

    @model_validator(mode="after")
    def _starts(self) -> Self:
        spaces = [self.space_of(name) for name in ("", *self.variant_spaces)]
        for point in self.start:
            for path, value in point.items():
                entries = [space[path] for space in spaces if path in space]
                if not entries:
                    known = ", ".join(sorted({path for space in spaces for path in space}))
                    raise ValueError(
                        f"start: {path!r} is not in the space; the space has {known or 'nothing'}"
                    )
                if not any(contains(entry, value) for entry in entries):
                    raise ValueError(
                        f"start: {path} is {value!r}, which the space does not contain"
                    )
        return self

    def space_of(self, variant: str) -> dict[str, Any]:
        """Return the space of a variant."""
        merged: dict[str, Any] = {**self.space, **self.variant_spaces.get(variant, {})}
        return {path: entry for path, entry in merged.items() if entry is not None}


class Confirm(Section):
    """Train the finalists again, over seeds and folds."""

    finalists: Count = 5
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1]
    folds: Annotated[int, Field(ge=2, le=50)] = 3


def order(space: dict[str, Any]) -> list[str]:
    """Return the paths so that conditions come before what depends on them.

    Raises:
        ValueError: a condition names an unknown path or a value that the path cannot take, or conditions go in circles.
    """
    done: list[str] = []
    waiting = list(space)
    for path in waiting:
        for other, wanted in space[path].when.items():
            if other not in space:
                raise ValueError(
                    f"{path}: when names {other!r}, which is not in the space; the space has {', '.join(space)}"
                )
            entry = space[other]
            if isinstance(entry, Choice):
                for value in wanted if isinstance(wanted, list) else [wanted]:
                    if value not in entry.choice:
                        raise ValueError(
                            f"{path}: when {other} is {value!r}, which is none of {entry.choice}"
                        )
    while waiting:
        ready = [path for path in waiting if all(other in done for other in space[path].when)]
        if not ready:
            raise ValueError(f"conditions go in circles: {', '.join(waiting)}")
        done += ready
        waiting = [path for path in waiting if path not in done]
    return done


def holds(when: dict[str, Any], point: dict[str, Any]) -> bool:
    """Say whether the conditions of an entry hold at a point."""
    return all(
        path in point
        and (point[path] in wanted if isinstance(wanted, list) else point[path] == wanted)
        for path, wanted in when.items()
    )


def contains(entry: Any, value: Any) -> bool:
    """Say whether an entry can take a value."""
    if isinstance(entry, Choice):
        return value in entry.choice
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = entry.int_ if isinstance(entry, IntRange) else entry.float_
    if not low <= value <= high or (isinstance(entry, IntRange) and value != int(value)):
        return False
    steps = (value - low) / entry.step if entry.step else 0.0
    return abs(steps - round(steps)) < 1e-9


def holds_point(space: dict[str, Any], point: dict[str, Any]) -> bool:
    """Say whether a point lies in a space: every path whose condition holds has a value it can take, and no other."""
    wanted = {path for path in order(space) if holds(space[path].when, point)}
    return wanted == set(point) and all(
        contains(space[path], value) for path, value in point.items()
    )


def suggest(trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """Ask an Optuna trial for a point of the space, conditions first (define-by-run)."""
    point: dict[str, Any] = {}
    for path in order(space):
        entry = space[path]
        if not holds(entry.when, point):
            continue
        if isinstance(entry, Choice):
            # Optuna stores numbers and texts only, so a choice goes by its place
            simple = all(isinstance(value, str | int | float | bool) for value in entry.choice)
            named = entry.choice if simple else list(range(len(entry.choice)))
            value = trial.suggest_categorical(path, named)
            point[path] = value if simple else entry.choice[value]
        elif isinstance(entry, IntRange):
            point[path] = trial.suggest_int(path, *entry.int_, log=entry.log, step=entry.step or 1)
        else:
            point[path] = trial.suggest_float(path, *entry.float_, log=entry.log, step=entry.step)
    return point


def grid(space: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all points of a space of choices and stepped ranges, in a fixed order."""
    points: list[dict[str, Any]] = [{}]
    for path in order(space):
        points = [
            {**point, path: value} if holds(space[path].when, point) else point
            for point in points
            for value in (_grid_values(space[path]) if holds(space[path].when, point) else [None])
        ]
    return points


def _grid_values(entry: Any) -> list[Any]:
    if isinstance(entry, Choice):
        return list(entry.choice)
    low, high = entry.int_ if isinstance(entry, IntRange) else entry.float_
    step = entry.step or (1 if isinstance(entry, IntRange) else (high - low) or 1)
    return [low + step * at for at in range(math.floor((high - low) / step + 1e-9) + 1)]


def grid_size(space: dict[str, Any]) -> int:
    """Return an upper bound of the number of grid points, without listing them."""
    return math.prod(len(_grid_values(entry)) for entry in space.values()) if space else 1


def assignments(space: dict[str, Any], *, limit: int, rng: random.Random) -> list[dict[str, Any]]:
    """Return points for a check: all combinations of corners, or a random part of them if there are too many."""
    paths = order(space)
    values = [space[path].corners() for path in paths]
    if math.prod(map(len, values)) <= limit:
        combinations: Any = itertools.product(*values)
    else:
        combinations = (tuple(rng.choice(options) for options in values) for _ in range(limit))
    points = []
    for combination in combinations:
        point: dict[str, Any] = {}
        for path, value in zip(paths, combination, strict=True):
            if holds(space[path].when, point):
                point[path] = value
        if point not in points:
            points.append(point)
    return points


def apply(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of plain data with values replaced at dotted paths.

    A number in a path is a place in a list, from 0 (`train.augment.policy.1.p`). A bare string where a path goes on
    stands for {name: string}. Another `name` makes it another component: the settings of the old one go. Names are
    applied before what stands beside them.
    """
    result = _copy(base)
    for path in sorted(overrides, key=lambda path: (path.count("."), not path.endswith(".name"))):
        parts: list[Any] = path.split(".")
        here: Any = result
        for at in range(len(parts) - 1):
            part = parts[at]
            child = here[part] if isinstance(here, list) else here.get(part)
            if isinstance(child, str):
                child = {"name": child}
            if (
                isinstance(child, list)
                and parts[at + 1].isdecimal()
                and int(parts[at + 1]) < len(child)
            ):
                parts[at + 1] = int(parts[at + 1])
            elif not isinstance(child, dict):
                child = {}  # a path that leads nowhere: what is checked next refuses it
            here[part] = child
            here = child
        value = _copy(overrides[path])
        if (
            len(parts) > 1 and parts[-1] == "name" and here.get("name") != value
        ):  # the spec's own name is only a name
            here.clear()
        here[parts[-1]] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
