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
    TrialEnded,
)


@dataclass
class Budget:
    """What a phase has used, in this driver and in earlier ones."""

    limits: Limits | None = None
    gpus_per_trial: float = 0.0  # 0 where each trial has a part of its own
    used_s: float = 0.0  # of ended trials, summed
    used_card_s: float = 0.0  # of those with a part of their own, times that part
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

    def spend(self, end: TrialEnded) -> None:
        """Take in what a trial has used."""
        seconds_used = end.wall_s or 0.0
        self.used_s += seconds_used
        self.used_card_s += seconds_used * (end.gpu or 0.0)

    def limit_reached(
        self, best: float, running_s: float, running_card_s: float = 0.0
    ) -> str | None:
        """Return which limit is reached, or None.

        Args:
            best: score of all trials so far.
            running_s: seconds of the running trials, summed.
            running_card_s: likewise, times each one's own part of a card.
        """
        if self.limits is None:
            return None
        wall_s = self.earlier_s + time.monotonic() - self.began
        card_s = (self.used_s + running_s) * self.gpus_per_trial
        gpu_hours = (card_s + self.used_card_s + running_card_s) / 3600
        if self.limits.wall and wall_s >= seconds(self.limits.wall):
            return f"search.limits.wall: {self.limits.wall} are over"
        if self.limits.gpu_hours and gpu_hours >= self.limits.gpu_hours:
            return f"search.limits.gpu_hours: {gpu_hours:.2f} of {self.limits.gpu_hours:g} are used"
        if self.limits.target is not None and best >= self.limits.target:
            return f"search.limits.target: {best:.4f} reaches {self.limits.target:g}"
        return None
