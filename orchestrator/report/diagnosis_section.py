"""What the out-of-fold answers tell beside the score: subgroups, likely wrong labels, confidence."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.report import charts
from orchestrator.report.load import Run, View
from orchestrator.store.run_files.diagnosis import SubgroupScore

_MAX_SUSPECTS = 30


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup with its interval as a picture."""

    facts: SubgroupScore
    is_first: bool  # of its column
    plot: object


def subgroups(run: Run) -> View:
    """Return the scores of every value of labels and named columns, on one scale."""
    ensemble = run.selection.ensemble
    ends: list[float | None] = []
    for item in ensemble.subgroups:
        ends += [item.macro_f1.low, item.macro_f1.estimate, item.macro_f1.high]
    scale = charts.Scale.around(ends, 0.02)
    if scale is not None:
        scale = charts.Scale(max(0.0, scale.low), min(1.0, scale.high))
    rows = []
    columns: set[str] = set()
    for item in ensemble.subgroups:
        score = item.macro_f1
        plot = charts.interval(score.low, score.estimate, score.high, scale, strong=True)
        rows.append(SubgroupRow(item, item.column not in columns, plot))
        columns.add(item.column)
    return {
        "rows": rows,
        "axis": charts.scale_axis(scale) if rows else "",
        "whole": ensemble.oof.macro_f1,
        "n_outside": round(0.1 * len(rows)),
    }


def suspects(run: Run) -> View:
    """Return the labels that are likely wrong, the most suspect first."""
    ensemble = run.selection.ensemble
    noise = ensemble.label_noise
    return {
        "noise": noise,
        "rows": noise.suspects[:_MAX_SUSPECTS],
        "whole": ensemble.oof.macro_f1,
        "group": run.resolved.data.group,
    }


def calibration(run: Run) -> View:
    """Return how far the stated confidence of each label can be believed."""
    return {
        "rows": run.selection.ensemble.calibration,
        "is_used": run.resolved.vote.calibrate,
    }
