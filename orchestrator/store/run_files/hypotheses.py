"""The rows of hypotheses.json."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from orchestrator.store.run_files.records import FileRecord


class Hypothesis(FileRecord):
    """A claim of the spec and its verdict."""

    claim: str = ""
    verdict: str = ""
    metric: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    n_groups: int | None = None
    n_samples: int | None = None
    n_left_out: int | None = None
    margin: float | None = None  # of a claim of practical equality
    look: int | None = None  # 1 for the first
    n_seeds: int | None = None
    rests_on: str = ""  # people, people and trainings, or folds
    luck_of_one_training: float | None = None  # standard deviation of one checkpoint's score
    facts: dict[str, Any] = {}  # the whole row

    @model_validator(mode="before")
    @classmethod
    def _keep_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "facts": row}

    @property
    def p(self) -> float | None:
        """The adjusted p value, or the plain one if it was not adjusted."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted
