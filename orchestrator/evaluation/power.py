"""How much more data would decide what is undecided."""

from __future__ import annotations

import math
from typing import Any

POWER = 0.8
_MOST = 1_000_000  # beyond it "more people" is no advice


def needed(
    difference: float,
    *,
    standard_error: float,
    standard_error_one_seed: float | None,
    n_groups: int,
    n_seeds: int,
    alpha: float,
    power: float = POWER,
) -> dict[str, Any]:
    """Return how many people, or how many seeds, would decide a difference of the size that was seen.

    The standard error falls with the square root of the number of people. Seeds average out only their own part of the
    variance: var(S seeds) = people + seeds / S, and the two parts follow from var(1 seed) and var(S seeds).

    Args:
        difference: as it was seen; nobody knows the true one.
        standard_error: of the difference, over all seeds.
        standard_error_one_seed: of the difference by one seed; None where there is only one.
        n_groups: people behind it.
        n_seeds: seeds behind it.
        alpha: two-sided level of the test, after correction for the number of claims.
        power: probability to decide.

    Returns:
        n_groups and n_seeds in total, each with the other kept as it is; None where no number would do: the difference
        is too near to zero, or seeds alone cannot.
    """
    from scipy.stats import norm  # noqa: PLC0415

    wanted = abs(difference) / float(norm.ppf(1 - alpha / 2) + norm.ppf(power))
    people: int | None = None
    seeds: int | None = None
    if wanted > 0:
        exact = n_groups * (standard_error / wanted) ** 2
        people = max(math.ceil(exact), n_groups + 1) if exact <= _MOST else None
        if standard_error_one_seed is not None and n_seeds > 1:
            of_seeds = max(
                0.0, (standard_error_one_seed**2 - standard_error**2) / (1 - 1 / n_seeds)
            )
            of_people = max(0.0, standard_error_one_seed**2 - of_seeds)
            room = wanted**2 - of_people
            if room > 0 and of_seeds / room <= _MOST:
                seeds = max(math.ceil(of_seeds / room), n_seeds + 1)
    return {"n_groups": people, "n_seeds": seeds, "power": power}
