"""Run folders: all file names of a run, and how a run is found."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.errors import SpecError


@dataclass(frozen=True)
class RunPaths:
    """The files of one run (the contract's section 6)."""

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

    @property
    def dashboard_page(self) -> str | None:
        """The page of this run on Ray's dashboard, as its last driver left it; None without one."""
        path: Path = self.dashboard
        return path.read_text(encoding="utf-8") if path.is_file() else None

    @property
    def pending_text(self) -> str | None:
        """How many runs the cluster lets go before this one; None where it does not wait."""
        path: Path = self.pending
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def read_json(self, name: str) -> Any:
        """Return one of the JSON files, or None if it does not exist yet."""
        try:
            return json.loads(getattr(self, name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
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
    "copies": "copies.json",
    "hypotheses": "hypotheses.json",
    "submission": "submission.csv",
    "suspects": "suspects.csv",
    "gallery": "gallery.json",
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
    "code": "code",
    "error": "error.txt",
    "driver_log": "driver.log",
    "control": "control",
    "dashboard": "control/dashboard",
    "pending": "control/pending",
    "logs": "logs",
}


def all_runs(store: Path) -> list[RunPaths]:
    """Return the runs of a store, the latest started first."""
    runs = [RunPaths(path.parent) for path in (store / "runs").glob("*/events.jsonl")]
    return sorted(runs, key=started_at, reverse=True)


def started_at(run: RunPaths) -> float:
    """Return when a run was last started, in seconds since 1970."""
    return run.resolved.stat().st_mtime if run.resolved.exists() else 0.0


def find_run(store: Path, name: str, has: str | None = None) -> RunPaths:
    """Return the run with this id, unique prefix of an id, or 'latest'.

    Args:
        store: its folder.
        name: what the user wrote.
        has: a file of `RunPaths` that 'latest' must have, because the command reads it.

    Raises:
        SpecError: none or several fit.
    """
    runs = all_runs(store)
    if not runs:
        raise SpecError(
            f"{store}: a store with runs was required, found none; "
            "name another with --store, or submit a spec"
        )
    if name == "latest":
        return with_files(_latest(runs, has))
    fits = [run for run in runs if run.run_id == name]
    if not fits:
        fits = [run for run in runs if run.run_id.startswith(name)]
    if len(fits) != 1:
        shown = ", ".join(run.run_id for run in (fits or runs)[:8])
        number = "several:" if fits else "none; there are:"
        text = f"one run id or a unique prefix was required, found {number} {shown}"
        raise SpecError(f"RUN {name}: {text}")
    return with_files(fits[0])


def size_bytes(run: RunPaths) -> int:
    """Return what a run takes in its store."""
    from orchestrator.store.store_address import bucket_store  # noqa: PLC0415 - it may import a client

    store = bucket_store(run.root)
    n_bytes = None if store is None else store.runs.size_bytes(run.root)
    if n_bytes is not None:
        return n_bytes
    return sum(path.stat().st_size for path in run.root.rglob("*") if path.is_file())


def with_files(run: RunPaths) -> RunPaths:
    """Bring all files of a run where its store is a bucket."""
    from orchestrator.store.store_address import bucket_store  # noqa: PLC0415 - it may import a client

    store = bucket_store(run.root)
    if store is not None:
        store.runs.pull(run.root)
    return run


def _latest(runs: list[RunPaths], has: str | None) -> RunPaths:
    """Return the latest run that has a file; the latest of all where none has it."""
    if has is not None:
        for run in runs:
            if getattr(run, has).exists():
                return run
    return runs[0]


def state_of(run: RunPaths) -> dict[str, Any]:
    """Return a run's summary; without one {run_id, state, wall_s} of an unfinished run."""
    summary = run.read_json("summary")
    if isinstance(summary, dict):
        return summary
    from orchestrator.store.ledger import is_live  # noqa: PLC0415 - only for unfinished runs

    is_running = is_live(run.root)
    last_time = time.time()
    if not is_running and run.events.exists():
        last_time = run.events.stat().st_mtime
    return {
        "run_id": run.run_id,
        "state": "RUNNING" if is_running else "INTERRUPTED",
        "wall_s": last_time - (started_at(run) or last_time),
    }
