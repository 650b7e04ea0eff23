"""The results of a run as tables for people and as data for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from orchestrator.base.wording import counted, signed
from orchestrator.evaluation.hypotheses import needs_text
from orchestrator.spec.score import DEFAULT, score_title
from orchestrator.store.event_types import (
    FOLD_SCORE,
    OBJECTIVE,
    SCORE,
)
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.diagnosis import LabelNoise, PartScore, SubgroupScore, are_many
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.records import as_record, as_records, read_json
from orchestrator.store.run_files.scores import Score, Scores
from orchestrator.store.run_files.selection import Candidate, EnsembleScores, Selection

_CANDIDATE = (
    "",
    "rank",
    "variant",
    "setting",
    "oof_{score}",
    "low",
    "high",
    "worst_recall",
    "search_score",
    "n_params",
)
_MAX_WARNINGS = 3  # of the audit, at the end of a run
_TEXT_COLUMNS = {
    "",
    "column",
    "value",
    "trial_id",
    "variant",
    "phase",
    "setting",
    "status",
    "params",
    "score",
}
_TRIAL = (
    "trial_id",
    "variant",
    "phase",
    "seed",
    "fold",
    "status",
    "epochs",
    "val_macro_f1",
    "val_accuracy",
    "params",
)


def trials_view(run: Path) -> list[dict[str, Any]]:
    """Return the rows of trials.parquet, search before confirm, the best search trials first.

    There are no rows before the search has ended.
    """
    path = run / "trials.parquet"
    if not path.is_file():
        return []
    from orchestrator.store import tables  # noqa: PLC0415

    rows = [
        {name: _finite(value) for name, value in row.items()}
        for row in tables.read(path).to_pylist()
    ]
    rows.sort(key=lambda row: (-_row_score(row), row["trial_id"]))
    rows.sort(key=lambda row: row["phase"] != "search")
    return rows


def _row_score(row: Mapping[str, Any]) -> float:
    """Return what the search maximizes, of a row of trials.parquet; below all others if it has none."""
    for name in (FOLD_SCORE, SCORE, OBJECTIVE):
        score: float | None = row.get(name)
        if score is not None:
            return score
    return -math.inf


def render_results(run: Path, form: str) -> str:
    """Return the trials and the ensemble as a table, CSV or JSON."""
    if form == "json":
        return _json_text(run)
    if form == "csv":
        rows = trials_view(run)
        text = io.StringIO()
        names = list(rows[0]) if rows else list(_TRIAL)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    return _tables(run)


def _json_text(run: Path) -> str:
    """Return the files of the run as they are, in one object."""
    selection = _json(run / "selection.json")
    if not isinstance(selection, dict):
        selection = {}
    ensemble = None
    if selection.get("members"):
        ensemble = {"members": selection.get("members"), **(selection.get("ensemble") or {})}
    view: dict[str, Any] = {
        "run_id": run.name,
        "trials": trials_view(run),
        "candidates": selection.get("candidates") or [],
        "ensemble": ensemble,
        "hypotheses": _json(run / "hypotheses.json"),
    }
    if front := front_rows(run):
        view["front"] = front
    return json.dumps(view, indent=1, allow_nan=False) + "\n"


class FrontRow(TypedDict):
    """A setting of the search's Pareto front."""

    setting: str
    variant: str
    n_params: int
    score: float
    params: dict[str, Any]


def front_rows(run: Path) -> list[FrontRow]:
    """Return the Pareto front of the search, the best score first; [] where it aims at the score alone."""
    from orchestrator.evaluation.selection import pareto_front  # noqa: PLC0415
    from orchestrator.store.run_files.trials import TrialRow, searched_sizes  # noqa: PLC0415

    rows = searched_sizes(as_records(TrialRow, trials_view(run)))
    scores = {setting: row.score or 0.0 for setting, row in rows.items()}
    sizes = {setting: row.n_params or 0.0 for setting, row in rows.items()}
    front: list[FrontRow] = []
    for setting in pareto_front(scores, sizes):
        row = rows[setting]
        front.append(
            {
                "setting": setting,
                "variant": row.variant,
                "n_params": int(sizes[setting]),
                "score": scores[setting],
                "params": row.params,
            }
        )
    return front


def _tables(run: Path) -> str:
    """Draw trials, candidates and the ensemble's scores, as far as they exist."""
    parts = []
    if rows := trials_view(run):
        names: tuple[str, ...] = _TRIAL
        extra = [name for name in (FOLD_SCORE, SCORE) if name in rows[0]]
        place = _TRIAL.index(OBJECTIVE)
        names = (*_TRIAL[:place], *extra, *_TRIAL[place:])
        cells = [[_cell(name, row[name]) for name in names] for row in rows]
        parts.append(_table("trials", names, cells))
    if front := front_rows(run):
        names = ("setting", "variant", "n_params", "search_score", "params")
        cells = []
        for point in front:
            row = point | {"params": json.dumps(point["params"])}
            cells.append([_cell(name, value) for name, value in row.items()])
        parts.append(_table("Pareto front of the search", names, cells))
    selection = _selection(run)
    if selection.candidates:
        cells = [_candidate_cells(candidate) for candidate in selection.candidates]
        names = tuple(name.format(score=_short(selection.score)) for name in _CANDIDATE)
        parts.append(_table("candidates, * marks members", names, cells))
    if selection.members and (cells := _score_rows(selection)):
        names = ("score", "estimate", "90 % interval", "groups", "photos")
        parts.append(_table("ensemble", names, cells))
    parts += _subgroup_tables(selection)
    if not parts:
        return f"run {run.name}: its search has not ended; `status {run.name}` shows its trials\n"
    return "\n".join(parts)


def _table(title: str, names: tuple[str, ...], rows: list[list[str]]) -> str:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415 - a cell as text is never read as markup

    out = io.StringIO()
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(
            name.replace("val_", ""),
            justify="left" if name in _TEXT_COLUMNS else "right",
            no_wrap=name != "params",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=out, width=150, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _short(score: str) -> str:
    """Return a score as the name of a column."""
    return score.replace(" ", "_")


def _candidate_cells(candidate: Candidate) -> list[str]:
    values = (
        candidate.rank,
        candidate.variant,
        candidate.setting,
        candidate.score,
        candidate.low,
        candidate.high,
        candidate.worst_class_recall,
        candidate.search_score,
        candidate.n_params,
    )
    return ["*" if candidate.chosen else "", *(_cell("", value) for value in values)]


def _subgroup_tables(selection: Selection) -> list[str]:
    """Draw the scores of subgroups; those of one class apart, because a recall is no macro F1."""
    subgroups = selection.ensemble.subgroups
    by_spec = any(subgroup.score is not None for subgroup in subgroups)
    score = _short(selection.score) if by_spec else DEFAULT
    other = DEFAULT if score == "accuracy" else "accuracy"
    recalls = []
    scores = []
    for subgroup in subgroups:
        if subgroup.is_one_class:
            recalls.append(_subgroup_cells(subgroup, []))
        else:
            beside = subgroup.macro_f1 if other == DEFAULT else subgroup.accuracy
            scores.append(_subgroup_cells(subgroup, [_cell("", beside.estimate)]))
    note = "out-of-fold; ! marks a class with fewer than 7 groups"
    drawn = []
    first = ("", "column", "value")
    last = ("groups", "photos")
    if recalls:
        names: tuple[str, ...] = (*first, "recall", "90 % interval", *last)
        drawn.append(_table(f"photos of one class, {note}", names, recalls))
    if scores:
        names = (*first, score, "90 % interval", other, *last)
        drawn.append(_table(f"subgroups, {note}", names, scores))
    return drawn


def _subgroup_cells(subgroup: SubgroupScore, beside: list[str]) -> list[str]:
    score = subgroup.headline
    return [
        "!" if score.too_few_people else "",
        subgroup.column,
        subgroup.value,
        _cell("", score.estimate),
        f"{_cell('', score.low)} to {_cell('', score.high)}",
        *beside,
        str(score.n_groups or ""),
        str(score.n_samples or ""),
    ]


def _sides(ensemble: EnsembleScores) -> dict[str, Scores]:
    """Return the ensemble's scores by the name of what they were measured on."""
    return {
        "out-of-fold": ensemble.oof,
        "public half": ensemble.public,
        "test": ensemble.test,
    }


def _score_rows(selection: Selection) -> list[list[str]]:
    rows = []
    for title, scores in _sides(selection.ensemble).items():
        for name, score in scores.metrics.items():
            metric = _short(selection.score) if name == "score" else name
            span = ""
            if score.low is not None:
                span = f"{_cell('', score.low)} to {_cell('', score.high)}"
            groups = str(score.n_groups or "")
            if score.too_narrow:
                span += " (too narrow)"
                groups = ""
            estimate = _cell("", score.estimate)
            rows.append([f"{title} {metric}", estimate, span, groups, str(score.n_samples or "")])
    return rows


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name != "params":
        return f"{value:.3f}" if isinstance(value, float) else str(value)
    parts = []
    for path, item in json.loads(value).items():
        short = ".".join(path.split(".")[-2:])
        parts.append(f"{short}={item:.3g}" if isinstance(item, float) else f"{short}={item}")
    return ", ".join(parts)


def _selection(run: Path) -> Selection:
    return as_record(Selection, _json(run / "selection.json"))


def ensemble_lines(run: Path) -> list[str]:
    """Return the ensemble's scores in words, each with its interval and what it rests on."""
    selection = _selection(run)
    if not selection.members:
        return ["no ensemble yet"]
    ensemble = selection.ensemble
    lines = [f"ensemble of {len(selection.members)}: {', '.join(selection.members)}"]
    if len(selection.members) == 1:
        lines = [f"one member: {selection.members[0]}"]
    for title, scores in _sides(ensemble).items():
        if scores.headline is not None:
            where = "private half" if scores.part == "private" else title
            text = _scores_text(score_title(selection.score), scores.headline, scores.accuracy)
            lines.append(f"{where:<12} {text}")
    title = score_title(selection.score)
    corrected = ensemble.corrected
    if corrected is not None and corrected.estimate is not None:
        lines.append(
            f"{'out-of-fold':<12} {title} {_span(corrected)}, corrected for choosing among "
            f"{counted(corrected.n_candidates, 'candidate')} on these photos"
        )
    lines += _with_lost_photos(ensemble.lost, title)
    gain = ensemble.gain and ensemble.gain.honest
    if gain is not None and gain.difference is not None:
        span = f"90 % interval {signed(gain.low)} to {signed(gain.high)}"
        lines.append(
            f"the vote against its best member {gain.over} alone: {title} "
            f"{signed(gain.difference)}, {span}"
        )
    noise = ensemble.label_noise
    if noise.n_suspects:
        lines.append(_doubts(noise, ensemble.oof.headline))
    if not ensemble.test.metrics:
        lines.append("no test labels: no test score")
    submission = run / "submission.csv"
    if submission.is_file():
        lines.append(f"answers on the test set: {submission}")
    verdicts = as_records(Hypothesis, _json(run / "hypotheses.json"))
    return lines + [_verdict_text(verdict) for verdict in verdicts]


def audit_lines(run: Path) -> list[str]:
    """Return the audit's gravest warnings, a line each, and how many more there are."""
    warnings = as_record(AuditFacts, _json(run / "audit.json")).warnings
    lines = [f"audit: {warning.text}" for warning in warnings[:_MAX_WARNINGS]]
    if n_more := len(warnings) - len(lines):
        lines.append(f"audit: and {n_more} more in audit.json")
    return lines


def _with_lost_photos(lost: PartScore | None, title: str) -> list[str]:
    """Return the score with the photos that preparation lost, where it lost some."""
    if lost is None or lost.headline.estimate is None:
        return []
    photos = counted(lost.n_photos, "more photo")
    return [
        (
            f"{'out-of-fold':<12} {title} {_span(lost.headline)} with {photos} that preparation lost, "
            "counted as wrong"
        )
    ]


def _doubts(noise: LabelNoise, whole: Score | None) -> str:
    """Return how many labels the models doubt, and what many doubts mean."""
    photos = counted(noise.n_photos, "photo")
    groups = counted(noise.n_groups, "group")
    doubt = f"likely wrong labels: {photos} of {groups}; see suspects.csv"
    if are_many(noise, whole):
        doubt += " (more than a tenth of all: rather the models are weak than the labels wrong)"
    return doubt


def _scores_text(name: str, score: Score, accuracy: Score | None) -> str:
    more = ""
    if accuracy is not None and name != "accuracy":
        more = f", accuracy {_span(accuracy)}"
    units = counted(score.n_groups, "group")
    if score.too_narrow:
        units = "photos resampled: too narrow"
    return f"{name} {_span(score)}{more}; n {counted(score.n_samples, 'photo')}, {units}"


def _verdict_text(row: Hypothesis) -> str:
    """Return a claim, its verdict and its evidence in one line."""
    needs = needs_text(row.facts)
    if row.difference is None:
        return f"{row.claim}: {row.verdict} ({needs})"
    facts = [
        f"{row.metric} {signed(row.difference)}",
        f"90 % interval {signed(row.low)} to {signed(row.high)}",
    ]
    if row.p_value is not None:
        facts.append(f"p {row.p_value:.3f}")
    if row.p_adjusted is not None and row.p_adjusted != row.p_value:
        # the verdict goes by this one, so that the interval alone may seem to contradict it
        at_look = f" at look {row.look}" if (row.look or 1) > 1 else ""
        facts.append(f"{row.p_adjusted:.3f} adjusted for all claims{at_look}")
    facts.append(counted(row.n_groups, "group"))
    evidence = ", ".join(facts)
    if needs:
        evidence += f"; {needs}"
    return f"{row.claim}: {row.verdict} ({evidence})"


def _span(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{score.estimate:.3f}"
    return f"{score.estimate:.3f} (90 % interval {score.low:.3f} to {score.high:.3f})"


def _finite(value: Any) -> Any:
    """Return None for NaN and infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(path: Path) -> Any:
    """Read a JSON file; None where it is missing or torn."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None
