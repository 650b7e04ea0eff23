"""What a person asks of a live run: files in `<run>/control/`, so that it works from every machine that sees the store."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

from orchestrator.base.errors import UserError
from orchestrator.search.worker import stop_file
from orchestrator.store.ledger import is_live, one_trial, read, replay
from orchestrator.store.run_dir import RunPaths, state_of

_POLL_S = 0.5
_CANCEL = "cancel"


class Listener:
    """The driver's ear: interrupts its main thread when a cancel is asked for."""

    def __init__(self, paths: RunPaths) -> None:
        self.folder = paths.control
        shutil.rmtree(self.folder, ignore_errors=True)  # wishes of an earlier driver
        self.folder.mkdir(parents=True)
        self._over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def cancelled(self) -> bool:
        return (self.folder / _CANCEL).exists()

    def _listen(self) -> None:
        while not self._over.wait(_POLL_S):
            if self.cancelled:
                os.kill(os.getpid(), signal.SIGTERM)  # the same way as from outside
                return

    def close(self) -> None:
        """Stop listening."""
        self._over.set()


def require_live(paths: RunPaths) -> None:
    """Refuse a run that nobody drives.

    Raises:
        UserError: it is not live.
    """
    if not is_live(paths.root):
        raise UserError(
            f"run {paths.run_id}: a live run was required, it is {state_of(paths)['state']}"
        )


def stop_trial(paths: RunPaths, name: str) -> str:
    """Ask for the end of a running trial and return its id; it counts as PRUNED, what it reported stays.

    Raises:
        UserError: the run is not live, or none of its running trials goes by that name.
    """
    require_live(paths)
    running = [t for t in replay(read(paths.events)).trials.values() if t.status is None]
    trial = one_trial(running, name, "a running trial")
    paths.control.mkdir(exist_ok=True)
    stop_file(paths.control, trial.trial_id).touch()
    return trial.trial_id


def cancel(paths: RunPaths, *, timeout_s: float) -> bool:
    """Ask a live run to end and wait for it; return whether it has. It can be continued later.

    Raises:
        UserError: the run is not live.
    """
    require_live(paths)
    paths.control.mkdir(exist_ok=True)
    (paths.control / _CANCEL).touch()
    until = time.monotonic() + timeout_s
    while is_live(paths.root) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return not is_live(paths.root)
