"""The rows of trials.parquet and curves.parquet."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

from pydantic import model_validator

from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.tables import TIME_COLUMNS

_LABEL_SCORE = "val_macro_f1_"


class TrialRow(FileRecord):
    """One row of trials.parquet."""

    trial_id: str = ""
    variant: str = ""
    phase: str = ""  # search | confirm
    setting: str = ""
    seed: int | None = None
    fold: int | None = None
    status: str = ""
    params: dict[str, Any] = {}  # short name -> sampled value
    epochs: int | None = None
    wall_s: float | None = None
    val_macro_f1: float | None = None
    val_accuracy: float | None = None
    val_score: float | None = None  # by the score of the spec; None where that is macro F1
    fold_score: float | None = None  # of a search training that held out a fold
    n_params: float | None = None  # where the search aims at few of them
    val_loss: float | None = None
    error: str = ""
    label_scores: dict[str, float] = {}  # label -> its macro F1
    times: dict[str, float] = {}  # part -> seconds
    n_folds: int = 0  # that a row of a setting is the mean of

    @property
    def score(self) -> float | None:
        """What the search maximizes, of the best epoch."""
        if self.fold_score is not None:
            return self.fold_score
        return self.val_macro_f1 if self.val_score is None else self.val_score

    @model_validator(mode="before")
    @classmethod
    def _read_columns(cls, row: dict[str, Any]) -> dict[str, Any]:
        scores = {}
        for name, value in row.items():
            if name.startswith(_LABEL_SCORE):
                scores[name.removeprefix(_LABEL_SCORE)] = value
        times = {}
        for name in TIME_COLUMNS:
            if row.get(name) is not None:
                times[name.removesuffix("_s")] = row[name]
        params = _short_params(row.get("params"))
        return {**row, "params": params, "label_scores": scores, "times": times}


def searched_settings(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """Return one row per search trial; of folds, one per setting that has scores, with their mean."""
    rows = []
    folds: dict[str, list[TrialRow]] = {}
    for trial in trials:
        if trial.phase != "search":
            continue
        if trial.fold is None:
            rows.append(trial)
        elif trial.fold_score is not None:
            folds.setdefault(trial.setting, []).append(trial)
    for setting, of_setting in folds.items():
        scores = {(trial.seed, trial.fold): trial.fold_score or 0.0 for trial in of_setting}
        mean = statistics.fmean(scores.values())
        # a later trial of the same setting has the same folds
        row = of_setting[0].model_copy(
            update={"trial_id": setting, "fold": None, "fold_score": mean, "n_folds": len(scores)}
        )
        rows.append(row)
    return rows


def searched_sizes(trials: Iterable[TrialRow]) -> dict[str, TrialRow]:
    """Return setting -> its row with score and parameters, of settings that are complete.

    Of a setting with several trials the best one counts, as it does for finalists. Empty where the
    search aims at the score alone.
    """
    rows = [row for row in searched_settings(trials) if row.n_params and row.score is not None]
    n_folds = max((row.n_folds for row in rows), default=0)
    best: dict[str, TrialRow] = {}
    for row in rows:
        if row.n_folds != n_folds:
            continue
        known = best.get(row.setting)
        if known is None or (row.score or 0.0) > (known.score or 0.0):
            best[row.setting] = row
    return best


class EpochRow(FileRecord):
    """One row of curves.parquet."""

    trial_id: str = ""
    epoch: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    val_macro_f1: float | None = None
    val_score: float | None = None

    @property
    def score(self) -> float | None:
        """What the search maximizes."""
        return self.val_macro_f1 if self.val_score is None else self.val_score


def _short_params(text: Any) -> dict[str, Any]:
    """Return sampled values, written as JSON, by their names without `train.`."""
    try:
        params = json.loads(text or "{}")
    except (TypeError, ValueError):
        return {}
    if not isinstance(params, dict):
        return {}
    return {name.removeprefix("train."): value for name, value in params.items()}
