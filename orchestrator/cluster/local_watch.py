"""The watch over a local cluster: a run must not wait for ever for servers that have died."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from orchestrator.base.errors import UserError

_LOOK_EVERY_S = 1.0
_LEAVE_S = 30.0  # for the main thread, once it is interrupted
_LEAVE_START_S = 120.0  # the same while Ray starts; it gives up waiting for a dead raylet first
_EXIT_S = 3.0  # the same where it waits for a dead GCS, which has no end
_GCS = "GCS"
_NEEDED = {"gcs_server": _GCS, "raylet": "raylet"}


class ServerDied(UserError):  # noqa: N818 - says what happened
    """A server of a local cluster has died."""


@contextmanager
def watch_servers(node: Any) -> Iterator[threading.Event]:
    """End the block where a server of a local cluster dies.

    Ray waits for a dead raylet for ever, because it could be another machine's that comes back.

    Args:
        node: Ray's own record of the processes that it has started.

    Yields:
        An event to set before the servers are shut down.

    Raises:
        ServerDied: one did.
    """

    def find_dead() -> list[str]:
        return [_NEEDED[kind] for kind, _ in node.dead_processes() if kind in _NEEDED]

    def say(name: str) -> str:
        return _text(name, "it was killed, or memory ran out")

    with _watch(find_dead, say, lambda _: _LEAVE_S) as closing:
        yield closing


@contextmanager
def watch_start(*, may_exit: bool) -> Iterator[None]:
    """End the block, in which a local cluster starts, where one of its servers dies.

    Args:
        may_exit: end this process where Ray waits for a dead GCS, which nothing interrupts.

    Raises:
        ServerDied: one did.
    """
    servers: dict[psutil.Process, str] = {}

    def find_dead() -> list[str]:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child not in servers and child.name() in _NEEDED:
                    servers[child] = _NEEDED[child.name()]
        return [name for server, name in servers.items() if not _is_alive(server)]

    def say(name: str) -> str:
        # a raylet ends itself where an agent takes more than 15 s to start
        return _text(name, "it was killed, memory ran out, or the machine is too busy for Ray")

    def leave_s(name: str) -> float:
        return _EXIT_S if may_exit and name == _GCS else _LEAVE_START_S

    with _watch(find_dead, say, leave_s):
        yield


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _watch(
    find_dead: Callable[[], list[str]],
    say: Callable[[str], str],
    leave_s: Callable[[str], float],
) -> Iterator[threading.Event]:
    died: list[str] = []
    closing = threading.Event()
    closed = threading.Event()

    def interrupt_if_dead() -> None:
        while not closing.wait(_LOOK_EVERY_S):
            dead = find_dead()
            if not dead or closing.is_set():
                continue
            died.append(dead[0])
            _thread.interrupt_main()
            if not closed.wait(leave_s(dead[0])):  # it waits inside of Ray
                sys.stderr.write(say(dead[0]) + "\n")
                sys.stderr.flush()
                os._exit(1)
            return

    threading.Thread(target=interrupt_if_dead, daemon=True).start()
    try:
        yield closing
    except KeyboardInterrupt:
        if not died:
            raise
        raise ServerDied(say(died[0])) from None
    finally:
        closing.set()
        closed.set()


def _text(name: str, why: str) -> str:
    return f"the local Ray cluster lost its {name}: {why}; submit again, what is finished is kept"
