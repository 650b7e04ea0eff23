"""What the server keeps between requests: opened runs, and their result files while they do not change."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from orchestrator.board.live_hypotheses import ClaimsSoFar
from orchestrator.board.live_run_state import LiveRun, LiveTrial
from orchestrator.board.run_list import RunList
from orchestrator.board.trial_table import TrialTable
from orchestrator.report.load import Run, load_live
from orchestrator.store.artifacts import Store
from orchestrator.store.ledger import is_live
from orchestrator.store.run_dir import RunPaths, all_runs

_MAX_OPENED = 8
_MAX_WHOLE = 3000
"""More trials are not handed to the report's sections as a whole."""


class OpenedRun:
    """One run: its ledger, its table of trials, and its result files."""

    def __init__(self, paths: RunPaths, store: Store) -> None:
        self.live = LiveRun(paths)
        self.claims = ClaimsSoFar(store)
        self.table = TrialTable(self.live)
        self._files: Run | None = None
        self._read_at: object = None

    def report(self, trials: list[LiveTrial], *, with_curves: bool = False) -> Run:
        """Return the run as the sections of the report read it.

        Args:
            trials: those that the sections are to show.
            with_curves: whether their epochs are needed.
        """
        live = self.live
        with live.lock:
            times = live.file_times()
            if self._files is None or self._read_at != times:
                self._files = load_live(live.paths.root, list(live.events), (), ())
                self._read_at = times
            epochs = [row for trial in trials for row in trial.epochs()] if with_curves else []
            return dataclasses.replace(
                self._files,
                events=list(live.events),
                trials=live.rows(trials),
                curves=tuple(epochs),
            )

    def telling_trials(self) -> list[LiveTrial]:
        """Return all trials, or those of the members where there are very many."""
        trials = list(self.live.trials.values())
        if len(trials) <= _MAX_WHOLE:
            return trials
        members = set(self.report([]).members)
        return [trial for trial in trials if trial.setting in members]


class Hub:
    """The store, and the runs that were looked at last."""

    def __init__(self, store: Store, base: Path) -> None:
        """Open a store.

        Args:
            store: whose runs are shown.
            base: the folder that relative paths of uploaded specs start from.
        """
        self.store = store
        self.base = base
        self.runs = RunList(store.root)
        self.is_closing: Callable[[], bool] = lambda: False
        self._opened: OrderedDict[str, OpenedRun] = OrderedDict()
        self._lock = threading.Lock()

    def read_ahead(self) -> None:
        """Read the runs that are live and the latest one, so that their first page is complete."""
        for number, paths in enumerate(all_runs(self.store.root)[:_MAX_OPENED]):
            opened = self.open(paths.run_id) if number == 0 or is_live(paths.root) else None
            while opened and opened.live.n_unread_bytes and not self.is_closing():
                opened.live.refresh()

    def open(self, run_id: str) -> OpenedRun | None:
        """Return a run by its id; None where the store has no such run."""
        folder = self.store.root / "runs"
        paths = RunPaths(folder / run_id)
        is_name = Path(run_id).name == run_id and not run_id.startswith(".")
        if not is_name or not paths.events.is_file():
            return None
        with self._lock:
            opened = self._opened.pop(run_id, None) or OpenedRun(paths, self.store)
            self._opened[run_id] = opened
            while len(self._opened) > _MAX_OPENED:
                self._opened.popitem(last=False)
        return opened
