"""Faults of what surrounds a run: a full disk, little memory, few descriptors, a wrong clock.

They are injected into real runs like faults of processes; see `tests/faults/processes.py`.
"""

import contextlib
import resource
import subprocess
import time
from contextlib import contextmanager

import psutil

from tests.faults.processes import Fault
from tests.faults.rig import Rig

STORE_MB = 64
_BEFORE = {
    "prepare": "audit",
    "search": "prepare",
    "confirm": "search",
    "vote": "select",
    "report": "vote",
}
_END_S = 120.0  # until a driver whose disk is full has ended


@contextmanager
def small_store(root):
    """Yield a rig whose store is a small file system of its own; None where none may be mounted."""
    rig = Rig(root)
    rig.store.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={STORE_MB}m", "tmpfs", rig.store]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield rig
    finally:
        subprocess.run(["umount", "-l", rig.store], check=True)


def _reach(submit, rng, stage, longest_s):
    """Wait for a random moment of a stage; return False if the driver has ended before."""
    if not submit.wait_until(lambda: _BEFORE[stage] in submit.stages()):
        return False
    time.sleep(rng.uniform(0, longest_s))
    return not submit.has_ended and stage not in submit.stages()


def _fill(stage, longest_s):
    """Fill the store's file system, and free it when the driver has ended."""

    def inject(submit, rng):
        if not _reach(submit, rng, stage, longest_s):
            return False
        filler = submit.rig.store / "filler"
        with filler.open("wb", buffering=0) as file:
            _write_until_full(file)
        submit.end(_END_S)
        filler.unlink()
        return True

    return inject


def _write_until_full(file):
    for size in (2**16, 1):
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(size))


def _limit(kind, stage, what, spare):
    """Let a process have no more of something than it has, and a little."""
    limit = {"memory": resource.RLIMIT_AS, "descriptors": resource.RLIMIT_NOFILE}[what]

    def inject(submit, rng):
        if not submit.wait_until(lambda: _BEFORE[stage] in submit.stages()):
            return False
        process = submit.driver if kind == "driver" else submit.wait_for(kind, limit_s=60)
        if process is None or stage in submit.stages():
            return False
        time.sleep(rng.uniform(0, 0.5))
        try:
            used = process.memory_info().vms if what == "memory" else process.num_fds()
            resource.prlimit(process.pid, limit, (used + spare, used + spare))
        except (psutil.Error, OSError):
            return False
        return True

    return inject


def faults():
    """Return the faults; those of the disk need `small_store`."""

    def ending(name, inject, order):
        expected = "it ends with 1; with room again the next submit goes on"
        return Fault(name, expected, inject, codes=(1,), order=order)

    def inside(name, expected, inject, order):
        return Fault(name, expected, inject, ends_driver=False, order=order)

    goes_on = "it ends or goes on, the next submit goes on"
    return [
        ending("disk full in prepare", _fill("prepare", 2), -2),
        ending("disk full in search", _fill("search", 4), 0),
        ending("disk full in confirm", _fill("confirm", 3), 1),
        ending("disk full in vote", _fill("vote", 0.3), 2),
        ending("disk full in report", _fill("report", 0.05), 3),
        inside("memory limit of a preparation worker", "its photos go to another one",
               _limit("preparation worker", "prepare", "memory", 2**20), -3),
        inside("memory limit of a trial", "the trial is tried again",
               _limit("child", "search", "memory", 2**20), 0),
        inside("too many open files of a trial", "the trial is tried again",
               _limit("child", "search", "descriptors", 1), 0),
        inside("too many open files of the driver", goes_on,
               _limit("driver", "confirm", "descriptors", 1), 1),
        inside("memory limit of the vote", goes_on,
               _limit("vote task", "vote", "memory", 2**20), 2),
    ]  # fmt: skip
