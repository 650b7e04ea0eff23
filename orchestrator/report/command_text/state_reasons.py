"""Why a trial or a stage is in its state, as the ledger records it."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.base.errors import SpecError, UserError
from orchestrator.base.stage_versions import STAGE_NAMES
from orchestrator.report.command_text.event_sentences import clock, describe
from orchestrator.store.event_types import (
    FOLD_SCORE,
    OBJECTIVE,
    SCORE,
    DriverStarted,
    Event,
    StageEnded,
    TrialEnded,
    TrialEvent,
    objective,
)
from orchestrator.store.ledger import TrialRecord, one_trial, read, replay
from orchestrator.store.run_dir import RunPaths, state_of
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.summary import PlanFile

_MAX_EPOCHS = 12
_CAUSES = {
    "raised": "its code raised an error; it would do so again, so there was no second try",
    "diverged": "a loss or a score was not a finite number",
    "metric": "its report had no usable metric",
    "hung": "it gave no sign of life and was killed",
    "memory": "it did not fit into memory; the sampler avoids such settings from now on",
    "disk": "the disk was full",
    "bucket": "the bucket of the store did not answer or refused",
    "source": "the trial whose feature map it depends on did not finish",
    "exited": "its process ended without a result",
    "killed": "its process was killed from outside",
    "node": "the machine it ran on was lost",
}


class Ending(NamedTuple):
    """Why a run has no result, and what to type next."""

    reason: str
    next_step: str

    def lines(self) -> list[str]:
        """Return both as lines."""
        return [f"reason: {self.reason}", f"next: {self.next_step}"]


def ending(paths: RunPaths, events: list[Event]) -> Ending | None:
    """Return why a run ended without a result; None if it is live or has succeeded."""
    state = state_of(paths)["state"]
    name = paths.run_id
    if state in {"RUNNING", "SUCCEEDED"}:
        return None
    if state != "FAILED":
        cause = "it was cancelled" if state == "CANCELLED" else "its driver was ended"
        return Ending(cause, f"`resume {name}` continues it")
    since_start: list[StageEnded] = []
    for event in events:
        if isinstance(event, DriverStarted):
            since_start = []
        elif isinstance(event, StageEnded) and event.outcome == "FAILED":
            since_start.append(event)
    if not since_start:
        text = "`submit` its spec again; the message says what is missing"
        return Ending("it failed before its first stage", text)
    failed = since_start[-1]
    return Ending(
        f"stage {failed.stage} failed: {failed.note}",
        f"mend that, then `resume {name}`, or `submit` a changed spec; what is done is reused. "
        f"`logs {name}` tells the story",
    )


def why(paths: RunPaths, item: str | None = None) -> list[str]:
    """Return what is known of a run, or of a stage, a trial or a setting of it, as lines.

    Args:
        paths: of the run.
        item: a stage, an id of a trial or a unique prefix of one, or a setting; None for the run.

    Raises:
        SpecError: nothing in the run has that name.
    """
    events = read(paths.events)
    if item is None:
        end = ending(paths, events)
        state = f"run {paths.run_id}: {state_of(paths)['state']}"
        return [state, *(end.lines() if end else [])]
    if item in STAGE_NAMES:
        return stage_lines(paths, item, events)
    trials = list(replay(events).trials.values())
    of_setting = [trial for trial in trials if trial.setting == item]
    if of_setting:
        lines = []
        for trial in of_setting:
            lines += [*trial_lines(paths, trial, events), ""]
        return lines[:-1]
    try:
        return trial_lines(paths, one_trial(trials, item, "a stage, a trial or a setting"), events)
    except UserError as error:
        raise SpecError(f"{error}; stages: {', '.join(STAGE_NAMES)}") from None


def stage_lines(paths: RunPaths, name: str, events: list[Event]) -> list[str]:
    """Return what is known of a stage."""
    ended = [event for event in events if isinstance(event, StageEnded)]
    of_stage = [event for event in ended if event.stage == name]
    if not of_stage:
        return _planned_stage(paths, name)
    last = of_stage[-1]
    lines = [f"stage {name}: {last.outcome} after {last.wall_s or 0.0:.1f} s"]
    if last.note:
        lines.append(f"  {last.note}")
    if last.outcome == "FAILED" and paths.error.is_file():
        lines.append(f"  traceback: {paths.error}")
    if last.outcome == "BLOCKED":
        failed = [event for event in ended if event.outcome == "FAILED"]
        lines += [f"  blocked by {event.stage}: {event.note}" for event in failed[-1:]]
    return lines


def _planned_stage(paths: RunPaths, name: str) -> list[str]:
    lines = [f"stage {name}: has not ended"]
    for stage in as_record(PlanFile, paths.read_json("plan")).stages:
        if stage.name == name:
            lines.append(f"  planned as {stage.outcome}: {stage.why}")
    return lines


def _scores_by_epoch(trial: TrialRecord) -> str:
    scores = []
    for epoch, metrics in sorted(trial.reports.items()):
        scores.append(f"{epoch}: {objective(metrics):.4f}")
    if len(scores) > _MAX_EPOCHS:
        scores = [*scores[:4], "...", *scores[-6:]]
    name = SCORE if trial.started.score else OBJECTIVE
    return f"  {name} by epoch: {', '.join(scores) or 'no report yet'}"


def trial_lines(paths: RunPaths, trial: TrialRecord, events: list[Event]) -> list[str]:
    """Return what is known of a trial; `events` holds at least its own."""
    lines = [f"trial {trial.trial_id}: {trial.status or 'RUNNING'}"]
    if trial.error:
        lines.append(f"  {trial.error}")
    if trial.cause:
        lines.append(f"  {trial.cause}: {_CAUSES.get(trial.cause, '')}".rstrip(": "))
    if trial.why:
        what = "no further fold" if trial.status == "COMPLETE" else "stopped early"
        lines.append(f"  {what}: {trial.why}")
    if FOLD_SCORE in trial.metrics:
        score = trial.metrics[FOLD_SCORE]
        lines.append(f"  {FOLD_SCORE}: {score:.4f} on the people of role val that it held out")
    if trial.is_cached:
        lines.append("  found finished in the store; nothing was trained")
    started = trial.started
    facts = f"  {started.phase} of variant {started.variant}, setting {started.setting}"
    facts += f", seed {started.seed}"
    if started.fold is not None:
        facts += f", fold {started.fold}"
    lines.append(facts)
    lines += [f"  {path}: {value}" for path, value in started.params.items()]
    lines.append(_scores_by_epoch(trial))
    lines += _time_spent(trial.ended)
    for event in events:
        is_of_trial = isinstance(event, TrialEvent) and event.trial_id == trial.trial_id
        if is_of_trial and (sentence := describe(event)):
            lines.append(f"  {clock(event.time)} {sentence}")
    log = paths.logs / f"{trial.trial_id}.log"
    if log.is_file():
        lines.append(f"  output: {log}")
    return lines


def _time_spent(ended: TrialEnded | None) -> list[str]:
    """Return what a trial did with its time, the largest part first; no line where it is not known."""
    if ended is None or not ended.parts:
        return []
    wall_s = ended.wall_s or 0.0
    ordered = sorted(ended.parts.items(), key=lambda part: -part[1])
    largest, seconds = ordered[0]
    share = seconds / max(wall_s, 1e-3)
    listed = ", ".join(f"{name} {value:.1f}" for name, value in ordered if value >= 0.05)
    return [f"  {wall_s:.1f} s, most of it {largest} ({100 * share:.0f} %): {listed}"]
