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
        guards = []
        until = time.monotonic() + 30
        while not guards and time.monotonic() < until:  # a new process has no command line at first
            children = psutil.Process().children()
            guards = [process for process in children if mark in process.cmdline()]
        assert 1 == len(guards)
        with marking(mark):
            assert mark == os.environ[MARK]
        assert MARK not in os.environ
    assert not is_running(guards[0])


RENAMED = """
import os, sys, time
from data_prep.process_title import show_process_title
os.write(int(sys.argv[1]), b"%d " % os.getpid())
time.sleep(2)
show_process_title("a name that is longer than the command and its environment " * 200)
os.write(int(sys.argv[1]), b"renamed\\n")
time.sleep(60)
"""
SERVER = f"""
import subprocess, sys, time
words = [sys.executable, "-c", {RENAMED!r}, sys.argv[1]]
subprocess.Popen(words, pass_fds=[int(sys.argv[1])])
time.sleep(60)
"""
SERVED = f"""
import subprocess, sys, time
from orchestrator.cluster.local_guard import guard_cluster, marking
with guard_cluster() as mark:
    with marking(mark):
        subprocess.Popen([sys.executable, "-c", {SERVER!r}, "1"], start_new_session=True)
    time.sleep(60)
"""


def test_a_process_that_writes_over_its_environment_is_ended_too():
    driver = subprocess.Popen([sys.executable, "-c", SERVED], stdout=subprocess.PIPE, text=True)
    pid, renamed = driver.stdout.readline().split()
    agent = psutil.Process(int(pid))
    assert "renamed" == renamed
    assert MARK not in agent.environ(), "as with the agents of Ray, the mark cannot be read"
    driver.kill()
    driver.wait()
    until = time.monotonic() + 30
    while is_running(agent) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(agent)
