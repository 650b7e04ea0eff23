"""The scores of one set of answers: over the joint class and per label, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.catalog.label_schema import Schema
from orchestrator.evaluation.intervals import Interval, interval, label_interval
from orchestrator.evaluation.predictions import Predictions

_METRICS = ("macro_f1", "accuracy")


@dataclass(frozen=True)
class Scores:
    """Macro F1 and accuracy of the joint class, and of every label on its own."""

    macro_f1: Interval
    accuracy: Interval
    labels: Mapping[str, Interval]  # by name: macro_f1_<label> and accuracy_<label>
    calibration_error: float | None = None  # None where there are answers alone
    part: str | None = None  # of the test set: whole, public or private

    def to_json(self) -> dict[str, Any]:
        """Return the scores as files have them: numbers per label, and their `intervals`."""
        facts: dict[str, Any] = {} if self.part is None else {"part": self.part}
        facts |= {"macro_f1": self.macro_f1.to_json(), "accuracy": self.accuracy.to_json()}
        facts |= {name: bounds.estimate for name, bounds in self.labels.items()}
        facts["intervals"] = {name: bounds.to_json() for name, bounds in self.labels.items()}
        if self.calibration_error is not None:
            facts["calibration_error"] = self.calibration_error
        return facts


def score_answers(answers: Predictions, schema: Schema, *, seed: int) -> Scores:
    """Score one set of answers, such as a vote: the first row of `preds` counts per label."""
    truth = schema.decode(answers.targets)
    preds = schema.decode(answers.preds[0])
    labels = {}
    for i, (name, size) in enumerate(zip(schema.names, schema.sizes, strict=True)):
        for metric in _METRICS:
            labels[f"{metric}_{name}"] = label_interval(
                answers, truth[:, i], preds[None, :, i], size, metric=metric, seed=seed
            )
    return Scores(
        interval(answers, metric="macro_f1", seed=seed),
        interval(answers, metric="accuracy", seed=seed),
        labels,
    )
