"""Labels that are likely wrong: models that never saw a person read another class, and surely.

Source: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset
labels" (the method of cleanlab). Here the unit is not a photo but all photos of one person that
carry one class, because a wrong label mostly stands on all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from orchestrator.evaluation.metrics import Floats, Ints
from orchestrator.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Suspect:
    """Photos of one person whose given class the models doubt."""

    group: str
    label: str
    given: str  # class that the data state
    suggested: str  # class that the models read
    confidence: float  # mean out-of-fold probability of the given class
    suggested_confidence: float
    margin: float  # confidence minus suggested_confidence: the lower, the more suspect
    n_photos: int
    n_photos_read_so: int  # photos of these that are read as the suggested class
    sample_ids: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self) | {"sample_ids": list(self.sample_ids)}


@dataclass(frozen=True)
class LabelAnswers:
    """One label of some photos, as the data state it and as models read it out of fold."""

    label: str
    class_names: list[str]
    codes: Ints  # (N,) as the data state it
    probs: Floats  # (N, C)


def find_suspects(
    answers: LabelAnswers, sample_ids: Sequence[str], groups: Sequence[str]
) -> list[Suspect]:
    """Return people whose label is likely wrong, the most suspect first.

    The threshold of a class is the mean probability that people of this class have for it. A person
    is suspect where another class reaches its threshold, and is more probable than the given one.

    Args:
        answers: of one label.
        sample_ids: (N,).
        groups: (N,), who is on each photo.
    """
    codes = answers.codes
    probs = np.asarray(answers.probs, np.float64)
    n_classes = probs.shape[1]
    _, group_numbers = np.unique(np.array(groups, object), return_inverse=True)
    # a unit is a person and a given class
    unit_keys, unit_of = np.unique(group_numbers * n_classes + codes, return_inverse=True)
    n_photos = np.bincount(unit_of)
    sums = np.stack([np.bincount(unit_of, probs[:, k]) for k in range(n_classes)], 1)
    means = np.asarray(sums / n_photos[:, None], np.float64)
    given = unit_keys % n_classes
    thresholds = class_thresholds(means, given)
    reaches = np.where(means >= thresholds, means, -1.0)
    suggested = reaches.argmax(1)
    every = np.arange(len(given))
    margins = means[every, given] - means[every, suggested]
    is_suspect = (reaches.max(1) > 0) & (suggested != given) & (margins < 0)
    suspects = []
    for unit in np.flatnonzero(is_suspect).tolist():
        photos: list[int] = np.flatnonzero(unit_of == unit).tolist()
        read_so = probs[photos].argmax(1) == suggested[unit]
        suspects.append(
            Suspect(
                group=groups[photos[0]],
                label=answers.label,
                given=answers.class_names[int(given[unit])],
                suggested=answers.class_names[int(suggested[unit])],
                confidence=float(means[unit, given[unit]]),
                suggested_confidence=float(means[unit, suggested[unit]]),
                margin=float(margins[unit]),
                n_photos=int(n_photos[unit]),
                n_photos_read_so=int(read_so.sum()),
                sample_ids=tuple(sample_ids[i] for i in photos),
            )
        )
    return ranked(suspects)


def class_thresholds(probs: Floats, given: Ints) -> Floats:
    """Return per class the mean probability that its own units have for it; infinite without any.

    Args:
        probs: (U, C).
        given: (U,).
    """
    n_classes = probs.shape[1]
    of_given = probs[np.arange(len(given)), given]
    sums = np.bincount(given, of_given, n_classes)
    sizes = np.bincount(given, minlength=n_classes)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)


def ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Return suspects of any labels by margin, the most suspect first."""
    return sorted(suspects, key=lambda suspect: (suspect.margin, suspect.group, suspect.label))


def without(predictions: Predictions, suspects: Collection[Suspect]) -> Predictions:
    """Return the samples that no suspect label stands on."""
    doubted: set[str] = set()
    for suspect in suspects:
        doubted |= set(suspect.sample_ids)
    return predictions.among(set(predictions.sample_ids) - doubted)
