"""Search spaces: declared in the spec, checked, sampled define-by-run, applied to a spec.

Imports nothing heavy.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from data_prep.section_base import BARE_NAME, Count, Fraction, Section, Seed, since
from orchestrator.spec.search_limits import Limits
from trainers.finetuning.recipes import RECIPES, recipe_value

Point = dict[str, Any]
"""Dotted path of a setting -> its value."""
Plain = dict[str, Any]
"""A part of a spec as JSON values."""
_MAX_INDEX_DIGITS = 9


class _Entry(Section):
    when: Point = {}
    """Path -> value: the entry is sampled only where the point has that value."""


class Choice(_Entry):
    """One of several values."""

    choice: Annotated[list[Any], Field(min_length=1)]
    """The values."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        texts = [repr(value) for value in self.choice]
        if len(set(texts)) < len(texts):
            raise ValueError(f"choices must differ, found {self.choice}")
        return self

    def corners(self) -> list[Any]:
        """Return the values that a check tries; each kind of entry has some."""
        return list(self.choice)


class _Range(_Entry):
    log: bool = False
    """Sample evenly in the logarithm."""

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
    """[low, high], both included."""
    step: int | None = None
    """Distance of two values; null for 1."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self._check(self.int_[0], self.int_[1], self.step)
        return self

    def corners(self) -> list[Any]:
        return sorted(set(self.int_))


class FloatRange(_Range):
    """Numbers from low to high."""

    float_: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(alias="float")
    """[low, high]."""
    step: float | None = None
    """Distance of two values; null for none."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self._check(self.float_[0], self.float_[1], self.step)
        return self

    def corners(self) -> list[Any]:
        return sorted(set(self.float_))


Entry = Choice | IntRange | FloatRange
Space = dict[str, Entry]
"""Dotted path of a setting -> what it may be."""


def _entry(value: Any) -> Any:
    """Choose the model by its key, so that a message is about one form and not about three."""
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
    """Successive halving (Li et al. 2020) with one bracket.

    At the rungs grace * reduction^k, the best 1/reduction of the trials continue.
    """

    name: Literal["asha"] = "asha"
    grace: Epochs = "1 epochs"
    """No trial is stopped before it."""
    reduction: Annotated[int, Field(ge=2, le=16)] = 3
    """One of so many trials continues at a rung."""


class Median(Section):
    """Stop a trial whose best score so far is below the median of the others at that epoch."""

    name: Literal["median"] = "median"
    grace: Epochs = "1 epochs"
    """No trial is stopped before it."""


class Wilcoxon(Section):
    """Stop a setting whose folds lose to the same folds of the best setting; needs `folds`.

    After each fold a signed-rank test compares the two (Wilcoxon 1945, by Optuna's WilcoxonPruner).
    """

    name: Literal["wilcoxon"] = "wilcoxon"
    p: Fraction = 0.1
    """A setting is stopped where the test's p is below it."""

    @property
    def first_fold(self) -> int:
        """Return after how many folds a setting can be stopped: all lost, p is 1 / 2^folds."""
        return max(2, math.floor(-math.log2(self.p) + 1e-9) + 1)


class NoScheduler(Section):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


Scheduler = Annotated[
    Annotated[Asha | Median | Wilcoxon | NoScheduler, Field(discriminator="name")], BARE_NAME
]


class FoldStep(NamedTuple):
    """One training of a setting: a seed of confirm, and the fold that is held out."""

    seed: int
    fold: int


class Search(Section):
    """How settings are proposed and stopped early, per variant."""

    trials: Count = 20
    """Trials per variant."""
    sampler: Literal["tpe", "random", "gp", "qmc", "grid"] = "tpe"
    """Optuna's sampler that proposes points."""
    scheduler: Scheduler = NoScheduler()
    """What stops weak trials early."""
    space: dict[str, SpaceEntry] = {}
    """Dotted path of a setting -> what it may be."""
    variant_spaces: dict[str, dict[str, SpaceEntry | None]] = {}
    """Entries that a variant adds to `space` or replaces; null removes one."""
    start: list[Point] = []
    """Good points to try first; settings that they leave out are sampled. `{train.recipe: NAME}`
    stands for those of a recipe's settings that lie in the space. A setting with a condition brings
    the condition along.
    """
    limits: Limits | None = None
    """What the search may cost; null for no limit."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = since(default=None)
    """Train each setting on so many folds of confirm, one after the other, seed by seed; its score is
    the mean over them. null: once, on role train.
    """

    @field_validator("start", mode="after")
    @classmethod
    def _recipes_are_points(cls, start: list[Point], info: ValidationInfo) -> list[Point]:
        if "space" not in info.data:  # its own problem is reported
            return start
        space: Space = dict(info.data["space"])
        for entries in info.data.get("variant_spaces", {}).values():
            space |= {path: entry for path, entry in entries.items() if entry is not None}
        return [_with_recipe(point, space) for point in start]

    @model_validator(mode="after")
    def _conditions_resolve(self) -> Self:
        for name in ("", *self.variant_spaces):
            order(self.space_of(name))
        return self

    @model_validator(mode="after")
    def _starts_are_in_the_space(self) -> Self:
        spaces = [self.space_of(name) for name in ("", *self.variant_spaces)]
        paths = sorted(set().union(*spaces))
        for point in self.start:
            for path, value in point.items():
                entries = [space[path] for space in spaces if path in space]
                if not entries:
                    known = ", ".join(paths) or "nothing"
                    raise ValueError(f"start: {path!r} is not in the space; the space has {known}")
                if not any(contains(entry, value) for entry in entries):
                    raise ValueError(
                        f"start: {path} is {value!r}, which the space does not contain"
                    )
        return self

    objectives: list[Literal["score", "parameters"]] = since(default=["score"])
    """What the sampler aims at: a high score alone, or also few parameters (`[score, parameters]`)."""

    @property
    def counts_parameters(self) -> bool:
        """Return True if the search also aims at few parameters."""
        return "parameters" in self.objectives

    @model_validator(mode="after")
    def _objectives_make_sense(self) -> Self:
        if self.objectives not in (["score"], ["score", "parameters"]):
            raise ValueError(
                f"objectives: [score] or [score, parameters] was required, found {self.objectives}"
            )
        if self.counts_parameters and not isinstance(self.scheduler, NoScheduler):
            raise ValueError(
                "scheduler: none was required beside several objectives, found "
                f"{self.scheduler.name}: a setting with a low score may still be the best of its "
                "size; remove the scheduler, or search for the score alone"
            )
        return self

    @model_validator(mode="after")
    def _scheduler_fits_the_folds(self) -> Self:
        scheduler = self.scheduler
        if not isinstance(scheduler, Wilcoxon):
            if self.folds is not None and not isinstance(scheduler, NoScheduler):
                raise ValueError(
                    f"scheduler: wilcoxon or none was required beside folds, found {scheduler.name}, "
                    "which compares epochs"
                )
            return self
        if self.folds is None:
            raise ValueError(
                "scheduler wilcoxon compares folds: folds was required, found none; add for instance "
                "folds: 5, or use asha or median"
            )
        if self.folds <= scheduler.first_fold:
            raise ValueError(
                f"folds: more than {scheduler.first_fold} were required for scheduler wilcoxon with "
                f"p {scheduler.p:g}, which can stop no setting before its fold "
                f"{scheduler.first_fold}, found {self.folds}; use more folds or a larger p"
            )
        return self

    def fold_steps(self, confirm: Confirm | None) -> list[FoldStep]:
        """Return the trainings of a setting in their order; none where it is trained once."""
        if self.folds is None or confirm is None:
            return []
        steps = itertools.product(confirm.seeds, range(confirm.folds))
        return [FoldStep(seed, fold) for seed, fold in itertools.islice(steps, self.folds)]

    def space_of(self, variant: str) -> Space:
        """Return the space of a variant."""
        merged = {**self.space, **self.variant_spaces.get(variant, {})}
        return {path: entry for path, entry in merged.items() if entry is not None}


class Confirm(Section):
    """Train the finalists again, over seeds and folds."""

    finalists: Count = 5
    """How many of the best settings are trained again."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1]
    """Seeds of training; each deals the folds anew."""
    folds: Annotated[int, Field(ge=2, le=50)] = 3
    """Folds per seed; every photo is predicted by trainings that did not see it."""
    race: bool = since(default=False)
    """After each seed, stop finalists that can hardly be among the best any more."""


def _with_recipe(point: Point, space: Space) -> Point:
    """Return a start point with its recipe written out: what lies in the space, conditions first.

    Raises:
        ValueError: there is no such recipe, or nothing of it lies in the space.
    """
    name = point.get("train.recipe")
    if "train.recipe" not in point:
        return point
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise ValueError(f"train.recipe: one of {known} was required, found {name!r}")
    beside = {path: value for path, value in point.items() if path != "train.recipe"}
    written = dict(beside)
    for path in order(space):
        entry = space[path]
        value = recipe_value(name, path)
        if path not in written and holds(entry.when, written) and contains(entry, value):
            written[path] = value
    if written == beside:
        raise ValueError(
            f"no setting of recipe {name} lies in the space, which has {', '.join(space) or 'nothing'}; "
            "widen the space, or remove this point"
        )
    return written


def order(space: Space) -> list[str]:
    """Return the paths, each after those that its condition names.

    Raises:
        ValueError: a condition names an unknown path or an impossible value, or is circular.
    """
    for path, entry in space.items():
        _check_condition(path, entry.when, space)
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [path for path in waiting if set(space[path].when) <= set(done)]
        if not ready:
            raise ValueError(f"conditions go in circles: {', '.join(waiting)}")
        done += ready
        waiting = [path for path in waiting if path not in done]
    return done


def _check_condition(path: str, when: Point, space: Space) -> None:
    for other, required in when.items():
        if other not in space:
            known = ", ".join(space)
            raise ValueError(
                f"{path}: when names {other!r}, which is not in the space; the space has {known}"
            )
        entry = space[other]
        if isinstance(entry, Choice):
            for value in _as_list(required):
                if value not in entry.choice:
                    raise ValueError(
                        f"{path}: when {other} is {value!r}, which is none of {entry.choice}"
                    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def holds(when: Point, point: Point) -> bool:
    """Return True if the conditions of an entry hold at a point."""
    return all(
        path in point and point[path] in _as_list(required) for path, required in when.items()
    )


def start_in(space: Space, start: Point) -> Point:
    """Return what a space takes of a start point, with the values that its conditions require.

    Left out is what the space does not contain, and what stands under a condition that the start
    point itself does not meet. A condition about a path that it leaves open is met by the first
    value that it names.
    """
    paths = order(space)
    point: Point = {}
    for path in paths:
        if path in start and contains(space[path], start[path]):
            point[path] = start[path]
    for path in reversed(paths):
        for other, required in space[path].when.items() if path in point else ():
            value = _as_list(required)[0]
            if other not in start and contains(space[other], value):
                point.setdefault(other, value)
    for path in paths:
        if not holds(space[path].when, point):
            point.pop(path, None)
    return point


def contains(entry: Entry, value: Any) -> bool:
    """Return True if an entry can take a value."""
    if isinstance(entry, Choice):
        return value in entry.choice
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = _bounds(entry)
    if not low <= value <= high:
        return False
    if isinstance(entry, IntRange) and value != int(value):
        return False
    if not entry.step:
        return True
    n_steps = (value - low) / entry.step
    return abs(n_steps - round(n_steps)) < 1e-9


def _bounds(entry: IntRange | FloatRange) -> Sequence[float]:
    return entry.int_ if isinstance(entry, IntRange) else entry.float_


def holds_point(space: Space, point: Point) -> bool:
    """Return True if a point lies in a space.

    Every path whose condition holds has a possible value there, and the point has no other path.
    """
    required = {path for path in order(space) if holds(space[path].when, point)}
    if required != set(point):
        return False
    return all(contains(space[path], value) for path, value in point.items())


def suggest(trial: Any, space: Space) -> Point:
    """Ask an Optuna trial for a point of the space, conditions first (define-by-run)."""
    point: Point = {}
    for path in order(space):
        entry = space[path]
        if not holds(entry.when, point):
            continue
        if isinstance(entry, Choice):
            point[path] = _suggest_choice(trial, path, entry.choice)
        elif isinstance(entry, IntRange):
            point[path] = trial.suggest_int(path, *entry.int_, log=entry.log, step=entry.step or 1)
        else:
            point[path] = trial.suggest_float(path, *entry.float_, log=entry.log, step=entry.step)
    return point


def _suggest_choice(trial: Any, path: str, values: list[Any]) -> Any:
    """Ask for a choice; Optuna stores only numbers and texts, so others go by their index."""
    if all(isinstance(value, str | int | float | bool) for value in values):
        return trial.suggest_categorical(path, values)
    index = trial.suggest_categorical(path, list(range(len(values))))
    return values[index]


def grid(space: Space) -> list[Point]:
    """Return all points of a space of choices and stepped ranges, in a fixed order."""
    points: list[Point] = [{}]
    for path in order(space):
        entry = space[path]
        extended: list[Point] = []
        for point in points:
            if holds(entry.when, point):
                extended += [{**point, path: value} for value in _grid_values(entry)]
            else:
                extended.append(point)
        points = extended
    return points


def _grid_values(entry: Entry) -> list[Any]:
    if isinstance(entry, Choice):
        return list(entry.choice)
    low = _bounds(entry)[0]
    step = _grid_step(entry)
    return [low + step * index for index in range(_n_grid_values(entry))]


def _grid_step(entry: IntRange | FloatRange) -> float:
    if entry.step is not None:
        return entry.step
    low, high = _bounds(entry)
    return 1 if isinstance(entry, IntRange) else (high - low) or 1


def _n_grid_values(entry: Entry) -> int:
    if isinstance(entry, Choice):
        return len(entry.choice)
    low, high = _bounds(entry)
    return math.floor((high - low) / _grid_step(entry) + 1e-9) + 1


def grid_size(space: Space) -> int:
    """Return an upper bound of the number of grid points, without listing them."""
    return math.prod(_n_grid_values(entry) for entry in space.values())


def assignments(space: Space, *, limit: int, rng: random.Random) -> list[Point]:
    """Return points for a check: all combinations of corners, or `limit` random ones of them."""
    paths = order(space)
    corners = [space[path].corners() for path in paths]
    combinations: Iterable[Sequence[Any]]
    if math.prod(len(values) for values in corners) <= limit:
        combinations = itertools.product(*corners)
    else:
        combinations = ([rng.choice(values) for values in corners] for _ in range(limit))
    points: list[Point] = []
    for combination in combinations:
        point: Point = {}
        for path, value in zip(paths, combination, strict=True):
            if holds(space[path].when, point):
                point[path] = value
        if point not in points:
            points.append(point)
    return points


def apply(base: Plain, overrides: Point) -> Plain:
    """Return a copy of plain data with values replaced at dotted paths.

    A number in a path is an index of a list, from 0 (`train.augment.policy.1.p`). If a path
    continues below a bare string, the string stands for {name: string}. Another `name` makes it
    another component: the settings of the old one are removed. Names are applied first.
    """
    result: Plain = copy.deepcopy(base)
    names_first = sorted(overrides, key=lambda path: (path.count("."), not path.endswith(".name")))
    for path in names_first:
        *parents, last = path.split(".")
        target: Any = result
        for position, part in enumerate(parents):
            following = (*parents, last)[position + 1]
            target = _enter(target, part, following)
        value = copy.deepcopy(overrides[path])
        # the name of the spec itself is no name of a component
        if parents and last == "name" and target.get("name") != value:
            target.clear()
        target[_index_or_key(target, last)] = value
    return result


def _enter(container: Any, part: str, following: str) -> Any:
    """Return the child of a container that can hold `following`; replace it where it cannot."""
    key: Any = _index_or_key(container, part)
    child = container[key] if isinstance(container, list) else container.get(key)
    if isinstance(child, str):
        child = {"name": child}
    is_index = isinstance(_index_or_key(child, following), int)
    if not isinstance(child, dict) and not is_index:
        child = {}  # the path does not exist: the check that follows refuses it
    container[key] = child
    return child


def _index_or_key(container: Any, part: str) -> int | str:
    """Return a part of a path as an index, if the container is a list with such an index."""
    is_short = (
        len(part) <= _MAX_INDEX_DIGITS
    )  # Python refuses to read numbers of thousands of digits
    if isinstance(container, list) and part.isdecimal() and is_short and int(part) < len(container):
        return int(part)
    return part
