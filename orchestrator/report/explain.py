"""Why a trial or a stage is in its state, told from the ledger alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.base.errors import SpecError, UserError
from orchestrator.base.versions import STAGES
from orchestrator.store.ledger import TrialState, is_live, one_trial, read, replay
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
    if item in STAGES:
        return _stage(paths, item, events)
    trials = list(replay(events).trials.values())
    of_setting = [trial for trial in trials if trial.facts["setting"] == item]
    if of_setting:
        return [line for trial in of_setting for line in (*_trial(paths, trial, events), "")][:-1]
    try:
        return _trial(paths, one_trial(trials, item, "a stage, a trial or a setting"), events)
    except UserError as error:
        raise SpecError(f"{error}; stages: {', '.join(STAGES)}") from None


def _stage(paths: RunPaths, name: str, events: list[dict[str, Any]]) -> list[str]:
    told = [event for event in events if event["event"] == "stage" and event["stage"] == name]
    if told:
        last = told[-1]
        lines = [
            f"stage {name}: {last['outcome']} after {last['wall_s']:.1f} s",
            f"  {last.get('note') or ''}".rstrip(),
        ]
        if last["outcome"] == "FAILED" and paths.error.is_file():
            lines += [f"  traceback: {paths.error}"]
        if last["outcome"] == "BLOCKED":
            blocked = next(
                (event for event in reversed(events) if event.get("outcome") == "FAILED"), None
            )
            lines += [f"  by {blocked['stage']}: {blocked.get('note')}"] if blocked else []
        return [line for line in lines if line.strip()]
    planned = next(
        (one for one in (paths.read_json("plan") or {}).get("stages", []) if one["name"] == name),
        None,
    )
    return [
        f"stage {name}: has not ended",
        f"  planned as {planned['outcome']}: {planned['why']}" if planned else "",
    ]


def _trial(paths: RunPaths, trial: TrialState, events: list[dict[str, Any]]) -> list[str]:
    facts, end = trial.facts, trial.end
    lines = [f"trial {trial.trial_id}: {trial.status or 'RUNNING'}"]
    if end.get("error"):
        lines.append(f"  {end['error']}")
    if end.get("cause"):
        lines.append(f"  {end['cause']}: {_CAUSES.get(end['cause'], '')}".rstrip(": "))
    if end.get("why"):
        lines.append(f"  stopped early: {end['why']}")
    if end.get("cached"):
        lines.append("  the store had it finished; nothing was trained")
    fold = "" if facts["fold"] is None else f", fold {facts['fold']}"
    lines.append(
        f"  {facts['phase']} of variant {facts['variant']}, setting {facts['setting']}, seed {facts['seed']}{fold}"
    )
    lines += [f"  {path}: {value}" for path, value in facts["params"].items()]
    scores = [f"{epoch}: {metrics[_SCORE]:.4f}" for epoch, metrics in sorted(trial.reports.items())]
    shown = scores if len(scores) <= 12 else [*scores[:4], "...", *scores[-6:]]
    lines.append(f"  {_SCORE} by epoch: {', '.join(shown) or 'no report yet'}")
    lines += [f"  {_clock(event['time'])} {tell(event)}" for event in events if event.get("trial_id") == trial.trial_id
              and event["event"] in _TOLD]  # fmt: skip
    log = paths.logs / f"{trial.trial_id}.log"
    return [*lines, f"  printed: {log}"] if log.is_file() else lines


_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "run_started": lambda e: f"run started: {e['run_id']}",
    "run_resumed": lambda e: f"run resumed: {e['run_id']}",
    "run_ended": lambda e: f"run ended: {e['state']}",
    "repaired": lambda e: f"a torn last record of {e['lost_bytes']} bytes was dropped",
    "stage": lambda e: f"stage {e['stage']}: {e['outcome']} {e.get('note') or ''}".rstrip(),
    "limit_reached": lambda e: f"limit reached: {e['reason']}",
    "trial_started": lambda e: f"{e['trial_id']} started",
    "worker_died": lambda e: f"{e['trial_id']} will be tried again: {e['error']}",
    "trial_reopened": lambda e: f"{e['trial_id']} failed by chance and is tried again",
    "trial_ended": lambda e: (
        f"{e['trial_id']} {e['status']} {e.get('error') or e.get('why') or ''}".rstrip()
    ),
}


def tell(event: dict[str, Any]) -> str:
    """Return an event as a sentence."""
    return _TOLD[event["event"]](event)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def story(paths: RunPaths, *, follow: bool = False) -> Iterator[str]:
    """Yield what happened in a run, a line per event that a person would want to know; `follow` goes on to its end."""
    seen = 0
    while True:
        live = follow and is_live(paths.root)
        events = read(paths.events) if paths.events.is_file() else []
        yield from (
            f"{_clock(event['time'])} {tell(event)}"
            for event in events[seen:]
            if event["event"] in _TOLD
        )
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
