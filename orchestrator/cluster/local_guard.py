"""The guard of a local cluster: it ends what the cluster leaves when its driver has ended, however that was.

Linux ends Ray's servers together with a killed driver. Their children are left: agents report the
end of their raylet to a GCS that has ended too, and wait for it for a minute. A process that a training
has started can live for ever.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

MARK = "ROBUST_VOTE_CLUSTER"  # in the environment of all processes of a cluster
_LOOK_EVERY_S = 0.2
_START_S = 60.0  # in which a cluster starts its processes
_NOTE_EVERY_S = 0.5  # in that time; a process of Python needs longer until it has a name of its own
_NOTE_LATER_S = 5.0
_LIMIT_S = 10.0  # for the end of all processes
_WAIT_S = 5.0  # of a driver for its guard


@contextmanager
def guard_cluster() -> Iterator[str]:
    """End what is left of a cluster when the block, or this process, ends; yield the cluster's mark.

    Only processes that have the mark in their environment are ended.
    """
    mark = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid()), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt is for the driver
    )
    try:
        yield mark
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def marking(mark: str) -> Iterator[None]:
    """Give all processes that are started in the block, and their children, a cluster's mark."""
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]


def main(parent: int, mark: str) -> None:
    """Wait for the end of the driver, or of its block; then end all processes of the cluster."""
    cluster = _Cluster(parent, mark)
    began = time.monotonic()
    looked = began
    while os.getppid() == parent:
        # the end of the pipe is not enough: a fork of the driver may hold it open
        if select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
            break
        every_s = _NOTE_EVERY_S if time.monotonic() - began < _START_S else _NOTE_LATER_S
        if time.monotonic() - looked >= every_s:
            cluster.note()
            looked = time.monotonic()
    until = time.monotonic() + _LIMIT_S
    while cluster.kill() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


class _Cluster:
    """The processes of a cluster, as far as they are known."""

    def __init__(self, driver: int, mark: str) -> None:
        self._driver = driver
        self._mark = mark
        self._noted: set[psutil.Process] = set()

    def note(self) -> None:
        """Note what Ray's servers have started.

        A process of Ray that writes a name of its own over its command writes over its environment too.
        """
        with suppress(psutil.Error):
            for child in psutil.Process(self._driver).children():
                if child in self._noted or self._is_marked(child):
                    self._noted.add(child)
                    self._noted.update(child.children(recursive=True))

    def kill(self) -> int:
        """Kill all processes of the cluster; return how many there were."""
        n_alive = 0
        for process in {*self._noted, *filter(self._is_marked, psutil.process_iter())}:
            with suppress(psutil.Error):  # it has ended
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    n_alive += 1
                    process.kill()
        return n_alive

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except psutil.Error:  # it has ended, or is another user's
            return False


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
