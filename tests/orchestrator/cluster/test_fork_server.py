"""The fork server: children that find everything imported, and that leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.fork_server import (
    ChildDied,
    ForkServerGone,
    call,
    fork,
    start_fork_server,
)
from orchestrator.run.cluster_session import LOADED_TO_PREPARE
from orchestrator.search.trial_process import TRAINING_MODULES


@pytest.fixture(scope="module")
def address():
    with start_fork_server(["wave"], threads=3) as address:
        yield address


def describe(pipe, parent):
    """Be a child that tells what it is, and then waits."""
    facts = {
        "is_loaded": "wave" in sys.modules,
        "folder": str(Path.cwd()),
        "given": os.environ.get("GIVEN"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "parent": parent == os.getppid(),
    }
    pipe.send(facts)
    if pipe.recv() == "exit":
        os._exit(3)
    time.sleep(600)


def halve(number):
    return number / 2 if number else os._exit(1)


def pid_and(_):
    return os.getpid()


class Particular(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def be_particular(item):
    raise Particular(item, "stale")


def refuse(item):
    raise ValueError(f"no {item}")


def start(address, task=describe):
    here, there = Pipe()
    child = fork(address, task, there)
    there.close()
    return child, here


def test_a_process_that_could_not_see_its_child_gets_none(address):
    """As a container that shares this machine's network and nothing else."""
    apart = ["unshare", "--pid", "--fork"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make another space of process ids")
    code = f"from orchestrator.cluster.fork_server import fork; fork({address!r}, print, None)"
    command = [*apart, sys.executable, "-c", code]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ForkServerGone" in refused.stderr
    assert "another space of process ids" in refused.stderr


def has_ended(pid):
    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or " Z " in stat.read_text():
            return True
        time.sleep(0.02)
    return False


def test_a_child_has_the_modules_of_the_loader_and_the_place_of_its_worker(
    address, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it in a worker
    child, pipe = start(address)
    facts = {"is_loaded": True, "folder": str(tmp_path), "given": "1", "threads": "1"}
    assert {**facts, "parent": True} == pipe.recv()
    pipe.send("exit")
    assert 3 == os.waitstatus_to_exitcode(child.wait())


def test_a_child_ends_with_its_worker(address):
    child, pipe = start(address)
    pipe.recv()
    pipe.send("sleep")
    child._control.close()  # as the end of a worker does
    assert has_ended(child.pid)


def test_a_driver_that_is_killed_leaves_neither_server_nor_child():
    code = """
import sys, time
from tests.orchestrator.cluster import test_fork_server as here
with here.start_fork_server([], threads=1) as address:
    child, pipe = here.start(address)
    pipe.recv()
    print(child.pid, flush=True)
    time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(driver.stdout.readline())
    fork_server = psutil.Process(child).ppid()
    driver.kill()
    driver.wait()
    assert (True, True) == (has_ended(fork_server), has_ended(child))


def test_calls_share_a_child_whose_errors_are_raised_here(address):
    assert (2, 3) == (call(address, halve, 4), call(address, halve, 6))
    pid = call(address, pid_and, None)
    with pytest.raises(ValueError, match="no bread"):
        call(address, refuse, "bread")
    with pytest.raises(RuntimeError, match="Particular: bread: stale"):
        call(address, be_particular, "bread")
    assert pid == call(address, pid_and, None) != os.getpid()
    with pytest.raises(ChildDied, match="the process that ran halve died"):
        call(address, halve, 0)
    assert 1 == call(address, halve, 2)  # in another child


def test_without_a_loader_a_worker_is_told_and_a_call_is_made_here():
    with start_fork_server(["no_such_module"], threads=1) as address:
        with pytest.raises(ForkServerGone):
            start(address)
        assert os.getpid() == call(address, pid_and, None)
    with pytest.raises(ForkServerGone):
        start(address)
    with start_fork_server([], threads=1) as address, pytest.raises(ForkServerGone):
        start(address, lambda pipe, parent: None)  # no function of a module


def test_a_killed_child_is_told_by_its_status(address):
    child, pipe = start(address)
    pipe.recv()
    os.kill(child.pid, signal.SIGSEGV)
    assert signal.SIGSEGV == os.WTERMSIG(child.wait())


@pytest.mark.slow
def test_what_a_run_needs_starts_no_thread():
    """A fork copies one thread, so a lock that another one holds would be held for ever."""
    to_prepare = [name for names in LOADED_TO_PREPARE.values() for name in names]
    modules = [*to_prepare, *TRAINING_MODULES, "orchestrator.search.trial_process"]
    with start_fork_server([*modules, "wave"], threads=1) as address:
        is_loaded = False
        while not is_loaded:
            child, pipe = start(address)
            is_loaded = pipe.recv()["is_loaded"]
        fork_server = psutil.Process(child.pid).ppid()
        assert 1 == len(list(Path(f"/proc/{fork_server}/task").iterdir()))
