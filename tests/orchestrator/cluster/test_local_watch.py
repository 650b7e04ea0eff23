"""A run does not wait for ever for servers of its own cluster that have died."""

import subprocess
import sys
import time

import pytest

from orchestrator.base.errors import UserError
from orchestrator.cluster import local_watch
from orchestrator.cluster.local_watch import watch_servers


class Node:
    """Ray's record of processes; `dead` ones are noticed after a moment."""

    def __init__(self, *dead):
        self.dead, self.began = dead, time.monotonic()

    def dead_processes(self):
        return [(kind, None) for kind in self.dead] if time.monotonic() > self.began + 0.2 else []


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(local_watch, "_LOOK_EVERY_S", 0.05)


def wait(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize(("kind", "name"), [("raylet", "raylet"), ("gcs_server", "GCS")])
def test_a_dead_server_ends_the_block_with_what_to_do(kind, name):
    with (
        pytest.raises(UserError, match=f"lost its {name}: .*submit again"),
        watch_servers(Node(kind)),
    ):
        wait(60)


def test_other_processes_and_interrupts_are_left_alone():
    with watch_servers(Node("dashboard", "log_monitor")):
        wait(0.5)
    with watch_servers(Node("raylet", "gcs_server")) as closing:
        closing.set()  # from now on servers end because they are told to
        wait(0.5)
    with pytest.raises(KeyboardInterrupt), watch_servers(Node()):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), watch_servers(Node()):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "wait_for_it", ["import time; time.sleep(60)", "ctypes.CDLL(None).sleep(60)"]
)
def test_a_server_that_dies_while_ray_starts_ends_it_also_where_no_interrupt_arrives(wait_for_it):
    code = (
        "import ctypes, subprocess\n"
        "from orchestrator.base.errors import UserError\n"
        "from orchestrator.cluster import local_watch\n"
        "local_watch._LOOK_EVERY_S, local_watch._EXIT_S = 0.05, 0.5\n"
        "local_watch._NEEDED = {'sleep': 'GCS'}\n"
        "try:\n"
        "    with local_watch.watch_start(may_exit=True):\n"
        "        subprocess.Popen(['sleep', '0.3'])\n"
        f"        {wait_for_it}\n"
        "except UserError as error:\n"
        "    raise SystemExit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert 1 == done.returncode
    assert "the local Ray cluster lost its GCS" in done.stderr
