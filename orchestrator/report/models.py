"""What the models did: confusions, agreement, settings, curves and trials."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from orchestrator.report import charts, scores
from orchestrator.report.load import Run, ensemble_scores, mapping, number
from orchestrator.report.overview import last_line, parameters
from orchestrator.report.trust import marginal

_MAX_MATRIX = 40
_N_CONFUSIONS = 8
_MAX_LINES = 60
_MAX_ROWS = 1000
_MAX_PARALLEL = 300
_MAX_SLICES = 12
_MISMATCH = 0.002
_CURVES = {"val_macro_f1": "val macro F1", "val_loss": "val loss", "train_loss": "train loss"}
TITLES = {"oof": "Out of fold", "test": "Test set"}


def confusion(run: Run) -> dict[str, Any]:
    """Return confusion matrices of the vote, per label and over the single code, and the commonest mistakes."""
    if run.schema is None:
        return {"sides": []}
    schema = run.schema
    sides = []
    for side, found in run.answers.items():
        name = TITLES[side]
        counts = scores.confusion(found.targets, found.preds, schema.n_classes)
        per_label = [
            (
                label,
                charts.matrix(
                    scores.marginal(counts, schema.sizes, at).tolist(),
                    names,
                    title=f"{name}: confusion of {label}",
                    cell=46,
                ),
            )
            for at, (label, names) in enumerate(schema.classes.items())
            if len(names) <= _MAX_MATRIX
        ]
        wrong = counts.copy()
        np.fill_diagonal(wrong, 0)
        top = np.argsort(-wrong, axis=None, kind="stable")[:_N_CONFUSIONS]
        pairs = [divmod(int(at), schema.n_classes) for at in top]
        mistakes = [
            {
                "true": schema.class_name(i),
                "found": schema.class_name(j),
                "n": int(wrong[i, j]),
                "share": float(wrong[i, j] / counts[i].sum()),
            }
            for i, j in pairs
            if wrong[i, j]
        ]
        full = ""
        if len(schema.classes) > 1 and schema.n_classes <= _MAX_MATRIX:
            full = charts.matrix(
                counts.tolist(),
                [schema.class_name(k) for k in range(schema.n_classes)],
                title=f"{name}: confusion of all classes",
                cell=30,
            )
        sides.append(
            {
                "name": name,
                "per_label": per_label,
                "mistakes": mistakes,
                "full": full,
                "n": len(found.targets),
                "n_wrong": int(wrong.sum()),
            }
        )
    return {"sides": sides}


def classes(run: Run) -> dict[str, Any]:
    """Return F1, recall, precision and support per class, out of fold and on the test set."""
    if run.schema is None:
        return {"rows": [], "sides": []}
    n_classes = run.schema.n_classes
    tables = [
        scores.confusion(found.targets, found.preds, n_classes) for found in run.answers.values()
    ]
    measured = [scores.class_scores(counts) for counts in tables]
    rows = []
    for label in range(n_classes):
        cells = [
            {
                "support": int(counts[label].sum()),
                **{key: float(values[label]) for key, values in one.items()},
            }
            for counts, one in zip(tables, measured, strict=True)
        ]
        if any(cell["support"] for cell in cells):
            rows.append(
                {
                    "name": run.schema.class_name(label),
                    "cells": [cell if cell["support"] else None for cell in cells],
                }
            )
    totals = [
        {
            "macro_f1": scores.macro_f1(counts),
            "accuracy": scores.accuracy(counts),
            "n": int(counts.sum()),
        }
        for counts in tables
    ]
    return {
        "rows": rows,
        "sides": [TITLES[side] for side in run.answers],
        "totals": totals,
        "mismatch": _mismatch(run, totals),
    }


def _mismatch(run: Run, totals: list[dict[str, Any]]) -> list[str]:
    """Say where the numbers of this page and of selection.json differ."""
    found = []
    for side, total in zip(run.answers, totals, strict=True):
        value = number(ensemble_scores(run.selection, side).get("macro_f1", {}).get("estimate"))
        if value is not None and abs(value - total["macro_f1"]) > _MISMATCH:
            given = total["macro_f1"]
            found.append(
                f"{TITLES[side]}: selection.json says macro F1 {value:.3f}, the predictions give {given:.3f}"
            )
    return found


def agreement(run: Run) -> dict[str, Any]:
    """Return how often members agree, and how right the vote is by its number of votes."""
    sides = []
    for side, found in run.answers.items():
        name, n_members = TITLES[side], len(found.member_preds)
        n_votes = sum(run.weights) if len(run.weights) == n_members else n_members
        by_votes = []
        for votes in range(n_votes, -1, -1):
            at = found.votes == votes
            if at.any():
                right = float((found.preds == found.targets)[at].mean())
                by_votes.append(
                    {"votes": votes, "n": int(at.sum()), "share": float(at.mean()), "right": right}
                )
        names = (
            [f"{place}. {setting}" for place, setting in enumerate(run.members, 1)]
            if len(run.members) == n_members
            else [str(i + 1) for i in range(n_members)]
        )
        plot = charts.matrix(
            scores.agreement(found.member_preds).tolist(),
            names,
            title=f"{name}: shares of equal answers",
            cell=46,
            as_share=True,
        )
        sides.append(
            {
                "name": name,
                "by_votes": by_votes,
                "plot": plot if n_members > 1 else "",
                "n_votes": n_votes,
            }
        )
    outcomes: dict[str, int] = defaultdict(int)
    if run.votes is not None:
        for outcome in run.votes["outcome"].to_pylist():
            outcomes[str(outcome)] += 1
    return {
        "sides": sides,
        "outcomes": sorted(outcomes.items(), key=lambda item: -item[1]),
        "n_test": sum(outcomes.values()),
        "marginal": marginal(run),
    }


def search(run: Run) -> dict[str, Any]:
    """Return plots of score against settings, of the trials that have both."""
    rows: list[dict[str, Any]] = []
    for trial in run.trials or []:
        score, params = number(trial.get("val_macro_f1")), parameters(trial)
        if trial.get("phase") == "search" and score is not None and params:
            rows.append({"trial": trial, "score": score, "params": params})
    if len(rows) < 2:
        return {"n": len(rows)}
    rows = sorted(rows, key=lambda row: -row["score"])
    logs = {
        path.removeprefix("train.")
        for path, one in mapping(mapping(run.resolved.get("search")).get("space")).items()
        if mapping(one).get("log")
    }
    names = sorted({name for row in rows for name in row["params"]})
    axes = [
        axis
        for name in names
        if (axis := _axis(name, [row["params"].get(name) for row in rows], log=name in logs))
    ]
    colors = {
        variant: at
        for at, variant in enumerate(sorted({str(row["trial"]["variant"]) for row in rows}))
    }
    titles = [
        f"{row['score']:.3f} {row['trial']['variant']} {row['trial']['trial_id']}: {_short(row['params'])}"
        for row in rows
    ]
    ends = [row["score"] for row in rows]
    room = 0.06 * (max(ends) - min(ends)) or 0.05
    scale = (min(ends) - room, max(ends) + room)
    strengths = {axis.name: association(axis.positions, ends) for axis in axes}
    axes = sorted(axes, key=lambda axis: -(strengths[axis.name] or 0.0))
    slices = []
    for axis in axes[:_MAX_SLICES]:
        points = [
            (
                position + (_jitter(at) if axis.words else 0.0),
                ends[at],
                colors[str(rows[at]["trial"]["variant"])],
                titles[at],
            )
            for at, position in enumerate(axis.positions)
            if position is not None
        ]
        slices.append(charts.scatter(points, axis.ticks, axis.name, scale))
    score_axis = _axis("val macro F1", ends, log=False)
    drawn = [*axes[: _MAX_SLICES - 1], *([score_axis] if score_axis else [])]
    cut = slice(0, _MAX_PARALLEL)
    shown = [charts.Axis(axis.name, axis.positions[cut], axis.ticks) for axis in drawn]
    plot = (
        charts.parallel(
            shown, ends[cut], titles[cut], title="Settings of the trials and their score"
        )
        if len(shown) > 1
        else ""
    )
    bars = [
        (
            axis.name,
            [charts.Bar(strengths[axis.name] or 0.0, f"{strengths[axis.name] or 0.0:.0%}", 0)],
        )
        for axis in axes
    ]
    title = "Share of the variance of the score that one setting explains"
    return {
        "n": len(rows),
        "n_shown": len(ends[cut]),
        "plot": plot,
        "slices": slices,
        "strength": charts.bars(bars, title=title, width=460, left=190),
        "legend": _legend(colors),
    }


def _jitter(at: int) -> float:
    """Spread points of equal words a little: the golden ratio's multiples never lie close together."""
    return 0.05 * ((at * 0.618034) % 1 - 0.5)


def _axis(name: str, values: list[Any], *, log: bool) -> charts.Axis | None:
    """Place values on an axis of length 1; None where all that are known are equal."""
    known = [value for value in values if value is not None]
    numbers = [found for value in known if (found := number(value)) is not None]
    if known and len(numbers) == len(known):
        log = log and min(numbers) > 0
        turn = math.log10 if log else float
        low, high = turn(min(numbers)), turn(max(numbers))
        if high <= low:
            return None
        ticks = charts.log_ticks(low, high) if log else charts.nice_ticks(low, high, 5)
        labels = [
            ((tick - low) / (high - low), f"{10**tick:.4g}" if log else f"{tick:g}")
            for tick in ticks
        ]
        return charts.Axis(
            name,
            [None if value is None else (turn(value) - low) / (high - low) for value in values],
            labels,
        )
    words = sorted({str(value) for value in known})
    if len(words) < 2:
        return None
    place = {word: at / (len(words) - 1) for at, word in enumerate(words)}
    return charts.Axis(
        name,
        [None if value is None else place[str(value)] for value in values],
        [(at, word) for word, at in place.items()],
        words=True,
    )


def association(positions: list[float | None], ends: list[float], n_bins: int = 4) -> float | None:
    """Return the share of the score's variance between groups of equal settings, corrected for their number.

    Numbers with many values are cut into `n_bins` groups of equal size. This is epsilon squared of a one-way analysis
    of variance: 0 where a setting tells nothing about the score, 1 where it decides it. Kelley 1935.
    """
    pairs = [
        (position, score)
        for position, score in zip(positions, ends, strict=True)
        if position is not None
    ]
    values = sorted({position for position, _ in pairs})
    if len(values) > n_bins:
        borders = np.quantile(
            [position for position, _ in pairs], np.linspace(0, 1, n_bins + 1)[1:-1]
        )
        owners = [int(np.searchsorted(borders, position, side="right")) for position, _ in pairs]
    else:
        owners = [values.index(position) for position, _ in pairs]
    n, n_groups = len(pairs), len(set(owners))
    if n_groups < 2 or n <= n_groups:
        return None
    scored = np.array([score for _, score in pairs])
    total = float(((scored - scored.mean()) ** 2).sum())
    within = sum(
        float(((scored[at] - scored[at].mean()) ** 2).sum())
        for group in set(owners)
        for at in [np.array(owners) == group]
    )
    return max(0.0, 1 - (within / (n - n_groups)) / (total / (n - 1))) if total > 0 else None


def curves(run: Run) -> dict[str, Any]:
    """Return learning curves of search and confirm: score and losses by epoch."""
    facts = {str(trial["trial_id"]): trial for trial in run.trials or []}
    variants = sorted({str(trial["variant"]) for trial in facts.values()})
    colors = {variant: at for at, variant in enumerate(variants)}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.curves or []:
        if row["trial_id"] in facts:
            rows[row["trial_id"]].append(row)
    panels = []
    for phase, title in (("search", "Search"), ("confirm", "Confirm")):
        ids = [name for name in rows if facts[name].get("phase") == phase]
        ids = sorted(ids, key=lambda name: -(number(facts[name].get("val_macro_f1")) or -1.0))
        kept, best = ids[:_MAX_LINES], set(ids[:1])
        plots = []
        for metric, text in _CURVES.items():
            series = [
                charts.Series(
                    f"{facts[name]['variant']} {name}",
                    points,
                    colors[str(facts[name]["variant"])],
                    name in best,
                )
                for name in kept
                if (points := _points(rows[name], metric))
            ]
            plots.append(charts.lines(series, "epoch", text, title=f"{title}: {text} by epoch"))
        if any(plots):
            panels.append(
                {
                    "title": title,
                    "plots": [plot for plot in plots if plot],
                    "n": len(ids),
                    "n_shown": len(kept),
                }
            )
    return {"panels": panels, "legend": _legend(colors)}


def _points(rows: list[dict[str, Any]], metric: str) -> list[tuple[float, float]]:
    found = [
        (float(row["epoch"]), number(row.get(metric)))
        for row in sorted(rows, key=lambda row: row["epoch"])
    ]
    return [(epoch, value) for epoch, value in found if value is not None]


def trials(run: Run) -> dict[str, Any]:
    """Return the rows of the table of trials, best first within their phase."""
    labels = run.schema.names if run.schema else ()
    order = {"search": 0, "confirm": 1}
    found = sorted(
        run.trials or [],
        key=lambda one: (
            order.get(str(one.get("phase")), 2),
            -(number(one.get("val_macro_f1")) or -1.0),
            str(one.get("trial_id")),
        ),
    )
    members = set(run.members)
    rows = [
        {
            **one,
            "member": one.get("setting") in members,
            "settings": _short(parameters(one)),
            "cause": last_line(one.get("error")),
            "by_label": [one.get(f"val_macro_f1_{label}") for label in labels],
        }
        for one in found[:_MAX_ROWS]
    ]
    counts: dict[str, int] = defaultdict(int)
    for one in found:
        counts[str(one.get("status"))] += 1
    return {
        "rows": rows,
        "labels": labels,
        "n": len(found),
        "counts": dict(counts),
        "known": run.trials is not None,
    }


def _short(params: dict[str, Any]) -> str:
    return " · ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sorted(params.items())
    )


def _legend(colors: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (name, f"c{at % charts.N_COLORS}" + (" dashed" if at >= charts.N_COLORS else ""))
        for name, at in colors.items()
    ]
