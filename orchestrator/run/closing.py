"""The end of a run: the files that it leaves in any case, and what is said about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from data_prep.files import write_json
from orchestrator.base.console import Reporter
from orchestrator.base.errors import INTERRUPTED
from orchestrator.base.wording import printable
from orchestrator.planning.stage import Output
from orchestrator.search.trial_tables import best_trial
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.store.event_types import StageEnded
from orchestrator.store.ledger import Ledger, is_live, read
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.selection import Selection

_FOLLOW_EVERY_S = 0.5


def keep_results(paths: RunPaths, outputs: Mapping[str, Any], reporter: Reporter) -> None:
    """Write the joined files of a run that ended before its report stage wrote them."""
    if "confirm" not in outputs:
        return
    from orchestrator.stages.report import write_joined  # noqa: PLC0415

    try:
        write_joined(paths, outputs["confirm"], outputs.get("select"), outputs.get("vote"))
    except OSError as error:
        reporter.say(f"predictions.parquet and selection.json were not written: {error}")


def n_quarantined(outputs: Mapping[str, Output]) -> int:
    """Count the photos that could not be read or prepared."""
    samples: set[str] = set()
    for output in outputs.values():
        if isinstance(output, Catalog | Prepared):
            samples |= set(output.quarantined)
    return len(samples)


def write_summary(
    paths: RunPaths,
    ledger: Ledger,
    stages: Mapping[str, str],
    outputs: Mapping[str, Output],
    state: str,
    wall_s: float,
) -> None:
    """Write summary.json.

    Args:
        paths: of the run.
        ledger: with all its trials.
        stages: all of them, with their outcomes.
        outputs: of the stages that succeeded.
        state: of the run.
        wall_s: seconds that its drivers have taken together.
    """
    counts = {"complete": 0, "pruned": 0, "failed": 0}
    for trial in ledger.state.trials.values():
        if trial.status:
            counts[trial.status.lower()] += 1
    selection = as_record(Selection, paths.read_json("selection"))
    summary = {
        "run_id": paths.run_id,
        "state": state,
        "stages": dict(stages),
        "trials": counts,
        "quarantined": n_quarantined(outputs),
        "best": best_trial(ledger.state),
        "members": list(selection.members),
        "wall_s": round(wall_s, 1),
    }
    write_json(paths.summary, summary)


def say_results(paths: RunPaths, reporter: Reporter) -> None:
    """Print the scores of a run, the gravest warnings of its audit, and where its report is."""
    from orchestrator.report.command_text.result_tables import (  # noqa: PLC0415
        audit_lines,
        ensemble_lines,
        render_results,
    )

    reporter.say("")
    sys.stdout.write(printable(render_results(paths.root, "table")))
    sys.stdout.flush()
    for line in [*ensemble_lines(paths.root), *audit_lines(paths.root)]:
        reporter.say(escape(line))
    reporter.say(f"report: {escape(str(paths.report))}")


def follow(paths: RunPaths, reporter: Reporter) -> int:
    """Show a run that another process drives, read-only, until it ends; return its exit code."""
    seen = 0
    while True:
        live = is_live(paths.root)
        events = read(paths.events)
        for event in events[seen:]:
            if isinstance(event, StageEnded):
                reporter.outcome(event.stage, event.outcome, event.note or "", event.wall_s)
        seen = len(events)
        if not live:
            break
        time.sleep(_FOLLOW_EVERY_S)
    state = (paths.read_json("summary") or {}).get("state", "INTERRUPTED")
    reporter.say(f"run {paths.run_id}: {state}")
    return {"SUCCEEDED": 0, "INTERRUPTED": INTERRUPTED, "CANCELLED": INTERRUPTED}.get(state, 1)
