"""What the out-of-fold answers tell beside the score: subgroups, likely wrong labels, confidence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.evaluation.intervals import Interval, interval
from orchestrator.evaluation.metrics import ClassMetrics, class_metrics
from orchestrator.evaluation.predictions import Predictions
from orchestrator.report import charts, confusion_matrices
from orchestrator.report.load import Run, View
from orchestrator.report.scales import Scale
from orchestrator.spec.score import MACRO_F1, parse_score
from orchestrator.store.run_files.diagnosis import SubgroupScore, are_many
from orchestrator.store.run_files.gallery import GalleryPhoto
from orchestrator.store.run_files.scores import Score

_MAX_SUSPECTS = 30
_MAX_CURVE_POINTS = 300
_BASE64 = re.compile(r"[A-Za-z0-9+/]+=*")
_GALLERY = {
    "sure_wrong": "The surest wrong answers",
    "disputed": "Photos that the members answer differently",
    "suspect": "Likely wrong labels",
}


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup with its interval as a picture."""

    facts: SubgroupScore
    is_first: bool  # of its column
    score: Score  # that the spec goes by
    other: Score  # accuracy; macro F1 where the spec goes by accuracy
    plot: object


def subgroups(run: Run) -> View:
    """Return the scores of every value of labels and named columns, on one scale."""
    ensemble = run.selection.ensemble
    spec_score = MACRO_F1  # of runs before the table went by the score of the spec, too
    if any(item.score is not None for item in ensemble.subgroups):
        spec_score = parse_score(run.resolved.score)
    is_accuracy = spec_score.text == "accuracy"
    ends: list[float | None] = []
    for item in ensemble.subgroups:
        ends += [item.headline.low, item.headline.estimate, item.headline.high]
    scale = Scale.around(ends, 0.02)
    if scale is not None:
        scale = Scale(max(0.0, scale.low), min(1.0, scale.high))
    rows = []
    columns: set[str] = set()
    recalls = []
    for item in ensemble.subgroups:
        score = item.headline
        other = item.macro_f1 if is_accuracy else item.accuracy
        plot = charts.interval(score.low, score.estimate, score.high, scale, strong=True)
        row = SubgroupRow(item, item.column not in columns, score, other, plot)
        columns.add(item.column)
        if item.is_one_class:
            recalls.append(row)
        else:
            rows.append(row)
    n_rows = len(rows) + len(recalls)
    return {
        "rows": rows,
        "recalls": recalls,
        "axis": charts.scale_axis(scale) if n_rows else "",
        "score": spec_score.title,
        "other": MACRO_F1.title if is_accuracy else "accuracy",
        "is_of_classes": spec_score.metric != "accuracy",
        "n_rows": n_rows,
        "n_outside": f"{0.1 * n_rows:.1f}",
    }


def suspects(run: Run) -> View:
    """Return the labels that are likely wrong, the most suspect first."""
    ensemble = run.selection.ensemble
    noise = ensemble.label_noise
    return {
        "noise": noise,
        "rows": noise.suspects[:_MAX_SUSPECTS],
        "whole": ensemble.oof.headline,
        "group": run.resolved.data.group_text,
        "are_many": are_many(noise, ensemble.oof.headline),
    }


@dataclass(frozen=True)
class Picture:
    """A prepared photo with the classes that the data and the vote name."""

    facts: GalleryPhoto
    given: str
    answer: str


def gallery(run: Run) -> View:
    """Return photos that are worth a look, by kind."""
    groups = []
    for kind, title in _GALLERY.items():
        pictures = []
        for photo in run.gallery.photos:
            # base64 of our own JPEGs; anything else must not get into an attribute
            if photo.kind == kind and _BASE64.fullmatch(photo.jpeg):
                names = run.class_name(photo.given), run.class_name(photo.answer)
                pictures.append(Picture(photo, *names))
        if pictures:
            groups.append((title, pictures))
    return {"groups": groups, "method": run.gallery.method}


def calibration(run: Run) -> View:
    """Return how far the stated confidence of each label can be believed."""
    return {
        "rows": run.selection.ensemble.calibration,
        "is_used": run.resolved.vote.calibrate,
    }


@dataclass(frozen=True)
class RareClass:
    """The rarer one of two classes, out of fold."""

    name: str
    scores: ClassMetrics
    f1: Interval  # over the groups that have the class
    n: int  # photos of both
    average_precision: float | None  # None where no probabilities are stored
    plot: object


def _groups(run: Run, answers: confusion_matrices.Answers) -> list[str] | None:
    """Return the group of every sample; None where some are not known."""
    if run.folds is None:
        return None
    rows = zip(run.folds["sample_id"].to_pylist(), run.folds["group"].to_pylist(), strict=True)
    group_of = dict(rows)
    groups = [group_of.get(sample) for sample in answers.sample_ids]
    known = [group for group in groups if group is not None]
    return known if len(known) == len(groups) else None


def rare_class(run: Run) -> RareClass | None:
    """Return the scores of the rarer class of a task with two; None for any other task."""
    answers = run.answers.get("oof")
    if run.schema is None or run.schema.n_classes != 2 or answers is None:
        return None
    rows = class_metrics(answers.targets, answers.preds, 2)
    if len(rows) < 2:
        return None
    scored = min(rows, key=lambda row: (row.n, -row.code))
    name = run.class_name(scored.code)
    voted = Predictions(
        answers.sample_ids, answers.targets, answers.preds[None], 2, _groups(run, answers)
    )
    f1 = interval(voted, seed=0, only=scored.code)
    if answers.probs is None:
        return RareClass(name, scored, f1, len(answers.targets), None, "")
    confidences = answers.probs[:, scored.code]
    curve = confusion_matrices.precision_recall(confidences, answers.targets == scored.code)
    step = max(1, len(curve.recalls) // _MAX_CURVE_POINTS)
    points = list(zip(curve.recalls, curve.precisions, strict=True))
    series = [charts.Series(name, [*points[:-1:step], points[-1]], 0, strong=True)]
    title = f"Precision against recall of {name}, out of fold"
    plot = charts.lines(series, f"recall of {name}", "precision", title=title)
    return RareClass(name, scored, f1, len(answers.targets), curve.average, plot)
