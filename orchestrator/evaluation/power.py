"""How much more data would decide what is undecided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from orchestrator.evaluation.paired_test import PairedTest

POWER = 0.8
_MOST_GROUPS = 1_000_000  # beyond it "more people" is no advice
_MOST_SEEDS = 1_000


@dataclass(frozen=True)
class Needs:
    """What would decide a difference of the size that was seen, with the given power.

    `n_groups` and `n_seeds` are totals, each with the other kept as it is. `both` raises the two by
    one factor, where neither alone would do. None: no number decides.
    """

    n_groups: int | None
    n_seeds: int | None
    power: float
    both: dict[str, int] | None

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Parts:
    """The parts of a variance, each at the numbers of people and seeds that were seen."""

    steady: float  # differs by person: falls with people
    noise: float  # differs by person and training: falls with both
    luck: float  # differs by training: falls with seeds
    n_groups: int
    n_seeds: int
    n_folds: int

    def power(self, difference: float, alpha: float, n_groups: float, n_seeds: float) -> float:
        """Return the chance to decide with other numbers of people and seeds."""
        from scipy.special import stdtr, stdtrit  # noqa: PLC0415

        more_groups = n_groups / self.n_groups
        more_seeds = n_seeds / self.n_seeds
        people = (self.steady + self.noise / more_seeds) / more_groups
        luck = self.luck / more_seeds
        if people + luck <= 0:
            return 0.0
        spread = people**2 / max(n_groups - 1, 1)
        if luck > 0:
            # the test estimates luck and noise together, and subtracts the noise
            train = luck + self.noise / more_seeds / more_groups
            spread += train**2 / (2 * self.n_folds * max(n_seeds - 1, 1))
        df = max(1.0, (people + luck) ** 2 / spread)
        ratio = difference / math.sqrt(people + luck)
        return float(stdtr(df, ratio - float(stdtrit(df, 1 - alpha / 2))))


def needed(
    tested: PairedTest,
    *,
    alpha: float,
    alpha_more_seeds: float | None = None,
    difference: float | None = None,
    power: float = POWER,
) -> Needs:
    """Return how many people, or how many seeds, would decide a difference of the size seen.

    People do not lower the luck of training, and seeds do not lower the people's part.

    Args:
        tested: the comparison that was undecided.
        alpha: two-sided level of a first look, after correction for the number of claims. More
            people are new data.
        alpha_more_seeds: level of the next look at the same people; `alpha` where None.
        difference: to decide; the one that was seen where None. Nobody knows the true one.
        power: probability to decide.
    """
    parts = _parts(tested)
    distance = abs(tested.difference if difference is None else difference)
    if parts is None or distance == 0:
        return Needs(None, None, power, None)

    def decides(n_groups: float, n_seeds: float) -> bool:
        return parts.power(distance, alpha, n_groups, n_seeds) >= power

    groups = parts.n_groups
    seeds = parts.n_seeds
    people = _first(lambda n: decides(n, seeds), groups + 1, _MOST_GROUPS)
    if seeds < 2:
        return Needs(people, None, power, None)
    steadier = replace(parts, luck=_likely_luck(tested))
    level = alpha_more_seeds or alpha
    trainings = _first(
        lambda n: steadier.power(distance, level, groups, n) >= power, seeds + 1, _MOST_SEEDS
    )
    both = None
    if people is None and trainings is None:
        both_seeds = _first(lambda n: decides(groups * n / seeds, n), seeds + 1, _MOST_SEEDS)
        if both_seeds is not None and groups * both_seeds / seeds <= _MOST_GROUPS:
            both = {"n_groups": math.ceil(groups * both_seeds / seeds), "n_seeds": both_seeds}
    return Needs(people, trainings, power, both)


def _parts(tested: PairedTest) -> _Parts | None:
    """Return the parts of the variance; None where they cannot be told apart.

    The luck is the mean of its posterior, a scaled inverse chi-square. A number of people exists
    only where the luck looks small, so the unbiased estimate names too few.
    """
    if tested.v_people is None or tested.rests_on == "folds":
        return None
    noise = min(tested.v_noise or 0.0, tested.v_people)
    df = 2 * tested.n_folds * (tested.n_seeds - 1)
    luck = _luck(tested, df / max(df - 2, 1))
    steady = tested.v_people - noise
    return _Parts(steady, noise, luck, tested.n_groups, tested.n_seeds, tested.n_folds)


def _likely_luck(tested: PairedTest) -> float:
    """Return the luck by the estimate of a variance with the smallest mean squared error.

    A claim is undecided more often where chance makes the luck look large, so planning with the
    unbiased estimate names too many seeds.
    """
    df = 2 * tested.n_folds * (tested.n_seeds - 1)
    return _luck(tested, df / (df + 2))


def _luck(tested: PairedTest, scale: float) -> float:
    """Return the variance by trainings times a factor, without its noise, never below 0."""
    return max(0.0, (tested.v_train or 0.0) * scale - (tested.v_noise or 0.0))


def _first(decides: Callable[[int], bool], least: int, most: int) -> int | None:
    """Return the smallest number from `least` to `most` that decides; None where none does."""
    if not decides(most):
        return None
    low = least
    high = most
    while low < high:
        middle = (low + high) // 2
        if decides(middle):
            high = middle
        else:
            low = middle + 1
    return low
