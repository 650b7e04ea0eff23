"""Run folders: every file name of a run in one place, and how a run is found."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.errors import SpecError

STORE_VARIABLE = "ORCHESTRATOR_STORE"
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")


def default_store() -> Path:
    """Return the store that a command uses when none is named."""
    return Path(os.environ.get(STORE_VARIABLE) or "runs-store")


@dataclass(frozen=True)
class RunPaths:
    """All files of one run (the contract's section 6)."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def store(self) -> Path:
        return self.root.parent.parent

    def __getattr__(self, name: str) -> Path:
        try:
            return self.root / _FILES[name]
        except KeyError:
            raise AttributeError(name) from None

    def read_json(self, name: str) -> Any:
        """Return one of the JSON files, or None where it does not exist yet."""
        try:
            return json.loads(getattr(self, name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


_FILES = {
    "spec": "spec.yaml",
    "resolved": "resolved.yaml",
    "plan": "plan.json",
    "events": "events.jsonl",
    "audit": "audit.json",
    "prep": "prep.json",
    "selection": "selection.json",
    "certificate": "certificate.json",
    "hypotheses": "hypotheses.json",
    "submission": "submission.csv",
    "suspects": "suspects.csv",
    "summary": "summary.json",
    "report": "report/index.html",
    "trials": "trials.parquet",
    "curves": "curves.parquet",
    "catalog": "catalog.parquet",
    "folds": "folds.parquet",
    "predictions": "predictions.parquet",
    "test_labels": "test_labels.parquet",
    "votes": "votes.parquet",
    "tune": "tune",
    "study": "study.log",
    "parts": "parts",
    "error": "error.txt",
    "driver_log": "driver.log",
    "control": "control",
    "logs": "logs",
}


def all_runs(store: Path) -> list[RunPaths]:
    """Return the runs of a store, the latest started first."""
    folder = store / "runs"
    found = (
        [RunPaths(path) for path in folder.iterdir() if (path / "events.jsonl").is_file()]
        if folder.is_dir()
        else []
    )
    return sorted(
        found, key=lambda run: -run.resolved.stat().st_mtime if run.resolved.exists() else 0
    )


def find_run(store: Path, name: str) -> RunPaths:
    """Return the run with this id, unique prefix of an id, or 'latest'.

    Raises:
        SpecError: none or several fit.
    """
    runs = all_runs(store)
    if not runs:
        raise SpecError(
            f"{store}: a store with runs was required, found none; name another with --store or submit a spec"
        )
    if name == "latest":
        return runs[0]
    exact = [run for run in runs if run.run_id == name]
    fits = exact or [run for run in runs if run.run_id.startswith(name)]
    if len(fits) != 1:
        shown = ", ".join(run.run_id for run in (fits or runs)[:8])
        found = "several: " if fits else "none; there are: "
        raise SpecError(
            f"RUN {name}: one run id or a unique prefix was required, found {found}{shown}"
        )
    return fits[0]


def state_of(run: RunPaths) -> dict[str, Any]:
    """Return {state, wall_s, ...} of a run from its summary, or RUNNING / INTERRUPTED where it has none."""
    summary = run.read_json("summary")
    if isinstance(summary, dict):
        return summary
    from orchestrator.store.ledger import is_live  # noqa: PLC0415 - only for unfinished runs

    alive = is_live(run.root)
    ended = time.time() if alive or not run.events.exists() else run.events.stat().st_mtime
    began = run.resolved.stat().st_mtime if run.resolved.exists() else ended
    return {
        "run_id": run.run_id,
        "state": "RUNNING" if alive else "INTERRUPTED",
        "wall_s": ended - began,
    }
