"""What a trial did with its time."""

from __future__ import annotations

import time
from collections.abc import Mapping

from orchestrator.store.tables import END, WAITING
from trainers.overlap.clock import PARTS

_SLACK_S = 0.5  # clocks of two processes


class TrialTimes:
    """Adds up the parts of one attempt at a trial, from its hand-out to its end."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._last_report = self.began

    def on_report(self, metrics: Mapping[str, float]) -> None:
        """Take in an epoch that was trained in this attempt."""
        for part in PARTS:
            self._parts[part] += metrics.get(f"{part}_s", 0.0)
        self._last_report = time.monotonic()

    def parts(self, *, is_complete: bool) -> dict[str, float] | None:
        """Return seconds per part, rounded; None where its trainer timed nothing in this attempt.

        Args:
            is_complete: what came after the last report was the trial's own end (predictions, files).

        Returns:
            The trainer's parts, `end`, and `waiting`: all that is left, for a worker, for the driver's
            answers, and for a process that had to come up.
        """
        now = time.monotonic()
        timed = sum(self._parts.values())
        if not timed or timed > now - self.began + _SLACK_S:  # the epochs were trained before
            return None
        parts = dict(self._parts)
        parts[END] = now - self._last_report if is_complete else 0.0
        parts[WAITING] = max(0.0, now - self.began - sum(parts.values()))
        return {name: round(seconds, 3) for name, seconds in parts.items()}
