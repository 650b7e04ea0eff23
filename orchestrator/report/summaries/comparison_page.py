"""Several runs on one page: their scores on one scale, their claims, and what they differ in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import atomic_path
from orchestrator.report import charts
from orchestrator.report.load import Run, load
from orchestrator.report.page import draw, fill
from orchestrator.report.result_section import Head, head, headline
from orchestrator.report.scales import Scale
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.scores import Score

_SECTIONS = ("result", "hypotheses", "selection", "classes")
_MAX_DIFFERENCES = 60


@dataclass(frozen=True)
class RunRow:
    """One run in the table of scores."""

    head: Head
    score: Score | None  # to expect on new people
    plot: object
    test: Score | None
    n_members: int
    n_trials: int | None
    policy: str


@dataclass(frozen=True)
class LabelRow:
    """The macro F1 of one label in every run; None where a run does not know the label."""

    label: str
    scores: list[float | None]


@dataclass(frozen=True)
class SettingRow:
    """A value of the spec that is not the same in all runs."""

    path: str
    values: list[str]


def build_together(folders: Sequence[Path], place: Path) -> Path:
    """Write one page about several runs and return its path."""
    html = render_together([load(folder) for folder in folders])
    with atomic_path(place) as beside:
        beside.write_bytes(html.encode("utf-8", "backslashreplace"))
    return place


def render_together(runs: Sequence[Run]) -> str:
    """Return a page about several runs as HTML."""
    rows, axis = _rows(runs)
    return fill(
        "summaries/several_runs.html.j2",
        rows=rows,
        axis=axis,
        labels=_labels(runs),
        claims=_claims(runs),
        differences=_differences(runs),
        details=[(head(run), draw(run, _SECTIONS)) for run in runs],
    )


def _rows(runs: Sequence[Run]) -> tuple[list[RunRow], object]:
    """Return a row per run, and the axis of their intervals."""
    ends: list[float | None] = []
    for run in runs:
        score = headline(run)
        if score is not None:
            ends += [score.low, score.estimate, score.high]
    scale = Scale.around(ends, 0.02)
    rows = []
    for run in runs:
        score = headline(run)
        plot: object = ""
        if score is not None:
            plot = charts.interval(score.low, score.estimate, score.high, scale, strong=True)
        policy = run.selection.policy
        rows.append(
            RunRow(
                head(run),
                score,
                plot,
                run.selection.ensemble.test.headline,
                len(run.members),
                None if run.trials is None else len(run.trials),
                policy if isinstance(policy, str) else ", ".join(map(str, policy or ())),
            )
        )
    return rows, charts.scale_axis(scale)


def _labels(runs: Sequence[Run]) -> list[LabelRow]:
    """Return macro F1 per label, out of fold, of every run."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(run.schema.names if run.schema else ())
    rows = []
    for name in names:
        scores = []
        for run in runs:
            score = run.selection.ensemble.oof.metrics.get(f"macro_f1_{name}")
            scores.append(score.estimate if score else None)
        if any(score is not None for score in scores):
            rows.append(LabelRow(name, scores))
    return rows


def _claims(runs: Sequence[Run]) -> list[tuple[str, Hypothesis]]:
    """Return every claim with the run that judged it."""
    claims = []
    for run in runs:
        claims += [(head(run).run_id, claim) for claim in run.hypotheses or ()]
    return claims


def _differences(runs: Sequence[Run]) -> list[SettingRow]:
    """Return the values of the resolved specs that differ."""
    specs = [_flat(_spec(run)) for run in runs]
    paths: dict[str, None] = {}
    for spec in specs:
        paths |= dict.fromkeys(spec)
    rows = []
    for path in paths:
        values = [spec.get(path, "–") for spec in specs]
        if len(set(values)) > 1:
            rows.append(SettingRow(path, values))
    return rows[:_MAX_DIFFERENCES]


def _spec(run: Run) -> Any:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only this file of a run is YAML
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(run.resolved_text))
    except YAMLError:
        return {}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Return dotted path -> value as text."""
    if not isinstance(value, dict) or not value:
        return {path: str(value)} if path else {}
    values: dict[str, str] = {}
    for key, item in value.items():
        values |= _flat(item, f"{path}.{key}" if path else str(key))
    return values
