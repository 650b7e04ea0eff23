"""How the score depends on the settings that the search tried."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from orchestrator.report import charts
from orchestrator.report.load import Run, View
from orchestrator.report.models_section import by_score, legend, settings_text, variant_colors
from orchestrator.report.scales import Scale, log_ticks
from orchestrator.store.run_files.records import number
from orchestrator.store.run_files.trials import TrialRow, searched_settings, searched_sizes

_MAX_PARALLEL = 300
_MAX_SLICES = 12


def search(run: Run) -> View:
    """Return plots of score against settings, of the search trials that have both."""
    trials = []
    for trial in searched_settings(run.trials or ()):
        if trial.score is not None and trial.params:
            trials.append(trial)
    n_folds = run.resolved.search.folds
    front = _front(run)
    if len(trials) < 2:
        return {"n": len(trials), "front": front}
    n_stopped = sum(trial.n_folds < n_folds for trial in trials) if n_folds else 0
    trials.sort(key=by_score)
    scores = [trial.score or 0.0 for trial in trials]
    axes = _axes(run, trials)
    strengths = {axis.name: association(axis.positions, scores) or 0.0 for axis in axes}
    axes.sort(key=lambda axis: -strengths[axis.name])
    bars = []
    for axis in axes:
        strength = strengths[axis.name]
        bars.append((axis.name, [charts.Bar(strength, f"{strength:.0%}", 0)]))
    title = "Share of the variance of the score that one setting explains"
    return {
        "n": len(trials),
        "front": front,
        "n_folds": n_folds,
        "n_stopped": n_stopped,
        "n_shown": min(len(trials), _MAX_PARALLEL),
        "plot": _parallel(axes, trials, scores, f"val {run.score_title}"),
        "slices": _slices(axes, trials, scores),
        "strength": charts.bars(bars, title=title, width=460, left=190),
        "legend": legend(variant_colors(tuple(trials))),
    }


def _front(run: Run) -> View | None:
    """Return the Pareto front of score and parameters, None where the search aims at the score alone."""
    from orchestrator.evaluation.selection import pareto_front  # noqa: PLC0415

    rows = searched_sizes(run.trials or ())
    if not rows:
        return None
    scores = {setting: row.score or 0.0 for setting, row in rows.items()}
    sizes = {setting: row.n_params or 0.0 for setting, row in rows.items()}
    names = pareto_front(scores, sizes)
    confirmed = {candidate.setting: candidate for candidate in run.selection.candidates}
    table = []
    for name in names:
        row = rows[name]
        shown = settings_text(row.params)
        table.append({"row": row, "candidate": confirmed.get(name), "settings": shown})
    plot: object = ""
    settings = list(rows)
    axis = _number_axis("parameters", [sizes[setting] for setting in settings], log=True)
    if axis is not None:
        colors = variant_colors(tuple(rows.values()))
        room = 0.06 * (max(scores.values()) - min(scores.values())) or 0.05
        scale = Scale(min(scores.values()) - room, max(scores.values()) + room)
        points = {}
        for setting, position in zip(settings, axis.positions, strict=True):
            row = rows[setting]
            note = f"{sizes[setting]:,.0f} parameters, {_title(row)}"
            points[setting] = charts.Point(
                position or 0.0, scores[setting], colors[row.variant], note
            )
        steps = [points[name] for name in reversed(names)]
        ticks = [(place, _short_count(float(tick))) for place, tick in axis.ticks]
        plot = charts.scatter(list(points.values()), ticks, "parameters", scale, steps)
    return {"plot": plot, "rows": table, "n": len(rows)}


def _short_count(count: float) -> str:
    """Return a count such as 3.4M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def _axes(run: Run, trials: list[TrialRow]) -> list[charts.Axis]:
    """Return an axis for every setting that has more than one value."""
    names = sorted({name for trial in trials for name in trial.params})
    axes = []
    for name in names:
        range_ = run.resolved.search.space.get(f"train.{name}", run.resolved.search.space.get(name))
        log = isinstance(range_, dict) and bool(range_.get("log"))
        if axis := _axis(name, [trial.params.get(name) for trial in trials], log=log):
            axes.append(axis)
    return axes


def _axis(name: str, values: list[Any], *, log: bool) -> charts.Axis | None:
    """Place values on an axis of length 1; None where all that are known are equal."""
    known = [value for value in values if value is not None]
    if known and all(number(value) is not None for value in known):
        return _number_axis(name, values, log=log and min(known) > 0)
    words = sorted({str(value) for value in known})
    if len(words) < 2:
        return None
    places = {word: index / (len(words) - 1) for index, word in enumerate(words)}
    positions = [None if value is None else places[str(value)] for value in values]
    ticks = [(place, word) for word, place in places.items()]
    return charts.Axis(name, positions, ticks, words=True)


def _number_axis(name: str, values: list[float | None], *, log: bool) -> charts.Axis | None:
    convert = math.log10 if log else float
    converted = [None if value is None else convert(value) for value in values]
    scale = Scale.around(converted, 0.0)
    if scale is None or scale.high <= scale.low:
        return None
    ticks = []
    for tick in log_ticks(scale.low, scale.high) if log else scale.ticks(5):
        ticks.append((scale.share(tick), f"{10**tick:.4g}" if log else f"{tick:g}"))
    positions = [None if value is None else scale.share(value) for value in converted]
    return charts.Axis(name, positions, ticks)


def _parallel(
    axes: list[charts.Axis], trials: list[TrialRow], scores: list[float], name: str
) -> object:
    """Draw all settings of the best trials side by side, with their score as the last axis."""
    drawn = axes[: _MAX_SLICES - 1]
    if score_axis := _axis(name, list(scores), log=False):
        drawn = [*drawn, score_axis]
    if len(drawn) < 2:
        return ""
    shown = [charts.Axis(axis.name, axis.positions[:_MAX_PARALLEL], axis.ticks) for axis in drawn]
    titles = [_title(trial) for trial in trials[:_MAX_PARALLEL]]
    heading = "Settings of the trials and their score"
    return charts.parallel(shown, scores[:_MAX_PARALLEL], titles, title=heading)


def _slices(axes: list[charts.Axis], trials: list[TrialRow], scores: list[float]) -> list[object]:
    """Draw score against each setting."""
    room = 0.06 * (max(scores) - min(scores)) or 0.05
    scale = Scale(min(scores) - room, max(scores) + room)
    colors = variant_colors(tuple(trials))
    plots: list[object] = []
    for axis in axes[:_MAX_SLICES]:
        points = []
        for index, (trial, position) in enumerate(zip(trials, axis.positions, strict=True)):
            if position is not None:
                shift = _jitter(index) if axis.words else 0.0
                color = colors[trial.variant]
                points.append(charts.Point(position + shift, scores[index], color, _title(trial)))
        plots.append(charts.scatter(points, axis.ticks, axis.name, scale))
    return plots


def _title(trial: TrialRow) -> str:
    score = f"{trial.score:.3f}"
    return f"{score} {trial.variant} {trial.trial_id}: {settings_text(trial.params)}"


def _jitter(index: int) -> float:
    """Spread points of equal words a little; multiples of the golden ratio never lie close."""
    return 0.05 * ((index * 0.618034) % 1 - 0.5)


def association(
    positions: list[float | None], scores: list[float], n_bins: int = 4
) -> float | None:
    """Return the share of the score's variance that one setting explains.

    Numbers with many values are cut into `n_bins` groups of equal size. This is epsilon squared
    of a one-way analysis of variance, corrected for the number of groups: 0 where a setting tells
    nothing about the score, 1 where it decides it. Kelley 1935.
    """
    known = [index for index, position in enumerate(positions) if position is not None]
    values = np.array([positions[index] for index in known], np.float64)
    scored = np.array([scores[index] for index in known])
    distinct = np.unique(values)
    borders = distinct[1:]
    if len(distinct) > n_bins:
        borders = np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1])
    group_of = np.searchsorted(borders, values, side="right")
    groups = np.unique(group_of)
    n = len(known)
    if len(groups) < 2 or n <= len(groups):
        return None
    total = float(((scored - scored.mean()) ** 2).sum())
    if total <= 0:
        return None
    within = 0.0
    for group in groups:
        members = scored[group_of == group]
        within += float(((members - members.mean()) ** 2).sum())
    return max(0.0, 1 - (within / (n - len(groups))) / (total / (n - 1)))
