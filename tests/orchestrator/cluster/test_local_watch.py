"""A run does not wait for ever for servers of its own cluster that have died."""

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
