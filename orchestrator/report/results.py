"""What came out of a run, as tables for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from orchestrator.evaluation.hypotheses import needs_text
from orchestrator.store.events import DriverStarted, StageEnded
from orchestrator.store.ledger import read, replay

_CANDIDATE = (
    "",
    "rank",
    "variant",
    "setting",
    "oof_macro_f1",
    "low",
    "high",
    "worst_recall",
    "search_score",
    "n_params",
)
_WORDS = {"", "trial_id", "variant", "phase", "setting", "status", "params", "score"}
_SHOWN = (
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
    """Return the rows of trials.parquet, the best search trials first, then confirm; empty while there are none."""
    path = run / "trials.parquet"
    if not path.is_file():
        return []
    from orchestrator.store import tables  # noqa: PLC0415

    rows = [
        {name: _finite(value) for name, value in row.items()}
        for row in tables.read(path).to_pylist()
    ]
    return sorted(
        rows,
        key=lambda row: (row["phase"] != "search", -(row["val_macro_f1"] or -1.0), row["trial_id"]),
    )


def render_results(run: Path, form: str) -> str:
    """Return the trials and the ensemble as a table, CSV or JSON."""
    rows = trials_view(run)
    if form == "json":
        view = {"run_id": run.name, "trials": rows, "candidates": _candidates(run), "ensemble": ensemble(run),
                "hypotheses": _json(run / "hypotheses.json")}  # fmt: skip
        return json.dumps(view, indent=1, allow_nan=False) + "\n"
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else list(_SHOWN), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    return _tables(run, rows)


def _tables(run: Path, rows: list[dict[str, Any]]) -> str:
    """Draw trials, candidates and the ensemble's scores, those that there are."""
    parts = []
    if rows:
        parts.append(
            _table("trials", _SHOWN, [[_cell(name, row[name]) for name in _SHOWN] for row in rows])
        )
    if candidates := _candidates(run):
        parts.append(
            _table("candidates, * votes", _CANDIDATE, [_candidate_cells(one) for one in candidates])
        )
    if scores := _score_rows(ensemble(run) or {}):
        parts.append(
            _table("ensemble", ("score", "estimate", "90 % interval", "groups", "photos"), scores)
        )
    return (
        "\n".join(parts)
        if parts
        else f"run {run.name}: its search has not ended; `status {run.name}` shows its trials\n"
    )


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
            justify="left" if name in _WORDS else "right",
            no_wrap=name != "params",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=out, width=150, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _candidate_cells(one: dict[str, Any]) -> list[str]:
    mark = "*" if one.get("chosen") else ""
    names = (
        "rank",
        "variant",
        "setting",
        "oof_macro_f1",
        "low",
        "high",
        "worst_class_recall",
        "search_score",
        "n_params",
    )
    return [mark, *(_cell(name, one.get(name)) for name in names)]


def _score_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for side, title in (("oof", "out-of-fold"), ("public", "public half"), ("test", "test")):
        for metric, value in (found.get(side) or {}).items():
            if isinstance(value, str):
                continue  # which part of the test set it is
            score = value if isinstance(value, dict) else {"estimate": value}
            span = (
                f"{_cell('', score['low'])} to {_cell('', score['high'])}"
                if score.get("low") is not None
                else ""
            )
            narrow = bool(score.get("too_narrow"))
            groups = "" if narrow else str(score.get("n_groups") or "")
            span += " (too narrow)" if narrow else ""
            photos = str(score.get("n_samples") or "")
            rows.append(
                [f"{title} {metric}", _cell("", score.get("estimate")), span, groups, photos]
            )
    return rows


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "params":
        params = json.loads(value)
        return ", ".join(
            f"{_short(path)}={item:.3g}" if isinstance(item, float) else f"{_short(path)}={item}"
            for path, item in params.items()
        )
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _short(path: str) -> str:
    return ".".join(path.split(".")[-2:])


def _candidates(run: Path) -> list[dict[str, Any]]:
    found = _json(run / "selection.json")
    return list(found.get("candidates") or []) if isinstance(found, dict) else []


def ensemble(run: Path) -> dict[str, Any] | None:
    """Return the members and the ensemble's scores, or None before there are any."""
    found = _json(run / "selection.json")
    return (
        {"members": found["members"], **(found.get("ensemble") or {})}
        if isinstance(found, dict) and found.get("members")
        else None
    )


def ensemble_lines(run: Path) -> list[str]:
    """Return the ensemble's score in words, each with its interval and what it rests on."""
    found = ensemble(run)
    if found is None:
        return ["no ensemble yet"]
    lines = [f"ensemble of {len(found['members'])}: {', '.join(found['members'])}"]
    for name, title in (("oof", "out-of-fold"), ("public", "public half"), ("test", "test")):
        scores = found.get(name) or {}
        where = "private half" if scores.get("part") == "private" else title
        if f1 := scores.get("macro_f1"):
            accuracy = f", accuracy {_span(scores['accuracy'])}" if scores.get("accuracy") else ""
            lines.append(
                f"{where:<12} macro F1 {_span(f1)}{accuracy}; n {f1.get('n_samples', '?')} photos, "
                + (
                    "photos resampled: too narrow"
                    if f1.get("too_narrow")
                    else f"{f1.get('n_groups', '?')} groups"
                )
            )
    if (honest := found.get("corrected") or {}).get("estimate") is not None:
        chosen = f"corrected for choosing among {honest['n_candidates']} candidates on these photos"
        lines.append(f"{'out-of-fold':<12} macro F1 {_span(honest)}, {chosen}")
    if gain := found.get("gain"):
        told = f"{gain['difference']:+.3f}, 90 % interval {gain['low']:+.3f} to {gain['high']:+.3f}"
        lines.append(f"the vote against its best member {gain['over']} alone: macro F1 {told}")
    if not found.get("test"):
        lines.append("no test labels: no test score")
    for row in _json(run / "hypotheses.json") or []:
        if row["difference"] is None:
            lines.append(f"{row['claim']}: {row['verdict']} ({needs_text(row)})")
            continue
        span = f"90 % interval {row['low']:+.3f} to {row['high']:+.3f}"
        p_value = row.get("p_adjusted", row["p_value"])
        told = f"{row['metric']} {row['difference']:+.3f}, {span}, p {p_value:.3f}, {row['n_groups']} groups"
        needs = f"; {text}" if (text := needs_text(row)) else ""
        lines.append(f"{row['claim']}: {row['verdict']} ({told}{needs})")
    return lines


def _span(bounds: dict[str, Any]) -> str:
    return f"{bounds['estimate']:.3f} (90 % interval {bounds['low']:.3f} to {bounds['high']:.3f})"


def status_view(run: Path) -> dict[str, Any]:
    """Return a run's state from its ledger alone: stages, trials by status, the best so far. Imports nothing heavy."""
    from orchestrator.store.run_dir import RunPaths, state_of  # noqa: PLC0415

    events = read(run / "events.jsonl") if (run / "events.jsonl").is_file() else []
    state = replay(events)
    last: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, DriverStarted):
            last = {}
        elif isinstance(event, StageEnded):
            last[event.stage] = {
                key: getattr(event, key) for key in ("stage", "outcome", "wall_s", "note")
            }
    facts = state_of(RunPaths(run))
    open_ = "RUNNING" if facts["state"] == "RUNNING" else "UNFINISHED"
    counts = dict(Counter(trial.status or open_ for trial in state.trials.values()))
    scored = [t for t in state.trials.values() if t.phase == "search" and t.reports]
    best = max(
        scored, key=lambda t: max(m["val_macro_f1"] for m in t.reports.values()), default=None
    )
    return {
        "run_id": run.name,
        "state": facts["state"],
        "wall_s": facts["wall_s"],
        "stages": list(last.values()),
        "trials": counts,
        "running": [
            {
                "trial_id": t.trial_id,
                "epochs": len(t.reports),
                "best": max((m["val_macro_f1"] for m in t.reports.values()), default=None),
            }
            for t in state.trials.values()
            if t.status is None and open_ == "RUNNING"
        ],
        "best": best
        and {
            "trial_id": best.trial_id,
            "variant": best.variant,
            "val_macro_f1": max(m["val_macro_f1"] for m in best.reports.values()),
        },
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities; a score that is none is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(path: Path) -> Any:
    """Read a JSON file; None where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (FileNotFoundError, ValueError):
        return None
