"""The state of a run from its ledger alone: what `status` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

from orchestrator.store.event_types import (
    OBJECTIVE,
    SCORE,
    DriverStarted,
    Event,
    Metrics,
    StageEnded,
    objective,
)
from orchestrator.store.fold_means import FoldTraining, best_setting, score_of
from orchestrator.store.ledger import EVENTS
from orchestrator.store.ledger_summary import TrialSummary, summarize


class StageView(TypedDict):
    """The outcome of a stage."""

    stage: str
    outcome: str
    wall_s: float | None
    note: str | None


class RunningTrial(TypedDict):
    """A trial that has not ended."""

    trial_id: str
    epochs: int
    best: float | None


class BestTrial(TypedDict):
    """The search trial with the highest score so far; of folds, the first one of the best setting."""

    trial_id: str
    variant: str
    val_macro_f1: float
    val_score: NotRequired[float]  # by the score of the spec, where it is another
    setting: NotRequired[str]  # where it is trained on folds, as what follows
    fold_score: NotRequired[float]  # the mean over its folds
    n_folds: NotRequired[int]


class StatusView(TypedDict):
    """What `status` shows."""

    run_id: str
    state: str
    wall_s: float
    stages: list[StageView]
    trials: dict[str, int]
    running: list[RunningTrial]
    best: BestTrial | None
    reason: str | None  # why it ended without a result
    next: str | None  # what to type then
    dashboard: str | None  # its page on Ray's dashboard, while it is live
    pending: str | None  # how many runs go before it, while it waits for its turn on a cluster


def status_view(run: Path) -> StatusView:
    """Return a run's state from its ledger alone: stages, trials by status, the best so far.

    Imports nothing heavy.
    """
    from orchestrator.report.command_text.state_reasons import ending  # noqa: PLC0415
    from orchestrator.store.run_dir import RunPaths, state_of  # noqa: PLC0415

    summary = summarize(run / EVENTS)
    trials = list(summary.trials.values())
    facts = state_of(RunPaths(run))
    end = ending(RunPaths(run), summary.events)
    is_running = facts["state"] == "RUNNING"
    open_status = "RUNNING" if is_running else "UNFINISHED"
    running: list[RunningTrial] = []
    for trial in trials:
        if is_running and trial.status is None:
            best = trial.best()
            running.append(
                {
                    "trial_id": trial.trial_id,
                    "epochs": len(trial.reports()),
                    "best": None if best is None else objective(best),
                }
            )
    return {
        "run_id": run.name,
        "state": facts["state"],
        "wall_s": facts["wall_s"],
        "stages": _stages(summary.events),
        "trials": dict(Counter(trial.status or open_status for trial in trials)),
        "running": running,
        "best": _best_trial(trials),
        "reason": end.reason if end else None,
        "next": end.next_step if end else None,
        "dashboard": RunPaths(run).dashboard_page if is_running else None,
        "pending": RunPaths(run).pending_text if is_running else None,
    }


def _stages(events: Iterable[Event]) -> list[StageView]:
    """Return the last outcome of each stage since the latest start."""
    stages: dict[str, StageView] = {}
    for event in events:
        if isinstance(event, DriverStarted):
            stages = {}
        elif isinstance(event, StageEnded):
            stages[event.stage] = {
                "stage": event.stage,
                "outcome": event.outcome,
                "wall_s": event.wall_s,
                "note": event.note,
            }
    return list(stages.values())


def _best_trial(trials: list[TrialSummary]) -> BestTrial | None:
    folds = _fold_trainings(trials)
    if folds:
        return _best_of_folds(folds, {trial.trial_id: trial for trial in trials})
    best: dict[str, float] = {}
    best_trial: TrialSummary | None = None
    for trial in trials:
        metrics = trial.best() if trial.phase == "search" else None
        if metrics is None:
            continue
        if best_trial is None or objective(metrics) > objective(best):
            best = metrics
            best_trial = trial
    return None if best_trial is None else _facts(best_trial, best)


def _fold_trainings(trials: list[TrialSummary]) -> list[FoldTraining]:
    trainings = []
    for trial in trials:
        if trial.place is not None:
            score = score_of(trial.status, trial.end_metrics())
            trainings.append(FoldTraining(trial.trial_id, trial.variant, trial.place, score))
    return trainings


def _best_of_folds(
    trainings: list[FoldTraining], trials: dict[str, TrialSummary]
) -> BestTrial | None:
    best = best_setting(trainings)
    if best is None:
        return None
    first = trials[best.trial_id]
    facts = _facts(first, first.end_metrics() or {})
    facts["setting"] = best.setting
    facts["fold_score"] = best.score
    facts["n_folds"] = best.n_folds
    return facts


def _facts(trial: TrialSummary, metrics: Metrics) -> BestTrial:
    facts: BestTrial = {
        "trial_id": trial.trial_id,
        "variant": trial.variant,
        "val_macro_f1": metrics[OBJECTIVE],
    }
    if SCORE in metrics:
        facts["val_score"] = metrics[SCORE]
    return facts
