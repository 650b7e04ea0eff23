"""Requests to a live run: files in `<run>/control/`, from any machine that sees the store."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

from orchestrator.base.errors import UserError
from orchestrator.search.trial_process import stop_file
from orchestrator.store.ledger import is_live, one_trial, read, replay
from orchestrator.store.run_dir import RunPaths, state_of
from orchestrator.store.store_address import bucket_store

_POLL_S = 0.5
_CANCEL = "cancel"


class Listener:
    """A thread of the driver that interrupts the main thread when a cancel is requested."""

    def __init__(self, paths: RunPaths) -> None:
        self.folder = paths.control
        shutil.rmtree(self.folder, ignore_errors=True)  # requests to an earlier driver
        self.folder.mkdir(parents=True)
        self._closed = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def cancelled(self) -> bool:
        return (self.folder / _CANCEL).exists()

    def _listen(self) -> None:
        while not self._closed.wait(_POLL_S):
            if self.cancelled:
                os.kill(os.getpid(), signal.SIGTERM)  # as `kill` does
                return

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()


def require_live(paths: RunPaths) -> None:
    """Require that a run is live.

    Raises:
        UserError: the run is not live.
    """
    if not is_live(paths.root):
        raise UserError(
            f"run {paths.run_id}: a live run was required, it is {state_of(paths)['state']}"
        )


def stop_trial(paths: RunPaths, name: str) -> str:
    """Ask a running trial to stop and return its id; it counts as PRUNED and keeps its reports.

    Raises:
        UserError: the run is not live, or has no running trial of that name.
    """
    require_live(paths)
    running = [t for t in replay(read(paths.events)).trials.values() if t.status is None]
    trial = one_trial(running, name, "a running trial")
    request_stop(paths, trial.trial_id)
    return trial.trial_id


def request_stop(paths: RunPaths, trial_id: str) -> None:
    """Leave the request that a trial stops; a driver that does not run this trial ignores it."""
    _leave(paths, stop_file(paths.control, trial_id).name)


def _leave(paths: RunPaths, request: str) -> None:
    """Leave a request where the driver looks for it, on whatever machine it is."""
    paths.control.mkdir(exist_ok=True)
    (paths.control / request).touch()
    store = bucket_store(paths.root)
    if store is not None:
        store.runs.request(paths.root, request)


def cancel(paths: RunPaths, *, timeout_s: float) -> bool:
    """Ask a live run to end and wait for it; it can be continued later.

    Returns:
        True if the run has ended within the timeout.

    Raises:
        UserError: the run is not live.
    """
    require_live(paths)
    _leave(paths, _CANCEL)
    deadline = time.monotonic() + timeout_s
    while is_live(paths.root) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return not is_live(paths.root)


def remove_run(paths: RunPaths) -> None:
    """Delete a run's folder.

    Raises:
        UserError: it is live.
    """
    if is_live(paths.root):
        raise UserError(
            f"run {paths.run_id}: a run that has ended was required, it is live; "
            f"end it with `cancel {paths.run_id}` first"
        )
    store = bucket_store(paths.root)
    if store is not None:
        store.runs.remove(paths.root)
    shutil.rmtree(paths.root)
