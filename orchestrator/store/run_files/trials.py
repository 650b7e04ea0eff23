"""The rows of trials.parquet and curves.parquet."""

from __future__ import annotations

import json
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
    val_loss: float | None = None
    error: str = ""
    label_scores: dict[str, float] = {}  # label -> its macro F1
    times: dict[str, float] = {}  # part -> seconds

    @property
    def score(self) -> float | None:
        """What the search maximizes, of the best epoch."""
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
