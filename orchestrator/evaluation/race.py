"""A race of finalists: after each seed those are stopped that can hardly be among the best.

A finalist is stopped once as many others as there are members are better by the two-way test. The
level of a look is 0.10 divided by the number of rivals and by the number of looks (Bonferroni), so
a finalist that belongs among the best is stopped in at most 10 % of races, all looks together.
Source for racing: Maron and Moore 1997, "The racing algorithm".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from orchestrator.evaluation.metrics import Metric
from orchestrator.evaluation.paired_test import PairedTest, paired_difference
from orchestrator.evaluation.predictions import Predictions

LEVEL = 0.10
"""How often a finalist that belongs among the best may be stopped, all looks together."""


@dataclass(frozen=True)
class Stopped:
    """A finalist that left the race, and the test that decided it."""

    setting: str
    look: int  # 1 for the first
    n_seeds: int  # that it was trained with
    behind: str  # the worst of the finalists that are better
    difference: float  # its score minus that one's
    p_value: float  # one-sided
    p_adjusted: float  # for rivals and looks; below 0.10

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RaceResult:
    """What a race did: for the certificate."""

    n_finalists: int
    n_looks: int  # that were planned
    n_looks_taken: int
    n_trainings: int  # that a confirmation without a race has
    n_saved: int  # trainings that were not needed
    stopped: tuple[Stopped, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        stopped = [row.to_json() for row in self.stopped]
        return asdict(self) | {"level": LEVEL, "stopped": stopped}


@dataclass(frozen=True)
class RaceRules:
    """What is fixed before a race begins."""

    n_finalists: int
    n_looks: int
    n_members: int  # of the ensemble
    protected: Collection[str]  # settings that are never stopped

    @property
    def n_tests(self) -> int:
        """Tests that a finalist may lose by, all looks together."""
        return max(1, self.n_finalists - 1) * max(1, self.n_looks)


def stop_losers(
    arms: Mapping[str, Predictions], rules: RaceRules, look: int, metric: Metric = "macro_f1"
) -> list[Stopped]:
    """Return the finalists that a look stops, in the order of their names.

    Args:
        arms: the finalists still in the race, each with all seeds so far.
        rules: of the race.
        look: 1 for the first.
        metric: which score they race for.
    """
    tests: dict[tuple[str, str], PairedTest] = {}
    names = sorted(arms)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            tests[first, second] = paired_difference(arms[first], arms[second], metric=metric)
    stopped = []
    for setting in names:
        if setting in rules.protected:
            continue
        defeats = []
        for (first, second), tested in tests.items():
            if setting not in (first, second) or tested.p_value is None:
                continue
            rival = second if setting == first else first
            difference = tested.difference if setting == first else -tested.difference
            if difference < 0:
                defeats.append((tested.p_value / 2, rival, difference))
        if len(defeats) < rules.n_members:
            continue
        p_value, rival, difference = sorted(defeats)[rules.n_members - 1]
        adjusted = min(1.0, p_value * rules.n_tests)
        if adjusted < LEVEL:
            n_seeds = len(arms[setting].preds)
            stopped.append(Stopped(setting, look, n_seeds, rival, difference, p_value, adjusted))
    return stopped
