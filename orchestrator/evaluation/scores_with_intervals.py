"""The scores of one set of answers: over the joint class and per label, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.catalog.label_schema import Schema
from orchestrator.evaluation.intervals import Interval, interval, label_interval
from orchestrator.evaluation.metrics import Metric, Scorer, View
from orchestrator.evaluation.predictions import Predictions
from orchestrator.spec.score import DEFAULT, Score

_METRICS = ("macro_f1", "accuracy")


def scorer_of(score: Score, schema: Schema | None) -> Scorer:
    """Return how a score of a spec is counted.

    Args:
        score: of the spec or of a claim.
        schema: of the labels; None is enough for a score of the joint class.
    """
    labels = score.labels_among(schema.names) if schema else ()
    if schema is None or not labels:
        return Scorer(score.metric)
    codes = schema.decode(np.arange(schema.n_classes))
    views = []
    for label in labels:
        place = schema.names.index(label)
        # one class more, for answers that are no class of these labels
        views.append(View(tuple(codes[:, place].tolist()), schema.sizes[place] + 1))
    return Scorer(score.metric, tuple(views))


@dataclass(frozen=True)
class Scores:
    """Macro F1 and accuracy of the joint class, and of every label on its own."""

    macro_f1: Interval
    accuracy: Interval
    labels: Mapping[str, Interval]  # by name: macro_f1_<label> and accuracy_<label>
    calibration_error: float | None = None  # None where there are answers alone
    part: str | None = None  # of the test set: whole, public or private
    score: Interval | None = None  # by the score of the spec; None where that is macro F1

    @property
    def headline(self) -> Interval:
        """The score that the spec goes by."""
        return self.score or self.macro_f1

    def to_json(self) -> dict[str, object]:
        """Return the scores as files have them: numbers per label, and their `intervals`."""
        facts: dict[str, Any] = {} if self.part is None else {"part": self.part}
        if self.score is not None:
            facts["score"] = self.score.to_json()
        facts |= {"macro_f1": self.macro_f1.to_json(), "accuracy": self.accuracy.to_json()}
        facts |= {name: bounds.estimate for name, bounds in self.labels.items()}
        facts["intervals"] = {name: bounds.to_json() for name, bounds in self.labels.items()}
        if self.calibration_error is not None:
            facts["calibration_error"] = self.calibration_error
        return facts


def score_answers(
    answers: Predictions, schema: Schema, *, seed: int, metric: Metric = DEFAULT
) -> Scores:
    """Score one set of answers, such as a vote: the first row of `preds` counts per label.

    Args:
        answers: of one vote.
        schema: of the labels.
        seed: of the resamples.
        metric: the score of the spec.
    """
    truth = schema.decode(answers.targets)
    preds = schema.decode(answers.preds[0])
    labels = {}
    for i, (name, size) in enumerate(zip(schema.names, schema.sizes, strict=True)):
        for of_label in _METRICS:
            labels[f"{of_label}_{name}"] = label_interval(
                answers, truth[:, i], preds[None, :, i], size, metric=of_label, seed=seed
            )
    return Scores(
        interval(answers, metric="macro_f1", seed=seed),
        interval(answers, metric="accuracy", seed=seed),
        labels,
        score=other_score(answers, metric, seed=seed),
    )


def other_score(answers: Predictions, metric: Metric, *, seed: int) -> Interval | None:
    """Return the score of the spec with its interval; None where it is macro F1."""
    if metric in (DEFAULT, Scorer()):
        return None
    return interval(answers, metric=metric, seed=seed)
