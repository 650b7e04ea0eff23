"""The scores of an ensemble for whom: by every value of its labels and of named columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.evaluation.intervals import Interval, interval
from orchestrator.evaluation.metrics import Ints, Metric
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.scores_with_intervals import other_score
from orchestrator.spec.score import DEFAULT

MOST_VALUES = 12
"""Values of a column that are subgroups of their own."""


@dataclass(frozen=True)
class Subgroup:
    """The score of the photos that share a value of a label or of a column of the table."""

    column: str
    value: str
    macro_f1: Interval
    accuracy: Interval
    score: Interval | None = None  # by the score of the spec; None where it is macro F1
    is_one_class: bool = False  # accuracy is then the class's recall, and F1 means nothing

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        facts = asdict(self)
        if self.score is None:
            del facts["score"]
        if not self.is_one_class:
            del facts["is_one_class"]
        return facts


def subgroup_intervals(
    predictions: Predictions,
    columns: Mapping[str, Sequence[Any]],
    *,
    seed: int,
    orders: Mapping[str, Sequence[str]] | None = None,
    metric: Metric = DEFAULT,
) -> list[Subgroup]:
    """Return the scores with their intervals for every value of some columns.

    These are macro F1, accuracy, and the score of the spec where it is not macro F1.

    A column of numbers with more than 12 values is cut into quarters of the photos. Of texts with
    more than 12 values the most frequent ones are kept, and the rest is one subgroup.

    Args:
        predictions: of one vote.
        columns: name -> one value per sample; None where it is not known.
        seed: of the resamples.
        orders: name -> values in the order in which they are listed; sorted by default.
        metric: the score of the spec.
    """
    subgroups = []
    for column, values in columns.items():
        order = (orders or {}).get(column)
        for value, index in _samples_by_value(values, order).items():
            part = predictions.take(index)
            f1 = interval(part, seed=seed)
            accuracy = interval(part, metric="accuracy", seed=seed)
            score = other_score(part, metric, seed=seed)
            is_one_class = len(np.unique(part.targets)) == 1
            subgroups.append(Subgroup(column, value, f1, accuracy, score, is_one_class))
    return subgroups


def _samples_by_value(values: Sequence[Any], order: Sequence[str] | None = None) -> dict[str, Ints]:
    """Return name of a value -> places of its samples; unknown values are left out."""
    counted = Counter(value for value in values if value is not None and str(value) != "nan")
    are_numbers = all(type(value) in {int, float} for value in counted)
    if are_numbers and len(counted) > MOST_VALUES:
        return _quarters(values)
    frequent = [value for value, _ in counted.most_common()]
    if len(frequent) > MOST_VALUES:
        frequent = frequent[: MOST_VALUES - 1]
    listed = order or sorted(frequent, key=lambda value: value if are_numbers else str(value))
    samples: dict[str, list[int]] = {str(value): [] for value in listed if value in counted}
    rest: list[int] = []
    for i, value in enumerate(values):
        if value in counted:
            samples.get(str(value), rest).append(i)
    if rest:
        samples[f"{len(counted) - len(frequent)} other values"] = rest
    return {name: np.array(index, np.int64) for name, index in samples.items()}


def _quarters(values: Sequence[Any]) -> dict[str, Ints]:
    """Return the samples of each quarter of a number; its borders are rounded to three digits."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    borders = []
    for border in np.nanquantile(numbers, [0.25, 0.5, 0.75]):
        rounded = float(f"{border:.3g}")
        if rounded not in borders:
            borders.append(rounded)
    edges = [-np.inf, *borders, np.inf]
    samples = {}
    for low, high in pairwise(edges):
        name = f"{low:g} to below {high:g}"
        if low == -np.inf:
            name = f"below {high:g}"
        elif high == np.inf:
            name = f"{low:g} and above"
        index = np.flatnonzero((numbers >= low) & (numbers < high))
        if len(index):
            samples[name] = index
    return samples
