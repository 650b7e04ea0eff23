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
from contextlib import contextmanager

MARK = "ROBUST_VOTE_CLUSTER"  # in the environment of all processes of a cluster
_LOOK_EVERY_S = 0.2
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
    """Wait for the end of the driver, or of its block; then end all marked processes."""
    while os.getppid() == parent:
        # the end of the pipe is not enough: a fork of the driver may hold it open
        if select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
            break
    until = time.monotonic() + _LIMIT_S
    while _end_marked(mark) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


def _end_marked(mark: str) -> int:
    """Kill all processes with a mark; return how many there were."""
    import psutil  # noqa: PLC0415 - not needed as long as the driver lives

    n_marked = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != mark:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                n_marked += 1
                process.kill()
        except psutil.Error:  # it has ended, or is another user's
            continue
    return n_marked


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
