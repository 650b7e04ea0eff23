"""The settings of a search that trains folds: their means, and which one is the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.store.event_types import FOLD_SCORE, Metrics
from orchestrator.store.ledger import TrialRecord


class FoldPlace(NamedTuple):
    """Which training of a setting a trial is."""

    setting: str
    seed: int
    fold: int


@dataclass(frozen=True, slots=True)
class FoldTraining:
    """A search training that held out a fold."""

    trial_id: str
    variant: str
    place: FoldPlace
    score: float | None  # on the people of role val in its fold; None while it is not complete


@dataclass(frozen=True, slots=True)
class FoldMean:
    """A setting by the folds that it was trained on so far."""

    setting: str
    variant: str
    trial_id: str  # of its first training that has a score
    score: float  # the mean over its folds
    n_folds: int


def place_of(phase: str, setting: str, seed: int, fold: int | None) -> FoldPlace | None:
    """Return the place of a search training that holds out a fold; None for all other trials."""
    if phase != "search" or fold is None:
        return None
    return FoldPlace(setting, seed, fold)


def score_of(status: str | None, metrics: Metrics | None) -> float | None:
    """Return the score of a training on its fold; None where it is not complete."""
    return (metrics or {}).get(FOLD_SCORE) if status == "COMPLETE" else None


def fold_trainings(trials: Iterable[TrialRecord]) -> list[FoldTraining]:
    """Return the search trainings that hold out a fold; none where settings have one training."""
    trainings = []
    for trial in trials:
        started = trial.started
        place = place_of(started.phase, started.setting, started.seed, started.fold)
        if place is not None:
            score = score_of(trial.status, trial.metrics)
            trainings.append(FoldTraining(trial.trial_id, trial.variant, place, score))
    return trainings


def fold_means(trainings: Iterable[FoldTraining]) -> list[FoldMean]:
    """Return the settings that have a score, in the order of their first trainings."""
    firsts: dict[str, FoldTraining] = {}
    scores: dict[str, dict[FoldPlace, float]] = {}  # a later trial of a setting has the same folds
    for training in trainings:
        if training.score is not None:
            setting = training.place.setting
            firsts.setdefault(setting, training)
            scores.setdefault(setting, {})[training.place] = training.score
    means = []
    for setting, of_setting in scores.items():
        first = firsts[setting]
        mean = math.fsum(of_setting.values()) / len(of_setting)
        means.append(FoldMean(setting, first.variant, first.trial_id, mean, len(of_setting)))
    return means


def best_setting(trainings: Iterable[FoldTraining]) -> FoldMean | None:
    """Return the setting with the highest mean, of those with the most folds; None before a score.

    Fewer folds are no rival: one of them may be easy. Of equal settings it is the one that comes
    first as a finalist.
    """
    means = fold_means(trainings)
    most = max((mean.n_folds for mean in means), default=0)
    whole = [mean for mean in means if mean.n_folds == most]
    return min(whole, key=lambda mean: (-mean.score, mean.setting), default=None)
