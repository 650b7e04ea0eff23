"""The test of two arms: a two-way t test over people and trainings.

Two things make equal arms look different: who was photographed, and how each training turned out.
The variance of a difference is the sum of both parts, and its degrees of freedom follow from them.
Sources: Cameron, Gelbach and Miller 2011; Obuchowski, Gallas and Hillis 2012; Owen 2007;
Satterthwaite 1946 for the degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.base.errors import UserError
from orchestrator.base.json_types import Json
from orchestrator.base.wording import signed
from orchestrator.evaluation.metrics import (
    LEVEL,
    Floats,
    Ints,
    Metric,
    Owners,
    counts,
    linear_shares,
    owners_of,
    score,
)
from orchestrator.evaluation.predictions import Predictions, align

_Arms = tuple[Predictions, Predictions]
NEEDS_MORE = "needs 2 seeds or 5 folds"
_SMALLEST_P = 1e-9
"""Student's t says nothing of rarer events; a p value is never 0."""


@dataclass(frozen=True)
class PairedTest:
    """The difference of two arms, first minus second, on the samples that both predicted.

    low, high, p_value, standard_error and df are null where nothing can be tested; `reason` says
    why. The interval is one of 90 %, and leaves out 0 exactly where p_value is below 0.10.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None  # two-sided
    n_groups: int
    n_samples: int
    n_left_out: int  # samples that one arm alone predicted
    too_narrow: bool  # no groups are known: photos of one person count as independent
    n_seeds: int
    standard_error: float | None
    standard_error_one_seed: float | None  # of a single seed; null where there is one seed
    df: float | None
    rests_on: str  # people, people and trainings, or folds
    n_folds: int  # 1 where no folds are known
    folds_anew: bool  # dealt anew for every seed
    v_people: float | None  # variance by people, noise included
    v_train: float | None  # variance by trainings, noise included
    v_noise: float | None  # the part that both hold
    luck_of_one_training: float | None  # standard deviation of the score of one checkpoint
    reason: str | None

    def to_json(self) -> Json:
        """Return plain data."""
        return asdict(self)


class _Variance(NamedTuple):
    """A variance of the difference with its degrees of freedom."""

    value: float
    df: float


class _Trainings(NamedTuple):
    """What the trainings of both arms add to the variance."""

    train: float
    noise: float

    @property
    def luck(self) -> float:
        """What is left without the noise, never below 0."""
        return max(0.0, self.train - self.noise)


class _Folds(NamedTuple):
    """How the folds of both arms were dealt."""

    n: int  # of a seed; 1 where no folds are known
    are_anew: bool  # for every seed
    are_common: bool  # both arms hold the same samples out together


@dataclass(frozen=True)
class _Judged:
    """Which variance a difference has; None, with the reason, where it cannot be told."""

    rests_on: str
    variance: _Variance | None
    trainings: _Trainings | None = None
    reason: str | None = None


def paired_difference(
    first: Predictions, second: Predictions, *, metric: Metric = "macro_f1"
) -> PairedTest:
    """Compare two arms on the samples that both predicted, by the seeds that both have.

    With two or more seeds the variance is that of people and that of trainings, also where the arms
    have other folds. With one seed and common folds, folds are the units. With one seed and no
    folds, as for two votes or on a test set, it is that of people alone.

    Args:
        first: with `folds` where its rows are out of fold.
        second: likewise.
        metric: which score.

    Raises:
        UserError: they have no sample in common, or disagree on a target.
    """
    n_answered = len(set(first.sample_ids) | set(second.sample_ids))
    first, second = align({"the first arm": first, "the second arm": second}).values()
    if not first.sample_ids:
        raise UserError("photos that both arms predicted were required, found none")
    arms = _of_common_seeds(first, second)
    owners = owners_of(first)
    n_seeds = len(arms[0].preds)
    n_classes = max(first.n_classes, second.n_classes)
    tallies = np.stack([_tallies(arm, n_classes, metric) for arm in arms])
    scores = score(tallies, metric).mean(1)
    middle = tallies.mean((0, 1))
    shares = [linear_shares(arm.targets, arm.preds, middle, metric) for arm in arms]
    gaps = np.mean(shares[0] - shares[1], axis=0)
    difference = float(scores[0] - scores[1])
    people = _people_variance(gaps, owners)
    folds = _folds_of(arms)
    judged = _judge(arms, shares, gaps, difference, people, owners, folds)
    tested = _test(difference, judged.variance, people)
    trained = _describe(judged.trainings, n_seeds, folds.n)
    return PairedTest(
        difference=difference,
        low=tested.low,
        high=tested.high,
        p_value=tested.p_value,
        n_groups=owners.n_groups,
        n_samples=len(first.targets),
        n_left_out=n_answered - len(first.targets),
        too_narrow=first.groups is None,
        n_seeds=n_seeds,
        standard_error=tested.standard_error,
        standard_error_one_seed=_one_seed(people, judged.trainings, n_seeds),
        df=tested.df,
        rests_on=judged.rests_on,
        n_folds=folds.n,
        folds_anew=folds.are_anew,
        v_people=tested.v_people,
        v_train=trained.train,
        v_noise=trained.noise,
        luck_of_one_training=trained.luck_of_one,
        reason=judged.reason,
    )


def _judge(
    arms: _Arms,
    shares: Sequence[Floats],
    gaps: Floats,
    difference: float,
    people: float,
    owners: Owners,
    folds: _Folds,
) -> _Judged:
    """Return the variance of a difference."""
    n_seeds = len(arms[0].preds)
    floor = (difference / owners.n_groups) ** 2  # as if one group might have gone the other way
    if owners.n_groups < 2:
        return _Judged("people", None, reason="needs 2 groups or more")
    if n_seeds > 1:
        trainings = _training_variance(arms, shares, owners.of_sample)
        total = _total(max(people, floor), trainings, owners.n_groups, n_seeds, folds.n)
        return _Judged("people and trainings", total, trainings)
    folds_of_first = arms[0].folds
    if folds.n == 1 or folds_of_first is None:
        return _Judged("people", _Variance(max(people, floor), owners.n_groups - 1))
    if not folds.are_common:
        reason = (
            f"needs 2 seeds: the arms have other folds; the difference seen is {signed(difference)}"
        )
        return _Judged("folds", None, reason=reason)
    if folds.n == 2:
        reason = f"{NEEDS_MORE}; the difference seen is {signed(difference)}"
        return _Judged("folds", None, reason=reason)
    of_folds = _fold_variance(gaps, folds_of_first[0])
    return _Judged("folds", _Variance(max(of_folds, floor), folds.n - 1))


def tail(distance: float, standard_error: float, df: float) -> float:
    """Return the chance that Student's t lies above distance / standard_error, never 0."""
    from scipy.special import stdtr  # noqa: PLC0415

    if standard_error == 0:
        chances = {-1.0: 1.0, 0.0: 0.5, 1.0: _SMALLEST_P}
        return chances[float(np.sign(distance))]
    return float(max(stdtr(df, -distance / standard_error), _SMALLEST_P))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for testing a family (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def _tallies(arm: Predictions, n_classes: int, metric: Metric) -> Floats:
    """Return the counts of all samples by seed, (S, 3, C)."""
    zeros = np.zeros(len(arm.targets), np.int64)
    tallies = [counts(arm.targets, preds, zeros, 1, n_classes, metric)[0] for preds in arm.preds]
    return np.stack(tallies)


def _of_common_seeds(first: Predictions, second: Predictions) -> _Arms:
    """Return both arms by the seeds that both have; by their first rows where seeds differ."""
    n_seeds = min(len(first.preds), len(second.preds))
    rows = np.arange(n_seeds)
    if first.seeds is not None and second.seeds is not None:
        common = sorted(set(first.seeds) & set(second.seeds))
        if common:
            rows_of_first = np.array([first.seeds.index(seed) for seed in common])
            rows_of_second = np.array([second.seeds.index(seed) for seed in common])
            return first.of_seeds(rows_of_first), second.of_seeds(rows_of_second)
    return first.of_seeds(rows), second.of_seeds(rows)


def _people_variance(gaps: Floats, owners: Owners) -> float:
    """Return the variance of the summed gaps (N,) over which groups were photographed."""
    n_groups = owners.n_groups
    if n_groups < 2:
        return 0.0
    per_group = np.bincount(owners.of_sample, weights=gaps, minlength=n_groups)
    return float(n_groups / (n_groups - 1) * ((per_group - per_group.mean()) ** 2).sum())


def _folds_of(arms: _Arms) -> _Folds:
    """Return how the folds of both arms were dealt, with the smaller number of folds."""
    first = arms[0].folds
    second = arms[1].folds
    if first is None or second is None:
        return _Folds(1, are_anew=False, are_common=False)
    n_folds = min(_n_folds(first), _n_folds(second))
    is_common = np.array_equal(first, second)
    return _Folds(n_folds, _is_anew(first) and _is_anew(second), is_common)


def _n_folds(folds: Ints) -> int:
    return max(len(np.unique(row)) for row in folds)


def _is_anew(folds: Ints) -> bool:
    """Return True if the folds of some seed are not those of the first seed."""
    return bool((folds != folds[0]).any())


def _training_variance(arms: _Arms, shares: Sequence[Floats], owners: Ints) -> _Trainings:
    """Return what the luck of trainings and noise add, summed over both arms.

    The shares of a seed differ from their mean over seeds; summed over a fold of this arm, that is
    the luck of its training, and noise; summed in squares over groups, it is the noise alone.
    """
    n_seeds = len(arms[0].preds)
    train = 0.0
    noise = 0.0
    for arm, share in zip(arms, shares, strict=True):
        folds = np.zeros_like(arm.preds) if arm.folds is None else arm.folds
        one_deal = 1 / _n_folds(folds) if _is_anew(folds) else 1.0
        scale = (n_seeds - 1) * (n_seeds - 1 + one_deal)
        rest = share - share.mean(0)
        for fold, of_seed in zip(folds, rest, strict=True):
            train += float((np.bincount(fold, weights=of_seed) ** 2).sum()) / scale
            noise += float((np.bincount(owners, weights=of_seed) ** 2).sum()) / scale
    return _Trainings(train, noise)


def _total(
    people: float, trainings: _Trainings, n_groups: int, n_seeds: int, n_folds: int
) -> _Variance:
    """Add both parts; degrees of freedom by Satterthwaite, at least one.

    The luck is a difference of two estimates, so for arms that answer almost alike the formula goes
    below one degree, and an interval would reach beyond any score.
    """
    spread = people**2 / max(n_groups - 1, 1)
    if trainings.luck > 0:
        spread += trainings.train**2 / (2 * n_folds * (n_seeds - 1))
    total = people + trainings.luck
    if spread <= 0:
        return _Variance(total, max(n_groups - 1, 1))
    return _Variance(total, max(1.0, total**2 / spread))


def _fold_variance(gaps: Floats, folds: Ints) -> float:
    """Return the variance of the difference with folds as the units."""
    _, number = np.unique(folds, return_inverse=True)
    sums = np.bincount(number, weights=gaps)
    n_folds = len(sums)
    return float(n_folds / (n_folds - 1) * ((sums - sums.mean()) ** 2).sum())


def _one_seed(people: float, trainings: _Trainings | None, n_seeds: int) -> float | None:
    """Return the standard error that a single seed would have."""
    if trainings is None:
        return None
    steady = max(0.0, people - trainings.noise)
    return float(np.sqrt(steady + n_seeds * (min(trainings.noise, people) + trainings.luck)))


class _Tested(NamedTuple):
    """What a variance says of a difference; all None where there is no variance."""

    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    standard_error: float | None = None
    df: float | None = None
    v_people: float | None = None


def _test(difference: float, variance: _Variance | None, people: float) -> _Tested:
    """Return the 90 % interval and the two-sided p value."""
    from scipy.special import stdtrit  # noqa: PLC0415

    if variance is None:
        return _Tested()
    error = float(np.sqrt(variance.value))
    reach = float(stdtrit(variance.df, (1 + LEVEL) / 2)) * error
    p_value = min(1.0, 2 * tail(abs(difference), error, variance.df))
    low = difference - reach
    return _Tested(low, difference + reach, p_value, error, float(variance.df), people)


class _Trained(NamedTuple):
    """What trainings add, as PairedTest states it; all None where they are not judged."""

    train: float | None = None
    noise: float | None = None
    luck_of_one: float | None = None


def _describe(trainings: _Trainings | None, n_seeds: int, n_folds: int) -> _Trained:
    """Return both variances, and the standard deviation of the score of one checkpoint."""
    if trainings is None:
        return _Trained()
    luck = float(np.sqrt(trainings.luck * n_seeds * n_folds / 2))
    return _Trained(trainings.train, trainings.noise, luck)
