"""The watch over a local cluster: a run must not wait for ever for servers that have died."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.base.errors import UserError

_LOOK_EVERY_S = 1.0
_LEAVE_S = 30.0  # for the main thread, once it is interrupted
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
    died: list[str] = []
    closing = threading.Event()
    closed = threading.Event()
    events = (closing, closed)
    threading.Thread(target=_interrupt_if_dead, args=(node, died, *events), daemon=True).start()
    try:
        yield closing
    except KeyboardInterrupt:
        if not died:
            raise
        raise UserError(_text(died[0])) from None
    finally:
        closing.set()
        closed.set()


def _text(name: str) -> str:
    return (
        f"the local Ray cluster lost its {name}: it was killed, or memory ran out; "
        "submit again, what is finished is kept"
    )


def _interrupt_if_dead(
    node: Any, died: list[str], closing: threading.Event, closed: threading.Event
) -> None:
    while not closing.wait(_LOOK_EVERY_S):
        dead = [_NEEDED[kind] for kind, _ in node.dead_processes() if kind in _NEEDED]
        if not dead or closing.is_set():
            continue
        died.append(dead[0])
        _thread.interrupt_main()
        if not closed.wait(_LEAVE_S):  # it waits inside of Ray, where no interrupt arrives
            sys.stderr.write(_text(dead[0]) + "\n")
            sys.stderr.flush()
            os._exit(1)
        return
