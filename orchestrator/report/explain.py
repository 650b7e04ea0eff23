"""Why a trial or a stage is in its state, told from the ledger alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

from orchestrator.base.errors import SpecError, UserError
from orchestrator.base.versions import STAGE_NAMES
from orchestrator.store.events import (
    Event,
    LimitReached,
    Repaired,
    RunEnded,
    RunResumed,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    WorkerDied,
)
from orchestrator.store.ledger import TrialRecord, is_live, one_trial, read, replay
from orchestrator.store.run_dir import RunPaths

_SCORE = "val_macro_f1"
_FOLLOW_EVERY_S = 0.5
_CAUSES = {
    "raised": "its code raised an error; the same would happen again, so it was not tried again",
    "diverged": "a loss or score was no finite number",
    "metric": "its report could not be used",
    "hung": "it hung and was killed",
    "memory": "it did not fit into memory; the sampler was told to go elsewhere",
    "disk": "the disk was full",
    "source": "the trial whose feature map it stands on was not finished",
    "exited": "its process ended by itself",
    "killed": "its process was killed from outside",
    "node": "the machine it ran on was lost",
}


def why(paths: RunPaths, item: str) -> list[str]:
    """Return what is known of a stage, a trial (an id or a unique prefix) or a setting of a run, as lines.

    Raises:
        SpecError: nothing of the run goes by that name.
    """
    events = read(paths.events) if paths.events.is_file() else []
    if item in STAGE_NAMES:
        return _stage(paths, item, events)
    trials = list(replay(events).trials.values())
    of_setting = [trial for trial in trials if trial.setting == item]
    if of_setting:
        return [line for trial in of_setting for line in (*_trial(paths, trial, events), "")][:-1]
    try:
        return _trial(paths, one_trial(trials, item, "a stage, a trial or a setting"), events)
    except UserError as error:
        raise SpecError(f"{error}; stages: {', '.join(STAGE_NAMES)}") from None


def _stage(paths: RunPaths, name: str, events: list[Event]) -> list[str]:
    told = [event for event in events if isinstance(event, StageEnded) and event.stage == name]
    if told:
        last = told[-1]
        lines = [
            f"stage {name}: {last.outcome} after {last.wall_s or 0.0:.1f} s",
            f"  {last.note or ''}".rstrip(),
        ]
        if last.outcome == "FAILED" and paths.error.is_file():
            lines += [f"  traceback: {paths.error}"]
        if last.outcome == "BLOCKED":
            failed = [
                event
                for event in events
                if isinstance(event, StageEnded) and event.outcome == "FAILED"
            ]
            lines += [f"  by {event.stage}: {event.note}" for event in failed[-1:]]
        return [line for line in lines if line.strip()]
    planned = next(
        (one for one in (paths.read_json("plan") or {}).get("stages", []) if one["name"] == name),
        None,
    )
    return [
        f"stage {name}: has not ended",
        f"  planned as {planned['outcome']}: {planned['why']}" if planned else "",
    ]


def _trial(paths: RunPaths, trial: TrialRecord, events: list[Event]) -> list[str]:
    lines = [f"trial {trial.trial_id}: {trial.status or 'RUNNING'}"]
    if trial.error:
        lines.append(f"  {trial.error}")
    if trial.cause:
        lines.append(f"  {trial.cause}: {_CAUSES.get(trial.cause, '')}".rstrip(": "))
    if trial.why:
        lines.append(f"  stopped early: {trial.why}")
    if trial.is_cached:
        lines.append("  the store had it finished; nothing was trained")
    started = trial.started
    fold = "" if started.fold is None else f", fold {started.fold}"
    lines.append(
        f"  {started.phase} of variant {started.variant}, setting {started.setting}, "
        f"seed {started.seed}{fold}"
    )
    lines += [f"  {path}: {value}" for path, value in started.params.items()]
    scores = [f"{epoch}: {metrics[_SCORE]:.4f}" for epoch, metrics in sorted(trial.reports.items())]
    shown = scores if len(scores) <= 12 else [*scores[:4], "...", *scores[-6:]]
    lines.append(f"  {_SCORE} by epoch: {', '.join(shown) or 'no report yet'}")
    for event in events:
        is_of_trial = isinstance(event, TrialEvent) and event.trial_id == trial.trial_id
        if is_of_trial and (sentence := describe(event)):
            lines.append(f"  {_clock(event.time)} {sentence}")
    log = paths.logs / f"{trial.trial_id}.log"
    return [*lines, f"  printed: {log}"] if log.is_file() else lines


def describe(event: Event) -> str | None:  # noqa: C901, PLR0911 - one line a kind
    """Return an event as a sentence, or None where a person would not want to know."""
    match event:
        case RunStarted():
            return f"run started: {event.run_id}"
        case RunResumed():
            return f"run resumed: {event.run_id}"
        case RunEnded():
            return f"run ended: {event.state}"
        case Repaired():
            return f"a torn last record of {event.lost_bytes} bytes was dropped"
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


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def story(paths: RunPaths, *, follow: bool = False) -> Iterator[str]:
    """Yield what happened in a run, a line per event that a person would want to know; `follow` goes on to its end."""
    seen = 0
    while True:
        live = follow and is_live(paths.root)
        events = read(paths.events) if paths.events.is_file() else []
        for event in events[seen:]:
            if sentence := describe(event):
                yield f"{_clock(event.time)} {sentence}"
        seen = len(events)
        if not live:
            break
        time.sleep(_FOLLOW_EVERY_S)
    if paths.driver_log.is_file() and paths.driver_log.stat().st_size:
        yield f"the driver printed: {paths.driver_log}"


def printed(paths: RunPaths, name: str) -> list[str]:
    """Return what a trial has printed, as lines.

    Raises:
        UserError: there is no such trial.
    """
    trial = one_trial(list(replay(read(paths.events)).trials.values()), name, "a trial")
    log = paths.logs / f"{trial.trial_id}.log"
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
