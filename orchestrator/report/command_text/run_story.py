"""What happened in a run, and what its trials printed: the lines of `logs`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from orchestrator.report.command_text.event_sentences import clock, describe
from orchestrator.report.command_text.state_reasons import ending
from orchestrator.store.ledger import is_live, one_trial, read, replay
from orchestrator.store.run_dir import RunPaths

_FOLLOW_EVERY_S = 0.5


def story(paths: RunPaths, *, follow: bool = False) -> Iterator[str]:
    """Yield what happened in a run, one line per event.

    Args:
        paths: of the run.
        follow: go on until the run ends.
    """
    seen = 0
    while True:
        live = follow and is_live(paths.root)
        events = read(paths.events)
        for event in events[seen:]:
            if sentence := describe(event):
                yield f"{clock(event.time)} {sentence}"
        seen = len(events)
        if not live:
            break
        time.sleep(_FOLLOW_EVERY_S)
    end = ending(paths, events)
    if end is not None:
        yield from end.lines()
    if paths.driver_log.is_file() and paths.driver_log.stat().st_size:
        yield f"output of the driver: {paths.driver_log}"


def printed(paths: RunPaths, name: str) -> list[str]:
    """Return the output of a trial, as lines.

    Raises:
        UserError: there is no such trial.
    """
    trial = one_trial(list(replay(read(paths.events)).trials.values()), name, "a trial")
    log = paths.logs / f"{trial.trial_id}.log"
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()
