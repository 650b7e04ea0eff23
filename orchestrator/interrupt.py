"""An interrupt that no library can swallow: raised where it comes, and once more at the next place that looks.

A KeyboardInterrupt comes at any line, also inside callbacks and finalizers whose errors Python only prints.
"""

from __future__ import annotations

import signal
from typing import Any

_asked: list[int] = []


def listen() -> None:
    """Turn SIGTERM and SIGINT into KeyboardInterrupt; a SIGINT that the shell has made void stays so."""
    signal.signal(signal.SIGTERM, _raise)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise)


def check() -> None:
    """Raise what was asked for and did not arrive.

    Raises:
        KeyboardInterrupt: this process was interrupted.
    """
    if _asked:
        raise KeyboardInterrupt


def _raise(number: int, frame: Any) -> None:
    del frame
    _asked.append(number)
    raise KeyboardInterrupt
