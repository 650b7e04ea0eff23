"""Simulate the race of finalists with the functions that confirm calls.

`python -m tests.campaign.race [--sets 100]` prints for every design how often one of the best
finalists is stopped (nominal: at most 0.10), and which share of the trainings is saved.
tests/orchestrator/evaluation/test_race.py runs a short form.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.race import RaceRules, stop_losers
from tests.campaign.verdicts import N_PHOTOS, TestDesign, deal, predictions

FIELDS = {
    "all equal": (0.0,) * 5,
    "one best by .01": (0.0, *(-0.01,) * 4),
    "one best by .03": (0.0, *(-0.03,) * 4),
    "a ladder": (0.0, -0.01, -0.02, -0.04, -0.08),
    "two good, eight bad": (0.0, 0.0, *(-0.06,) * 8),
}
"""Name -> the accuracy of every finalist less that of the best."""


class RaceDesign(NamedTuple):
    """Finalists of known worth, trained `n_seeds` x 3 times on the same people."""

    field: str
    n_people: int
    n_seeds: int
    luck: float
    arm_by_person: float
    n_members: int = 1

    def __str__(self) -> str:
        return (
            f"{self.field:<20} {self.n_people:>3} people, {self.n_seeds} seeds, luck {self.luck}, "
            f"arm by person {self.arm_by_person}, {self.n_members} members"
        )


DESIGNS = [
    RaceDesign(field, n_people, n_seeds, luck, by_person, n_members)
    for field in FIELDS
    for n_people in (50, 200)
    for n_seeds in (2, 3, 5)
    for luck, by_person in ((0.0, 0.0), (0.02, 0.15))
    for n_members in (1, 3)
]


def simulate(design: RaceDesign, rng: np.random.Generator) -> dict[str, Predictions]:
    """Return all finalists' out-of-fold predictions; names are in the order of their worth."""
    facts = TestDesign(design.n_people, design.n_seeds, design.luck, design.arm_by_person)
    targets = rng.integers(0, facts.n_classes, design.n_people * N_PHOTOS)
    owners = np.repeat(np.arange(design.n_people), N_PHOTOS)
    folds = deal(facts, rng)
    ease = 0.1 * rng.normal(size=design.n_people)
    arms = {}
    for number, shift in enumerate(FIELDS[design.field]):
        luck = design.luck * rng.normal(size=(design.n_seeds, facts.n_folds))
        person = ease + design.arm_by_person * rng.normal(size=design.n_people)
        skill = facts.accuracy + shift + person + np.take_along_axis(luck, folds, axis=1)
        hit = rng.random((design.n_seeds, len(targets))) < np.repeat(skill, N_PHOTOS, axis=1)
        wrong = (targets + rng.integers(1, facts.n_classes, hit.shape)) % facts.n_classes
        preds = np.where(hit, targets, wrong)
        arms[f"arm{number:02}"] = predictions(
            targets, preds, owners, facts.n_classes, np.repeat(folds, N_PHOTOS, axis=1)
        )
    return arms


class Outcome(NamedTuple):
    """What a race does in one design."""

    stops_a_best: float  # the rate of those that belong among the best; equal ones are averaged
    saves: float  # share of the trainings of a confirmation without a race


def race(design: RaceDesign, n_sets: int, *, seed: int = 0) -> Outcome:
    """Return how often one of the best is stopped, and how many trainings are saved."""
    rng = np.random.default_rng([seed, *repr(design).encode()])
    worth = FIELDS[design.field]
    n_looks = design.n_seeds - 1
    rules = RaceRules(len(worth), n_looks, design.n_members, ())
    # all that are as good as the last of the best belong among them
    border = sorted(worth, reverse=True)[design.n_members - 1]
    best = [f"arm{i:02}" for i, value in enumerate(worth) if value >= border]
    n_stopped = dict.fromkeys(best, 0)
    n_trainings = 0
    for _ in range(n_sets):
        arms = simulate(design, rng)
        for n_seeds in range(1, design.n_seeds + 1):
            n_trainings += len(arms)
            if n_seeds == design.n_seeds:
                break
            now = {name: arm.of_seeds(np.arange(n_seeds)) for name, arm in arms.items()}
            for row in stop_losers(now, rules, n_seeds):
                del arms[row.setting]
                if row.setting in n_stopped:
                    n_stopped[row.setting] += 1
    whole = n_sets * len(worth) * design.n_seeds
    rates: dict[float, list[float]] = {}
    for i, value in enumerate(worth):
        if value >= border:
            rates.setdefault(value, []).append(n_stopped[f"arm{i:02}"] / n_sets)
    stops = max(float(np.mean(of_equal)) for of_equal in rates.values())
    return Outcome(stops, 1 - n_trainings / whole)


def main() -> None:
    """Print all designs and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100)
    asked = parser.parse_args()
    rates = []
    saved: dict[str, list[float]] = {}
    for design in DESIGNS:
        outcome = race(design, asked.sets)
        rates.append(outcome.stops_a_best)
        saved.setdefault(f"{design.field}, {design.n_members} members", []).append(outcome.saves)
        print(
            f"  {design}: stops one of the best in {outcome.stops_a_best:.3f}, "
            f"saves {outcome.saves:.2f}",
            flush=True,
        )
    for name, shares in saved.items():
        print(f"{name}: saves {np.mean(shares):.2f} of the trainings, at most {max(shares):.2f}")
    print(
        f"race: one of the best is stopped in {np.mean(rates):.3f}, at most {max(rates):.3f}, "
        f"of {len(rates)} designs x {asked.sets}"
    )


if __name__ == "__main__":
    main()
