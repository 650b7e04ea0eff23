"""Where the time of an epoch goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PARTS = ("start", "data", "steps", "evaluation", "checkpoint")
"""What a training does: everything before its first step; waiting for a batch; steps; scoring the
val part; what a checkpoint keeps the loop from."""


class Clock:
    """Adds up seconds by part. A device works on its own: what is timed is the loop that feeds it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def waiting(self, items: Iterable[T], part: str) -> Iterator[T]:
        """Time how long each item takes to come."""
        began = time.perf_counter()
        for item in items:
            self.add(part, time.perf_counter() - began)
            yield item
            began = time.perf_counter()
        self.add(part, time.perf_counter() - began)

    def seconds(self, part: str) -> float:
        """Return the seconds of a part so far."""
        return self._seconds.get(part, 0.0)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part as metrics, `data_s` and so on, and begin anew."""
        seconds = {f"{part}_s": round(value, 6) for part, value in self._seconds.items()}
        self._seconds = {}
        return seconds
