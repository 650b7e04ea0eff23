"""What the models did: confusions, scores per class, agreement, learning curves and trials."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.catalog.label_schema import Schema
from orchestrator.evaluation.metrics import ClassMetrics, class_metrics, macro_f1
from orchestrator.report import charts, confusion_matrices
from orchestrator.report.caveats import last_line
from orchestrator.report.certificate_section import contributions
from orchestrator.report.diagnosis_section import rare_class
from orchestrator.report.load import Run, View
from orchestrator.store.run_files.scores import Scores
from orchestrator.store.run_files.trials import EpochRow, TrialRow

_MAX_MATRIX = 40
_N_CONFUSIONS = 8
_MAX_LINES = 60
_MAX_ROWS = 1000
_MISMATCH = 0.002
_LOSSES = {"val_loss": "val loss", "train_loss": "train loss"}
_PHASES = {"search": "Search", "confirm": "Confirm"}
TITLES = {"oof": "Out of fold", "test": "Test set"}


@dataclass(frozen=True)
class Mistake:
    """A class that is often taken for another one."""

    truth: str
    answer: str
    n: int
    share: float  # of the photos of the true class


@dataclass(frozen=True)
class LabelConfusion:
    """The confusion of one label, and what the errors of this label cost."""

    label: str
    plot: object
    f1_if_right: float | None  # macro F1 over all classes; None for a single label


@dataclass(frozen=True)
class ConfusionView:
    """The confusions of the vote on one set of photos."""

    name: str
    macro_f1: float  # over all classes
    per_label: list[LabelConfusion]
    mistakes: list[Mistake]
    full: object
    n: int
    n_wrong: int


def confusion(run: Run) -> View:
    """Return the confusions of the vote, per label and over all classes."""
    sides = []
    if run.schema is not None:
        for name, answers in run.answers.items():
            sides.append(_confusion(run, TITLES[name], answers))
    return {"sides": sides}


def _confusion(run: Run, name: str, answers: confusion_matrices.Answers) -> ConfusionView:
    schema = run.schema
    if schema is None:
        raise ValueError("a label schema is required")
    counts = confusion_matrices.confusion(answers.targets, answers.preds, schema.n_classes)
    per_label = []
    for position, (label, names) in enumerate(schema.classes.items()):
        if len(names) <= _MAX_MATRIX:
            of_label = confusion_matrices.marginal(counts, schema.sizes, position).tolist()
            title = f"{name}: confusion of {label}"
            plot = charts.matrix(of_label, names, title=title, cell=46)
            per_label.append(LabelConfusion(label, plot, _f1_if_right(schema, answers, position)))
    full: object = ""
    if len(schema.classes) > 1 and schema.n_classes <= _MAX_MATRIX:
        names = [schema.class_name(code) for code in range(schema.n_classes)]
        title = f"{name}: confusion of all classes"
        full = charts.matrix(counts.tolist(), names, title=title, cell=30)
    n_right = int(np.trace(counts))
    n = len(answers.targets)
    score = macro_f1(answers.targets, answers.preds, schema.n_classes)
    return ConfusionView(name, score, per_label, _mistakes(run, counts), full, n, n - n_right)


def _f1_if_right(
    schema: Schema, answers: confusion_matrices.Answers, position: int
) -> float | None:
    if len(schema.classes) == 1:
        return None
    preds = confusion_matrices.with_label_right(
        answers.targets, answers.preds, schema.sizes, position
    )
    return macro_f1(answers.targets, preds, schema.n_classes)


def _mistakes(run: Run, counts: confusion_matrices.Ints) -> list[Mistake]:
    """Return the most frequent mistakes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_N_CONFUSIONS]
    mistakes = []
    for index in order:
        truth, answer = divmod(int(index), len(counts))
        n = int(wrong[truth, answer])
        if n:
            share = float(n / counts[truth].sum())
            mistakes.append(Mistake(run.class_name(truth), run.class_name(answer), n, share))
    return mistakes


@dataclass(frozen=True)
class Total:
    """The scores over all classes on one set of photos."""

    macro_f1: float
    accuracy: float
    n: int


def classes(run: Run) -> View:
    """Return F1, recall, precision and support per class, out of fold and on the test set."""
    if run.schema is None:
        return {"rows": [], "sides": []}
    columns: list[dict[int, ClassMetrics]] = []
    totals: dict[str, Total] = {}
    n_classes = run.schema.n_classes
    for side, answers in run.answers.items():
        scored = class_metrics(answers.targets, answers.preds, n_classes)
        columns.append({row.code: row for row in scored})
        is_right = answers.preds == answers.targets
        score = macro_f1(answers.targets, answers.preds, n_classes)
        totals[side] = Total(score, float(is_right.mean()), len(is_right))
    rows = []
    for label in range(n_classes):
        cells = [column.get(label) for column in columns]
        if any(cells):
            rows.append((run.schema.class_name(label), cells))
    return {
        "rows": rows,
        "sides": [TITLES[side] for side in totals],
        "totals": list(totals.values()),
        "mismatch": _mismatch(run, totals),
        "rare": rare_class(run),
    }


def _mismatch(run: Run, totals: dict[str, Total]) -> list[str]:
    """Return a sentence for every score of this page that differs from selection.json."""
    sentences = []
    ensemble = run.selection.ensemble
    stated: dict[str, Scores] = {"oof": ensemble.oof, "test": ensemble.test}
    for side, total in totals.items():
        score = stated[side].macro_f1
        value = score.estimate if score else None
        if value is not None and abs(value - total.macro_f1) > _MISMATCH:
            sentences.append(
                f"{TITLES[side]}: selection.json says macro F1 {value:.3f}, the predictions give "
                f"{total.macro_f1:.3f}"
            )
    return sentences


@dataclass(frozen=True)
class VoteCount:
    """The photos whose answer got a number of votes, and how many of these answers are right."""

    votes: int
    n: int
    share: float
    right: float


@dataclass(frozen=True)
class AgreementView:
    """How often members agree on one set of photos."""

    name: str
    by_votes: list[VoteCount]
    plot: object
    n_votes: int


def agreement(run: Run) -> View:
    """Return how often members agree, and how right the vote is by its number of votes."""
    sides = [_agreement(run, TITLES[name], answers) for name, answers in run.answers.items()]
    outcomes: Counter[str] = Counter()
    if run.votes is not None:
        outcomes.update(map(str, run.votes["outcome"].to_pylist()))
    return {
        "sides": sides,
        "outcomes": outcomes.most_common(),
        "n_test": outcomes.total(),
        "contributions": contributions(run),
    }


def _agreement(run: Run, name: str, answers: confusion_matrices.Answers) -> AgreementView:
    n_members = len(answers.member_preds)
    n_votes = n_members
    names = [str(place) for place in range(1, n_members + 1)]
    if len(run.members) == n_members:
        n_votes = sum(run.weights)
        names = [f"{place}. {setting}" for place, setting in enumerate(run.members, 1)]
    is_right = answers.preds == answers.targets
    by_votes = []
    for votes in range(n_votes, -1, -1):
        has_votes = answers.votes == votes
        if has_votes.any():
            share = float(has_votes.mean())
            right = float(is_right[has_votes].mean())
            by_votes.append(VoteCount(votes, int(has_votes.sum()), share, right))
    plot: object = ""
    if n_members > 1:
        shares = confusion_matrices.agreement(answers.member_preds).tolist()
        title = f"{name}: shares of equal answers"
        plot = charts.matrix(shares, names, title=title, cell=46, as_share=True)
    return AgreementView(name, by_votes, plot, n_votes)


@dataclass(frozen=True)
class CurvePanel:
    """The learning curves of one phase."""

    title: str
    plots: list[object]
    n: int
    n_shown: int


def curves(run: Run) -> View:
    """Return learning curves of search and confirm: score and losses by epoch."""
    trials_by_id = {trial.trial_id: trial for trial in run.trials or ()}
    colors = variant_colors(run.trials or ())
    rows_of: dict[str, list[EpochRow]] = defaultdict(list)
    for row in run.curves or ():
        if row.trial_id in trials_by_id:
            rows_of[row.trial_id].append(row)
    panels = []
    for phase, title in _PHASES.items():
        trials = [trials_by_id[name] for name in rows_of if trials_by_id[name].phase == phase]
        trials.sort(key=by_score)
        shown = trials[:_MAX_LINES]
        plots: list[object] = []
        for metric, words in {"score": f"val {run.score_title}", **_LOSSES}.items():
            series = []
            for place, trial in enumerate(shown):
                if points := _points(rows_of[trial.trial_id], metric):
                    name = f"{trial.variant} {trial.trial_id}"
                    series.append(charts.Series(name, points, colors[trial.variant], place == 0))
            if series:
                heading = f"{title}: {words} by epoch"
                plots.append(charts.lines(series, "epoch", words, title=heading))
        if plots:
            panels.append(CurvePanel(title, plots, len(trials), len(shown)))
    return {"panels": panels, "legend": legend(colors)}


def _points(rows: list[EpochRow], metric: str) -> list[tuple[float, float]]:
    points = []
    for row in sorted(rows, key=lambda row: row.epoch):
        value: float | None = getattr(row, metric)
        if value is not None:
            points.append((float(row.epoch), value))
    return points


@dataclass(frozen=True)
class TrialLine:
    """A row of the table of trials."""

    trial: TrialRow
    is_member: bool
    settings: str
    cause: str
    by_label: list[float | None]


@dataclass(frozen=True)
class TimeView:
    """What the trials of a phase did with their time, summed over trials."""

    phase: str
    n: int  # trials whose time is known
    total_s: float
    parts: list[tuple[str, float, float]]  # part, seconds, share; the largest first


def _times(rows: list[TrialRow]) -> list[TimeView]:
    views = []
    for phase, title in _PHASES.items():
        timed = [trial for trial in rows if trial.phase == phase and trial.times]
        sums: dict[str, float] = {}
        for trial in timed:
            for part, seconds in trial.times.items():
                sums[part] = sums.get(part, 0.0) + seconds
        total = sum(sums.values())
        if total > 0:
            ordered = sorted(sums.items(), key=lambda part: -part[1])
            parts = [(part, seconds, seconds / total) for part, seconds in ordered]
            views.append(TimeView(title, len(timed), total, parts))
    return views


def trials(run: Run) -> View:
    """Return the rows of the table of trials, best first within their phase."""
    labels = run.schema.names if run.schema else ()
    order = list(_PHASES)
    ranked = sorted(run.trials or (), key=lambda trial: (by_score(trial), trial.trial_id))
    ranked.sort(key=lambda trial: order.index(trial.phase) if trial.phase in order else len(order))
    rows = []
    for trial in ranked[:_MAX_ROWS]:
        by_label = [trial.label_scores.get(label) for label in labels]
        rows.append(
            TrialLine(
                trial,
                trial.setting in run.members,
                settings_text(trial.params),
                last_line(trial.error),
                by_label,
            )
        )
    return {
        "rows": rows,
        "labels": labels,
        "n": len(ranked),
        "has_folds": any(trial.fold_score is not None for trial in ranked),
        "counts": Counter(trial.status for trial in ranked),
        "known": run.trials is not None,
        "times": _times(ranked),
    }


def by_score(trial: TrialRow) -> float:
    """Sort the best trial first, and those without a score last."""
    return 1.0 if trial.score is None else -trial.score


def settings_text(params: Mapping[str, object]) -> str:
    """Return sampled values in one line."""
    parts = []
    for name, value in sorted(params.items()):
        parts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return " · ".join(parts)


def variant_colors(rows: tuple[TrialRow, ...]) -> dict[str, int]:
    """Return the color of every variant."""
    variants = sorted({trial.variant for trial in rows})
    return {variant: number for number, variant in enumerate(variants)}


def legend(colors: dict[str, int]) -> list[tuple[str, str]]:
    """Return (variant, style of its color)."""
    return [(variant, charts.color_style(number)) for variant, number in colors.items()]
