"""What a search has cost, over all drivers of a run, and its `search.limits`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from orchestrator.spec.search_limits import Limits, seconds
from orchestrator.store.event_types import (
    DriverStarted,
    Event,
    LimitReached,
    PhaseStarted,
    StageEnded,
)


@dataclass
class Budget:
    """What a phase has used, in this driver and in earlier ones."""

    limits: Limits | None = None
    gpus_per_trial: float = 0.0
    used_s: float = 0.0  # of ended trials, summed
    earlier_s: float = 0.0  # of earlier drivers in this phase
    reached: str | None = None
    began: float = field(default_factory=time.monotonic)
    _since: float | None = None  # last event of this phase in the driver that is replayed

    def replay(self, event: Event, phase: str) -> None:
        """Take in an event of an earlier driver."""
        if isinstance(event, DriverStarted | StageEnded):
            self._since = None
        elif isinstance(event, PhaseStarted):
            self._since = event.time if event.phase == phase else None
        elif self._since is not None:
            # a clock may jump back
            self.earlier_s += max(0.0, event.time - self._since)
            self._since = event.time
        if isinstance(event, LimitReached) and event.phase == phase:
            self.reached = event.reason

    def limit_reached(self, best: float, running_s: float) -> str | None:
        """Return which limit is reached, or None.

        Args:
            best: score of all trials so far.
            running_s: seconds of the running trials, summed.
        """
        if self.limits is None:
            return None
        wall_s = self.earlier_s + time.monotonic() - self.began
        gpu_hours = (self.used_s + running_s) * self.gpus_per_trial / 3600
        if self.limits.wall and wall_s >= seconds(self.limits.wall):
            return f"search.limits.wall: {self.limits.wall} are over"
        if self.limits.gpu_hours and gpu_hours >= self.limits.gpu_hours:
            return f"search.limits.gpu_hours: {gpu_hours:.2f} of {self.limits.gpu_hours:g} are used"
        if self.limits.target is not None and best >= self.limits.target:
            return f"search.limits.target: {best:.4f} reaches {self.limits.target:g}"
        return None
