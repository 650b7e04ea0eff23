"""Simulate what intervals and tests promise, with the functions that production calls.

`python -m tests.campaign.verdicts [--sets 600] [--only coverage,level,...]` prints one line for
each design and a summary. tests/orchestrator/evaluation/test_honesty.py runs a short form.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.hypotheses import judge
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
N_CLASSES = 18
N_PHOTOS = 7  # of one person


def predictions(
    targets: Ints, preds: Ints, groups: Ints | None, n_classes: int, folds: Ints | None = None
) -> Predictions:
    """Arrange arrays as production does: ids, groups by name, folds and seeds."""
    names = None if groups is None else [f"g{group}" for group in groups.tolist()]
    ids = [f"s{i:06}" for i in range(len(targets))]
    seeds = tuple(range(len(preds)))
    return Predictions(ids, targets, preds, n_classes, names, None, folds, seeds)


# ---------------------------------------------------------------------------------- coverage


class CoverageDesign(NamedTuple):
    """People whose photos fall into 18 classes: one class each, or three ages in a row."""

    n_per_class: int  # groups of every class; of the rarest where classes are unequal
    n_photos: int  # of a group
    accuracy: float
    spread: float  # standard deviation of a group's accuracy, on the logit scale
    unequal: bool

    def __str__(self) -> str:
        kind = "unequal" if self.unequal else "equal"
        return (
            f"{self.n_per_class:>3} groups of {self.n_photos} photos, {kind} classes, "
            f"accuracy {self.accuracy}"
        )


COVERAGE = [
    CoverageDesign(n, n_photos, accuracy, 0.8, unequal=unequal)
    for n_photos in (1, 7)
    for n, unequal in ((7, False), (7, True), (15, False), (40, False), (100, False))
    for accuracy in (0.5, 0.7, 0.85, 0.95, 0.98)
]


def group_classes(design: CoverageDesign) -> Ints:
    """Return the class of every group: all the same size, or the last classes up to 3 times it."""
    sizes = np.full(N_CLASSES, design.n_per_class)
    if design.unequal:
        sizes = np.round(design.n_per_class * np.linspace(1, 3, N_CLASSES)).astype(np.int64)
    return np.repeat(np.arange(N_CLASSES), sizes)


def draw_answers(design: CoverageDesign, classes: Ints, rng: np.random.Generator) -> Ints:
    """Return answers (G, n_photos): wrong ones mostly fall into a neighbouring class."""
    shift = design.spread * rng.normal(size=(len(classes), 1))
    # classes differ in difficulty, around the design's accuracy
    ease = np.log(design.accuracy / (1 - design.accuracy)) + np.linspace(-0.7, 0.7, N_CLASSES)
    skill = 1 / (1 + np.exp(-(ease[classes][:, None] + shift)))
    shape = (len(classes), design.n_photos)
    step = np.where(rng.random(shape) < 0.7, 1, rng.integers(1, N_CLASSES, shape))
    wrong = (classes[:, None] + step) % N_CLASSES
    return np.where(rng.random(shape) < skill, classes[:, None], wrong)


def draw_groups(design: CoverageDesign, rng: np.random.Generator) -> Ints:
    """Return groups as a photographer meets them: class shares of the design, sizes by chance."""
    shares = group_classes(design)
    while True:
        classes = rng.choice(shares, len(shares))
        if np.bincount(classes, minlength=N_CLASSES).min() >= 1:
            return np.sort(classes)


def true_score(design: CoverageDesign, rng: np.random.Generator) -> float:
    """Return macro F1 of a population of some 150,000 groups with the design's class shares."""
    classes = np.tile(group_classes(design), 150_000 // (N_CLASSES * design.n_per_class))
    preds = draw_answers(design, classes, rng)
    return macro_f1(np.repeat(classes, design.n_photos), preds.ravel(), N_CLASSES)


class Coverage(NamedTuple):
    """How often intervals hold the truth, and on which side they miss it."""

    inside: float
    too_low: float
    too_high: float
    width: float


def coverage(
    design: CoverageDesign, n_sets: int, *, seed: int = 0, n: int = 2000, fixed: bool = False
) -> Coverage:
    """Return the coverage of `interval` in one design.

    Args:
        design: of the data.
        n_sets: simulated data sets.
        seed: of the simulation.
        n: resamples of every interval.
        fixed: class sizes are those of the design; else they are drawn with the people.
    """
    rng = np.random.default_rng([seed, *design.__repr__().encode()])
    truth = true_score(design, rng)
    bounds = np.zeros((n_sets, 2))
    for i in range(n_sets):
        classes = group_classes(design) if fixed else draw_groups(design, rng)
        preds = draw_answers(design, classes, rng)
        targets = np.repeat(classes, design.n_photos)
        owners = np.repeat(np.arange(len(classes)), design.n_photos)
        arm = predictions(targets, preds.reshape(1, -1), owners, N_CLASSES)
        found = interval(arm, seed=0, n=n)
        bounds[i] = found.low, found.high
    too_low, too_high = np.mean(bounds[:, 1] < truth), np.mean(bounds[:, 0] > truth)
    width = float(np.mean(bounds[:, 1] - bounds[:, 0]))
    return Coverage(float(1 - too_low - too_high), float(too_low), float(too_high), width)


# ------------------------------------------------------------------------------------- level


@dataclass(frozen=True)
class TestDesign:
    """Two arms, each trained `n_seeds` x `n_folds` times, on the same people."""

    __test__ = False
    n_people: int
    n_seeds: int
    luck: float  # standard deviation of the accuracy of one training
    arm_by_person: float  # standard deviation of an arm's accuracy on one person
    n_folds: int = 3
    anew: bool = True  # folds are dealt anew for every seed
    other_split: bool = False  # the second arm has folds of its own
    training_set_luck: float = 0.0  # luck that all trainings on one set of people share
    effect: float = 0.0  # accuracy of the first arm minus that of the second
    accuracy: float = 0.8
    n_classes: int = 6

    def __str__(self) -> str:
        return (
            f"{self.n_people:>3} people, {self.n_seeds} seeds x {self.n_folds} folds "
            f"{'anew' if self.anew else 'once'}{', two splits' if self.other_split else ''}, luck {self.luck}, training-set luck "
            f"{self.training_set_luck}, arm by person {self.arm_by_person}, effect {self.effect}"
        )


LEVEL = [
    TestDesign(n_people, n_seeds, luck, by_person)
    for n_people in (30, 100, 300)
    for n_seeds in (1, 2, 3, 5, 8)
    for luck in (0.0, 0.01, 0.02)
    for by_person in (0.0, 0.15)
]
TRAINING_SET = [
    TestDesign(n_people, n_seeds, 0.0, 0.0, training_set_luck=0.01)
    for n_people in (100, 300)
    for n_seeds in (2, 3, 5, 8)
]
SPLITS = [
    TestDesign(n_people, n_seeds, luck, by_person, other_split=True)
    for n_people in (30, 100, 300)
    for n_seeds in (2, 5)
    for luck in (0.0, 0.02)
    for by_person in (0.0, 0.15)
]
POWER = [
    TestDesign(n_people, n_seeds, luck, by_person, effect=0.03)
    for n_people in (100, 300)
    for n_seeds in (2, 3, 5, 8)
    for luck in (0.0, 0.01, 0.02)
    for by_person in (0.0, 0.15)
]


def deal(design: TestDesign, rng: np.random.Generator) -> Ints:
    """Return the fold of every person under every seed: (S, G)."""
    even = np.arange(design.n_people) % design.n_folds
    if not design.anew:
        return np.tile(rng.permutation(even), (design.n_seeds, 1))
    return np.stack([rng.permutation(even) for _ in range(design.n_seeds)])


def simulate(design: TestDesign, rng: np.random.Generator) -> dict[str, Predictions]:
    """Return two arms' out-of-fold predictions."""
    n_people, n_seeds = design.n_people, design.n_seeds
    targets = rng.integers(0, design.n_classes, n_people * N_PHOTOS)
    owners = np.repeat(np.arange(n_people), N_PHOTOS)
    folds = deal(design, rng)
    ease = 0.1 * rng.normal(size=n_people)
    arms = {}
    for name, sign in (("a", 0.5), ("b", -0.5)):
        if name == "b" and design.other_split:
            folds = deal(design, rng)
        luck = design.luck * rng.normal(size=(n_seeds, design.n_folds))
        n_deals = n_seeds if design.anew else 1
        shared = design.training_set_luck * rng.normal(size=(n_deals, design.n_folds))
        luck = luck + shared  # one training set for each deal and fold
        person = ease + design.arm_by_person * rng.normal(size=n_people)
        skill = design.accuracy + sign * design.effect + person
        skill = skill + np.take_along_axis(luck, folds, axis=1)  # (S, G)
        hit = rng.random((n_seeds, len(targets))) < np.repeat(skill, N_PHOTOS, axis=1)
        wrong = (targets + rng.integers(1, design.n_classes, hit.shape)) % design.n_classes
        preds = np.where(hit, targets, wrong)
        arms[name] = predictions(
            targets, preds, owners, design.n_classes, np.repeat(folds, N_PHOTOS, axis=1)
        )
    return arms


class Rate(NamedTuple):
    """How often two arms were told apart at 0.10, and how far their difference spreads."""

    decided: float
    spread: float


def told_apart(design: TestDesign, n_sets: int, *, seed: int = 0) -> Rate:
    """Return the rate of p values below 0.10 in one design."""
    rng = np.random.default_rng([seed, *design.__repr__().encode()])
    decided, differences = 0, []
    for _ in range(n_sets):
        arms = simulate(design, rng)
        tested = paired_difference(arms["a"], arms["b"])
        if tested.p_value is not None:
            decided += tested.p_value < 0.10
        differences.append(tested.difference)
    return Rate(decided / n_sets, float(np.std(differences)))


# -------------------------------------------------------------------------- looks and numbers


def looks(n_sets: int, *, n_people: int = 100, luck: float = 0.01, seed: int = 0) -> float:
    """Return how often equal arms are ever told apart, looked at after 2, 3, 5 and 8 seeds."""
    design = TestDesign(n_people, 8, luck, 0.0)
    rng = np.random.default_rng([seed, n_people, int(1000 * luck)])
    wrong = 0
    for _ in range(n_sets):
        arms = simulate(design, rng)
        for look, n_seeds in enumerate((2, 3, 5, 8), 1):
            rows = np.arange(n_seeds)
            now = {name: arm.of_seeds(rows) for name, arm in arms.items()}
            (row,) = judge(["a > b"], now, count_look=lambda *_, look=look: look)
            if row["verdict"] != "undecided":
                wrong += 1
                break
    return wrong / n_sets


EQUALITY = [
    TestDesign(n_people, n_seeds, luck, by_person, effect=0.03, accuracy=0.6)
    for n_people in (100, 300)
    for n_seeds in (2, 5)
    for luck in (0.0, 0.01)
    for by_person in (0.0, 0.1)
]


class Verdicts(NamedTuple):
    """How often a claim of equality got each verdict."""

    equal: float
    refuted: float


def equality(design: TestDesign, margin: float, n_sets: int, *, seed: int = 0) -> Verdicts:
    """Return the verdicts on 'a = b within margin on accuracy' where the design's effect is true."""
    rng = np.random.default_rng([seed, *design.__repr__().encode()])
    claim = f"a = b within {margin} on accuracy"
    verdicts = [judge([claim], simulate(design, rng))[0]["verdict"] for _ in range(n_sets)]
    return Verdicts(
        verdicts.count("practically equal") / n_sets, verdicts.count("refuted") / n_sets
    )


class Promise(NamedTuple):
    """Numbers of people or seeds that undecided claims named, and how often these then decide."""

    what: str
    named: float  # share of the undecided claims
    median: int
    decided: float  # mean over the numbers that were named


PROMISES = [
    TestDesign(30, 3, 0.0, 0.0, effect=0.03),
    TestDesign(60, 2, 0.01, 0.0, effect=0.04),
    TestDesign(60, 3, 0.01, 0.15, effect=0.04),
    TestDesign(100, 3, 0.02, 0.0, effect=0.03),
    TestDesign(100, 5, 0.01, 0.15, effect=0.03),
]


def promises(design: TestDesign, n_sets: int, *, seed: int = 0) -> Iterator[Promise]:
    """Yield how often the numbers decide that undecided claims name.

    A claim says what would decide "if the difference is real". So each number that was named is
    tried in as many new data sets as it was named for, whose true difference is the one that the
    claim saw. Only claims count whose difference is about the design's.
    """
    rng = np.random.default_rng([seed, *design.__repr__().encode()])
    named: dict[str, list[tuple[float, float]]] = {"n_groups": [], "n_seeds": []}
    for _ in range(4 * n_sets):
        (row,) = judge(["a > b"], simulate(design, rng))
        difference = row["difference"] or 0.0
        if row["needs"] is not None and abs(difference / design.effect - 1) < 0.25:
            for what, numbers in named.items():
                numbers.append((row["needs"][what] or np.inf, difference))
    for what, numbers in named.items():
        known = sorted(claim for claim in numbers if np.isfinite(claim[0]))
        if len(known) < 0.1 * len(numbers):
            continue
        field = "n_people" if what == "n_groups" else "n_seeds"
        most = 20 * getattr(design, field)  # more change nothing
        decided = 0
        for place in np.linspace(0, len(known) - 1, n_sets).round().astype(int):
            number, difference = known[place]
            likely = replace(design, effect=difference, **{field: min(int(number), most)})
            arms = simulate(likely, rng)
            decided += (paired_difference(arms["a"], arms["b"]).p_value or 0.0) < 0.10
        median = int(known[len(known) // 2][0])
        yield Promise(what, len(known) / len(numbers), median, decided / n_sets)


# -------------------------------------------------------------------------------------- main


def _coverage_lines(n_sets: int, *, fixed: bool) -> Iterator[str]:
    rates = []
    for design in COVERAGE:
        row = coverage(design, n_sets, fixed=fixed)
        rates.append(row.inside)
        yield (
            f"  {design}: {row.inside:.3f} (too low {row.too_low:.3f}, "
            f"too high {row.too_high:.3f}, width {row.width:.3f})"
        )
    kind = "sizes of the design" if fixed else "sizes by chance"
    yield (
        f"coverage, {kind}: mean {np.mean(rates):.3f}, {min(rates):.3f} to {max(rates):.3f}, "
        f"{len(rates)} designs x {n_sets}"
    )


def _rate_lines(name: str, designs: list[TestDesign], n_sets: int) -> Iterator[str]:
    rates = []
    for design in designs:
        rates.append(told_apart(design, n_sets).decided)
        yield f"  {design}: {rates[-1]:.3f}"
    by_seeds = {
        n: [r for d, r in zip(designs, rates, strict=True) if d.n_seeds == n]
        for n in sorted({d.n_seeds for d in designs})
    }
    for n, some in by_seeds.items():
        yield f"{name}, {n} seeds: mean {np.mean(some):.3f}, {min(some):.3f} to {max(some):.3f}"
    yield f"{name}: mean {np.mean(rates):.3f}, {min(rates):.3f} to {max(rates):.3f}, {len(rates)} designs x {n_sets}"


def _look_lines(n_sets: int) -> Iterator[str]:
    for n_people, luck in ((100, 0.0), (100, 0.01), (300, 0.02), (30, 0.01)):
        rate = looks(n_sets, n_people=n_people, luck=luck)
        yield f"looks at 2, 3, 5, 8 seeds, {n_people} people, luck {luck}: wrong in {rate:.3f} of {n_sets}"


def _equality_lines(n_sets: int) -> Iterator[str]:
    rows = []
    for design in EQUALITY:
        edge = equality(design, design.effect, n_sets)
        same = equality(replace(design, effect=0.0), design.effect, n_sets)
        rows.append((edge.equal, edge.refuted, same.equal, same.refuted))
        yield (
            f"  {design}: at the margin's edge equal {edge.equal:.3f}, refuted {edge.refuted:.3f}; "
            f"of equal arms equal {same.equal:.3f}, refuted {same.refuted:.3f}"
        )
    mean = np.mean(rows, axis=0)
    most = np.max(rows, axis=0)
    yield (
        f"equality at the edge: equal {mean[0]:.3f} (at most {most[0]:.3f}), refuted {mean[1]:.3f} "
        f"(at most {most[1]:.3f}); of equal arms equal {mean[2]:.3f}, refuted {mean[3]:.3f}"
    )


def _promise_lines(n_sets: int) -> Iterator[str]:
    for design in PROMISES:
        for row in promises(design, n_sets):
            yield (
                f"  {design}: {row.what} named for {row.named:.2f}, median {row.median}, "
                f"decides in {row.decided:.3f}"
            )


def main() -> None:
    """Run the studies that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=600)
    parser.add_argument(
        "--only", default="coverage,level,training_set,splits,power,equality,looks,promises"
    )
    asked = parser.parse_args()
    studies = {
        "coverage": _coverage_lines(asked.sets, fixed=False),
        "coverage_fixed": _coverage_lines(asked.sets, fixed=True),
        "level": _rate_lines("level", LEVEL, asked.sets),
        "training_set": _rate_lines("level, training-set luck", TRAINING_SET, asked.sets),
        "splits": _rate_lines("level, arms of two splits", SPLITS, asked.sets),
        "power": _rate_lines("power", POWER, asked.sets),
        "equality": _equality_lines(asked.sets),
        "looks": _look_lines(asked.sets),
        "promises": _promise_lines(asked.sets),
    }
    for name in asked.only.split(","):
        start = time.monotonic()
        for line in studies[name]:
            print(line, flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
