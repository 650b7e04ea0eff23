"""Scores with their intervals, as several files hold them."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from orchestrator.store.run_files.records import FileRecord, number


class Score(FileRecord):
    """A score with its interval; a metric without an interval has its estimate alone."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.9
    n_groups: int | None = None
    n_samples: int | None = None
    too_narrow: bool = False  # photos were resampled, because no groups are known
    too_few_people: bool = False  # a class has fewer than 7 groups: the interval may cover less

    @model_validator(mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        """Take a bare number as the estimate."""
        return value if isinstance(value, dict | Score) else {"estimate": value}


class Corrected(Score):
    """A score with the bias of the selection taken off."""

    naive: float | None = None
    n_candidates: int | None = None
    optimism: float | None = None


class CheckpointCurve(Score):
    """The score by checkpoints per member, and where it leads with as many as are deployed."""

    scores: tuple[float, ...] = ()  # for 1, 2, ... checkpoints
    n_deployed: int | None = None
    advice: str = ""


class Scores(FileRecord):
    """The scores of one ensemble on one set of photos, by metric."""

    part: str = ""  # of the test set: whole, private or public; empty for other sets
    metrics: dict[str, Score] = {}

    @model_validator(mode="before")
    @classmethod
    def _collect_metrics(cls, value: Any) -> Any:
        """Read an object {part, metric: score}; an old file has one score, of macro F1."""
        if not isinstance(value, dict):
            return {}
        if number(value.get("estimate")) is not None:
            value = {"macro_f1": value}
        metrics = {}
        for name, item in value.items():
            score = Score.model_validate(item)
            if score.estimate is not None:
                metrics[name] = score
        return {"part": value.get("part"), "metrics": metrics}

    @property
    def macro_f1(self) -> Score | None:
        return self.metrics.get("macro_f1")

    @property
    def headline(self) -> Score | None:
        """The score that the spec goes by."""
        return self.metrics.get("score", self.macro_f1)

    @property
    def accuracy(self) -> Score | None:
        return self.metrics.get("accuracy")


class Difference(FileRecord):
    """The difference of two scores with its interval."""

    over: str = ""  # the setting it is compared with
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    corrected_difference: float | None = None  # the best member chosen on other people
    corrected_low: float | None = None
    corrected_high: float | None = None

    @property
    def honest(self) -> Difference:
        """The corrected difference if there is one."""
        if self.corrected_difference is None:
            return self
        return Difference(
            over=self.over,
            difference=self.corrected_difference,
            low=self.corrected_low,
            high=self.corrected_high,
        )
