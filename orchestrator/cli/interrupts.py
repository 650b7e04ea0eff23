"""The end of a run that was interrupted: in order, and by force where that takes too long."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.base.errors import INTERRUPTED, Interrupted

_LIMIT_S = 45.0  # on a busy machine the end of Ray takes ten


@contextmanager
def ending_in_time(limit_s: float = _LIMIT_S) -> Iterator[None]:
    """End this process by force if it lives so long after an interrupt in the block.

    A second Ctrl-C can hit the clean-up after the first one, and what is left then may wait for a
    server that has ended. The store is as after a kill: nothing finished is lost.

    Args:
        limit_s: seconds from the first interrupt.
    """

    def interrupt(number: int, frame: Any) -> None:
        del number, frame
        deadline = threading.Timer(limit_s, _end_by_force, [limit_s])
        deadline.daemon = True
        deadline.start()
        raise Interrupted

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # in the background of a shell
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_by_force(limit_s: float) -> None:
    text = f"not ended {limit_s:g} s after the interrupt, so ended by force; nothing finished is lost\n"
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(INTERRUPTED)
