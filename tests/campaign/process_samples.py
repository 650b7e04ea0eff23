"""Memory and processor time of a command and all its descendants, sampled while it runs."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

_EVERY_S = 0.5


@dataclass(frozen=True)
class Sample:
    """The state of a process tree at one time."""

    time: float  # seconds since 1970
    driver_bytes: int  # resident memory of the command itself
    tree_bytes: int  # the same of it and its descendants; shared pages count once a process
    cpu_s: float  # used by the whole tree since it began


@dataclass
class Samples:
    """What was seen of a command."""

    returncode: int = 0
    wall_s: float = 0.0
    rows: list[Sample] = field(default_factory=list)

    def peak_tree_bytes(self, begin: float = 0.0, end: float = float("inf")) -> int:
        """Return the largest memory of the tree in an interval of time."""
        return max((row.tree_bytes for row in self.within(begin, end)), default=0)

    def peak_driver_bytes(self, begin: float = 0.0, end: float = float("inf")) -> int:
        """Return the largest memory of the command itself in an interval of time."""
        return max((row.driver_bytes for row in self.within(begin, end)), default=0)

    def cpu_s(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Return the processor time that the tree used in an interval of time."""
        rows = self.within(begin, end)
        # a command that was started again begins at zero
        return sum(max(0.0, after.cpu_s - before.cpu_s) for before, after in pairwise(rows))

    def within(self, begin: float, end: float) -> list[Sample]:
        """Return the samples of an interval of time."""
        return [row for row in self.rows if begin <= row.time <= end]


def run_sampled(
    command: Sequence[str], *, cwd: Path, log: Path, keep: Path | None = None
) -> Samples:
    """Run a command to its end and sample its process tree.

    Args:
        command: and its arguments.
        cwd: its working directory.
        log: gets what it prints.
        keep: file of the samples; those of an earlier, interrupted run are read from it.
    """
    samples = Samples()
    if keep is not None and keep.is_file():
        lines = keep.read_text(encoding="utf-8").splitlines()
        samples.rows += [Sample(**json.loads(line)) for line in lines]
    done = threading.Event()
    began = time.perf_counter()
    with log.open("ab") as stream:
        process = subprocess.Popen(command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=_watch, args=(process.pid, samples, done, keep))
        watcher.start()
        try:
            samples.returncode = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            done.set()
            watcher.join()
    samples.wall_s = time.perf_counter() - began
    return samples


def _watch(pid: int, samples: Samples, done: threading.Event, keep: Path | None) -> None:
    """Sample until the end. Processes that left the tree keep the time that was last seen."""
    used: dict[tuple[int, float], float] = {}
    while not done.wait(_EVERY_S):
        try:
            driver = psutil.Process(pid)
            tree = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        driver_bytes = 0
        tree_bytes = 0
        for process in tree:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory = process.memory_info().rss
                    used[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
            tree_bytes += memory
            if process.pid == pid:
                driver_bytes = memory
        row = Sample(time.time(), driver_bytes, tree_bytes, sum(used.values()))
        samples.rows.append(row)
        if keep is not None:
            with keep.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(row)) + "\n")
