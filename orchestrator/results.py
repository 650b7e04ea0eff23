"""What came out of a run, as tables for people and for programs."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from orchestrator.ledger import read, replay

_SHOWN = ("trial_id", "variant", "phase", "seed", "fold", "status", "epochs", "val_macro_f1", "val_accuracy", "params")


def trials_view(run: Path) -> list[dict[str, Any]]:
    """Return the rows of trials.parquet, the best search trials first, then confirm; empty while there are none."""
    path = run / "trials.parquet"
    if not path.is_file():
        return []
    from orchestrator import tables  # noqa: PLC0415

    rows: list[dict[str, Any]] = tables.read(path).to_pylist()
    return sorted(rows, key=lambda row: (row["phase"] != "search", -(row["val_macro_f1"] or -1.0), row["trial_id"]))


def render_results(run: Path, form: str) -> str:
    """Return the trials and the ensemble as a table, CSV or JSON."""
    rows = trials_view(run)
    if form == "json":
        return json.dumps({"run_id": run.name, "trials": rows, "ensemble": ensemble(run), "hypotheses": _json(run / "hypotheses.json")}, indent=1) + "\n"
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else list(_SHOWN), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> str:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    out = io.StringIO()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _SHOWN:
        table.add_column(name.replace("val_", ""), justify="left" if name in {"trial_id", "variant", "phase", "status", "params"} else "right",
                         no_wrap=name != "params")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in _SHOWN))
    Console(file=out, width=150, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "params":
        return ", ".join(f"{path.rsplit('.', 2)[-2]}.{path.rsplit('.', 1)[-1]}={item:.3g}" if isinstance(item, float)
                         else f"{path.rsplit('.', 2)[-2]}.{path.rsplit('.', 1)[-1]}={item}" for path, item in json.loads(value).items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def ensemble(run: Path) -> dict[str, Any] | None:
    """Return the members and the ensemble's scores, or None before there are any."""
    found = _json(run / "selection.json")
    return {"members": found["members"], **found["ensemble"]} if found else None


def ensemble_lines(run: Path) -> list[str]:
    """Return the ensemble's score in words, each with its interval and what it rests on."""
    found = ensemble(run)
    if found is None:
        return ["no ensemble yet"]
    lines = [f"ensemble of {len(found['members'])}: {', '.join(found['members'])}"]
    for name, title in (("oof", "out-of-fold"), ("test", "test")):
        if scores := found.get(name):
            f1, accuracy = scores["macro_f1"], scores["accuracy"]
            lines.append(f"{title:<12} macro F1 {_span(f1)}, accuracy {_span(accuracy)}; n {f1['n_samples']} photos, "
                         + ("photos resampled: too narrow" if f1["too_narrow"] else f"{f1['n_groups']} groups"))
    if not found.get("test"):
        lines.append("no test labels: no test score")
    for row in _json(run / "hypotheses.json") or []:
        lines.append(f"{row['claim']}: {row['verdict']} ({row['metric']} {row['difference']:+.3f}, 90 % interval {row['low']:+.3f} to "
                     f"{row['high']:+.3f}, p {row['p_adjusted']:.3f}, {row['n_groups']} groups)")
    return lines


def _span(bounds: dict[str, Any]) -> str:
    return f"{bounds['estimate']:.3f} (90 % interval {bounds['low']:.3f} to {bounds['high']:.3f})"


def status_view(run: Path) -> dict[str, Any]:
    """Return a run's state from its ledger alone: stages, trials by status, the best so far. Imports nothing heavy."""
    from orchestrator.runs import RunPaths, state_of  # noqa: PLC0415

    events = read(run / "events.jsonl") if (run / "events.jsonl").is_file() else []
    state = replay(events)
    last: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] in {"run_started", "run_resumed"}:
            last = {}
        elif event["event"] == "stage":
            last[event["stage"]] = {key: event.get(key) for key in ("stage", "outcome", "wall_s", "note")}
    counts: dict[str, int] = {}
    for trial in state.trials.values():
        counts[trial.status or "RUNNING"] = counts.get(trial.status or "RUNNING", 0) + 1
    scored = [t for t in state.trials.values() if t.phase == "search" and t.reports]
    best = max(scored, key=lambda t: max(m["val_macro_f1"] for m in t.reports.values()), default=None)
    facts = state_of(RunPaths(run))
    return {
        "run_id": run.name, "state": facts["state"], "wall_s": facts["wall_s"], "stages": list(last.values()), "trials": counts,
        "best": best and {"trial_id": best.trial_id, "variant": best.facts["variant"],
                          "val_macro_f1": max(m["val_macro_f1"] for m in best.reports.values())},
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
