"""Events of the ledger as sentences."""

from __future__ import annotations

import time

from orchestrator.store.event_types import (
    Event,
    LimitReached,
    Repaired,
    RunEnded,
    RunResumed,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialReopened,
    TrialStarted,
    WorkerDied,
)


def describe(event: Event) -> str | None:  # noqa: C901, PLR0911 - one line a kind
    """Return an event as a sentence, or None for events that only programs need."""
    match event:
        case RunStarted():
            return f"run started: {event.run_id}"
        case RunResumed():
            return f"run resumed: {event.run_id}"
        case RunEnded():
            return f"run ended: {event.state}"
        case Repaired():
            return f"an incomplete last record of {event.lost_bytes} bytes was removed"
        case StageEnded():
            return f"stage {event.stage}: {event.outcome} {event.note or ''}".rstrip()
        case LimitReached():
            return f"limit reached: {event.reason}"
        case TrialStarted():
            return f"{event.trial_id} started"
        case WorkerDied():
            return f"{event.trial_id} will be tried again: {event.error}"
        case TrialReopened():
            return f"{event.trial_id} had a transient failure and is tried again"
        case TrialEnded():
            return f"{event.trial_id} {event.status} {event.error or event.why or ''}".rstrip()
        case _:
            return None


def clock(seconds: float) -> str:
    """Return a time as the machine's own clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
