"""Nothing of a local cluster outlives its driver, and nothing else is touched."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from orchestrator.cluster.local_guard import MARK, guard_cluster, marking

SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
DRIVER = f"""
import os, subprocess, sys, time
from orchestrator.cluster.local_guard import guard_cluster, marking

def start():
    return subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True).pid

with guard_cluster() as mark:
    with marking(mark):
        pids = [start()]
    pids.append(start())
    if sys.argv[1] == "hold":
        pids.append(os.fork())  # keeps the pipe to the guard open
        if not pids[-1]:
            time.sleep(60)
    print(*pids, flush=True)
    time.sleep(0 if sys.argv[1] == "end" else 60)
"""


def is_running(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("how", ["killed", "end", "hold"])
def test_what_a_driver_leaves_is_ended_and_other_processes_are_not(how):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, how], stdout=subprocess.PIPE, text=True
    )
    pids = map(int, driver.stdout.readline().split())
    left, other, *forks = map(psutil.Process, pids)
    try:
        if how != "end":
            driver.kill()
        driver.wait(30)
        until = time.monotonic() + 30
        while is_running(left) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_running(left)
        assert is_running(other)
    finally:
        for process in (left, other, *forks):
            if is_running(process):
                process.kill()


def test_a_guard_leaves_no_mark_and_ends_with_its_block():
    with guard_cluster() as mark:
        guards = [process for process in psutil.Process().children() if mark in process.cmdline()]
        assert 1 == len(guards)
        with marking(mark):
            assert mark == os.environ[MARK]
        assert MARK not in os.environ
    assert not is_running(guards[0])
