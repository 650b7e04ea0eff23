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
_EXIT_S = 3.0  # the same in a process that may be ended, while it has nothing to write down
_LEAVE_START_S = 120.0  # the same in another one; Ray then gives up first
_NEEDED = {"gcs_server": "GCS", "raylet": "raylet"}


@contextmanager
def watch_servers(node: Any) -> Iterator[threading.Event]:
    """End the block where a server of a local cluster dies.

    Ray waits for a dead raylet for ever, because it could be another machine's that comes back.

    Args:
        node: Ray's own record of the processes that it has started.

    Yields:
        An event to set before the servers are shut down.

    Raises:
        UserError: a server died.
    """

    def find_dead() -> list[str]:
        return [_NEEDED[kind] for kind, _ in node.dead_processes() if kind in _NEEDED]

    with _watch(find_dead, _LEAVE_S, at_start=False) as closing:
        yield closing


@contextmanager
def watch_start(*, may_exit: bool) -> Iterator[None]:
    """End the block, in which a local cluster starts, where one of its servers dies; Ray would wait for a minute.

    Raises:
        UserError: a server died.
    """
    servers: dict[psutil.Process, str] = {}

    def find_dead() -> list[str]:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child not in servers and child.name() in _NEEDED:
                    servers[child] = _NEEDED[child.name()]
        return [name for server, name in servers.items() if not _is_alive(server)]

    with _watch(find_dead, _EXIT_S if may_exit else _LEAVE_START_S, at_start=True):
        yield


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _watch(
    find_dead: Callable[[], list[str]], leave_s: float, *, at_start: bool
) -> Iterator[threading.Event]:
    died: list[str] = []  # what to say of it
    closing = threading.Event()
    closed = threading.Event()

    def find_text() -> str | None:
        dead = find_dead()
        return _text(dead[0], at_start=at_start) if dead else None

    arguments = (find_text, died, closing, closed, leave_s)
    threading.Thread(target=_interrupt_if_dead, args=arguments, daemon=True).start()
    try:
        yield closing
    except KeyboardInterrupt:
        if not died:
            raise
        raise UserError(died[0]) from None
    finally:
        closing.set()
        closed.set()


def _text(name: str, *, at_start: bool) -> str:
    why = "it was killed, or memory ran out"
    if at_start:  # its raylet ends itself where an agent takes more than 15 s
        why = "it was killed, memory ran out, or the machine is too busy for Ray to start"
    return f"the local Ray cluster lost its {name}: {why}; submit again, what is finished is kept"


def _interrupt_if_dead(
    find_text: Callable[[], str | None],
    died: list[str],
    closing: threading.Event,
    closed: threading.Event,
    leave_s: float,
) -> None:
    while not closing.wait(_LOOK_EVERY_S):
        text = find_text()
        if text is None or closing.is_set():
            continue
        died.append(text)
        _thread.interrupt_main()
        if not closed.wait(leave_s):  # it waits inside of Ray, where no interrupt arrives
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
            os._exit(1)
        return
