"""What the out-of-fold answers of an ensemble tell beside its score.

How good it is for whom, which labels are likely wrong, and how far its confidence can be believed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data_prep.catalog.label_schema import Schema
from orchestrator.ensemble.label_noise import LabelAnswers, Suspect, find_suspects, ranked, without
from orchestrator.ensemble.subgroups import Subgroup, subgroup_intervals
from orchestrator.evaluation.intervals import Interval, interval
from orchestrator.evaluation.metrics import Floats, Metric, owners_of
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.probabilities.calibration import (
    ALL_LABELS,
    Calibration,
    calibrate,
    label_probs,
)
from orchestrator.evaluation.scores_with_intervals import other_score

N_SUSPECTS = 100
"""Suspects in the certificate; suspects.csv has all."""
METHOD = (
    "confident learning (Northcutt et al. 2021) on the ensemble's out-of-fold probabilities, "
    "averaged over all photos of a group that carry one class"
)


@dataclass(frozen=True)
class LabelNoise:
    """Likely wrong labels, and the score of the vote without them."""

    suspects: list[Suspect]  # the most suspect first
    without: Interval | None  # macro F1; None where nothing is suspect, or everything is
    score_without: Interval | None = None  # by the score of the spec, where it is another

    def to_json(self) -> dict[str, object]:
        """Return plain data, with the first suspects."""
        photos = {sample for suspect in self.suspects for sample in suspect.sample_ids}
        facts = {
            "method": METHOD,
            "n_suspects": len(self.suspects),
            "n_groups": len({suspect.group for suspect in self.suspects}),
            "n_photos": len(photos),
            "macro_f1_without": self.without.to_json() if self.without else None,
            "suspects": [suspect.to_json() for suspect in self.suspects[:N_SUSPECTS]],
        }
        if self.score_without is not None:
            facts["score_without"] = self.score_without.to_json()
        return facts

    def to_csv(self) -> str:
        """Return all suspects as CSV; the photos of one suspect are separated by spaces."""
        text = io.StringIO()
        names = [name for name in Suspect.__dataclass_fields__ if name != "sample_ids"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["rank", *names, "photos"])
        for rank, suspect in enumerate(self.suspects, 1):
            values = [getattr(suspect, name) for name in names]
            cells = [f"{value:.4f}" if isinstance(value, float) else value for value in values]
            writer.writerow([rank, *cells, " ".join(suspect.sample_ids)])
        return text.getvalue()


class LostPhoto(NamedTuple):
    """A labelled photo that preparation lost, so that nobody answered it."""

    sample_id: str
    label: int  # code of the joint class
    group: str


@dataclass(frozen=True)
class PartScore:
    """The score of the vote on other photos than the headline's."""

    n_photos: int  # that are left out of the headline's, or added to them
    macro_f1: Interval
    score: Interval | None = None  # by the score of the spec; None where that is macro F1

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        facts = {"n_photos": self.n_photos, "macro_f1": self.macro_f1.to_json()}
        if self.score is not None:
            facts["score"] = self.score.to_json()
        return facts


@dataclass(frozen=True)
class Diagnosis:
    """What the answers tell beside the score."""

    subgroups: list[Subgroup]
    label_noise: LabelNoise
    calibration: list[Calibration]  # of every label, and of all together
    kept: PartScore | None = None  # None where exclusions keep no photo out of training
    lost: PartScore | None = None  # None where preparation lost no photo

    def to_json(self) -> dict[str, object]:
        """Return the parts of selection.json's ensemble."""
        return {
            "kept": self.kept and self.kept.to_json(),
            "lost": self.lost and self.lost.to_json(),
            "subgroups": [subgroup.to_json() for subgroup in self.subgroups],
            "label_noise": self.label_noise.to_json(),
            "calibration": [item.to_json() for item in self.calibration],
        }

    @property
    def temperatures(self) -> dict[str, float]:
        """Return label -> its temperature, where it makes confidences truer; else 1."""
        return {item.label: item.temperature if item.helps else 1.0 for item in self.calibration}


def diagnose(
    vote: Predictions,
    probs: Floats,
    schema: Schema,
    columns: Mapping[str, Sequence[Any]],
    *,
    seed: int,
    metric: Metric = "macro_f1",
) -> Diagnosis:
    """Examine the out-of-fold answers of an ensemble.

    Args:
        vote: its answers, one row.
        probs: (N, C) the members' mean probability of every joint class, weighted by their votes.
        schema: of the labels.
        columns: columns of the table that the user names, one value per sample.
        seed: of resamples and of the parts of the people.
        metric: the score of the spec.
    """
    codes = schema.decode(vote.targets)
    joint_codes = schema.decode(np.arange(schema.n_classes))
    owners = owners_of(vote)
    groups = vote.groups or vote.sample_ids
    values: dict[str, Sequence[Any]] = {}
    suspects: list[Suspect] = []
    calibrations = []
    for i, (label, names) in enumerate(schema.classes.items()):
        of_label = codes[:, i]
        values[label] = [names[code] for code in of_label]
        probs_of_label = label_probs(probs, joint_codes[:, i], len(names))
        answers = LabelAnswers(label, names, of_label, probs_of_label)
        suspects += find_suspects(answers, vote.sample_ids, groups)
        item = calibrate(label, probs_of_label, of_label, owners, seed=seed)
        if item is not None:
            calibrations.append(item)
    if len(schema.classes) > 1:
        joint = calibrate(ALL_LABELS, probs, vote.targets, owners, seed=seed)
        calibrations += [joint] if joint else []
    for name, column in columns.items():
        values[f"{name} (column)" if name in values else name] = column
    return Diagnosis(
        subgroup_intervals(vote, values, seed=seed, orders=schema.classes, metric=metric),
        _label_noise(vote, ranked(suspects), seed, metric),
        calibrations,
    )


def score_kept(
    vote: Predictions, excluded: Collection[str], *, seed: int, metric: Metric = "macro_f1"
) -> PartScore | None:
    """Score the vote without the photos that exclusions keep out of training.

    Returns:
        None where no photo is excluded, or all are.
    """
    kept = vote.among(set(vote.sample_ids).difference(excluded))
    n_excluded = len(vote.sample_ids) - len(kept.sample_ids)
    if not n_excluded or not kept.sample_ids:
        return None
    return _part_score(n_excluded, kept, seed, metric)


def _part_score(n_photos: int, answers: Predictions, seed: int, metric: Metric) -> PartScore:
    by_score = other_score(answers, metric, seed=seed)
    return PartScore(n_photos, interval(answers, seed=seed), by_score)


def count_lost(
    vote: Predictions, lost: Sequence[LostPhoto], *, seed: int, metric: Metric = "macro_f1"
) -> PartScore | None:
    """Score the vote with photos that preparation lost, counted as wrong.

    Their answer is a class that no photo has, so it lowers the recall of their own class alone.
    """
    if not lost:
        return None
    nothing = np.full(len(lost), vote.n_classes)
    groups = None
    if vote.groups is not None:
        groups = [*vote.groups, *(photo.group for photo in lost)]
    everything = Predictions(
        [*vote.sample_ids, *(photo.sample_id for photo in lost)],
        np.concatenate([vote.targets, [photo.label for photo in lost]]),
        np.concatenate([vote.preds[0], nothing])[None],
        vote.n_classes + 1,
        groups,
    )
    return _part_score(len(lost), everything, seed, metric)


def _label_noise(
    vote: Predictions, suspects: list[Suspect], seed: int, metric: Metric
) -> LabelNoise:
    """Score the vote on the photos that no suspect label stands on."""
    rest = without(vote, suspects)
    if not suspects or not rest.sample_ids:
        return LabelNoise(suspects, None)
    by_score = other_score(rest, metric, seed=seed)
    return LabelNoise(suspects, interval(rest, seed=seed), by_score)
