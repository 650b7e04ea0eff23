"""Metrics of a run, which Ray exports for Prometheus; `docker/grafana.json` draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.event_types import (
    EpochReported,
    Event,
    ShardWritten,
    StageEnded,
    TrialEnded,
    TrialReopened,
    TrialStarted,
    objective,
)
from orchestrator.store.fold_means import FoldTraining, fold_means, fold_trainings
from orchestrator.store.ledger import State, TrialRecord

RUNNING = "RUNNING"
_CACHES = ("shard", "rows", "features")  # kinds of artifacts that photos are kept in


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before a cluster is there."""

    name: str
    text: str
    tags: tuple[str, ...] = ("run",)
    counts: bool = False  # a counter; else a gauge

    @property
    def exported_name(self) -> str:
        """Its name for Prometheus."""
        return f"ray_{self.name}_total" if self.counts else f"ray_{self.name}"


TRIALS = Metric("robust_vote_trials", "Trials by state", ("run", "variant", "state"))
BEST = Metric("robust_vote_best_score", "Best score of the search", ("run", "variant"))
EPOCHS = Metric("robust_vote_epochs", "Epochs trained", ("run", "variant"), counts=True)
PHOTOS = Metric("robust_vote_photos", "Photos prepared", counts=True)
QUARANTINED = Metric("robust_vote_quarantined", "Photos that cannot be read or prepared")
QUEUE = Metric("robust_vote_queue", "Trials of the plan that have not started")
CACHE = Metric("robust_vote_cache_bytes", "Bytes of prepared photos and features in the store")
METRICS = (TRIALS, BEST, EPOCHS, PHOTOS, QUARANTINED, QUEUE, CACHE)


class RunMetrics:
    """Follows a ledger and sets the metrics of its run, as long as the process is connected."""

    def __init__(
        self,
        run_id: str,
        state: State,
        *,
        n_planned: int,
        count_quarantined: Callable[[], int],
        store: Path,
        n_folds: int | None = None,
    ) -> None:
        """Begin with what a ledger knows.

        Args:
            run_id: the tag of all metrics.
            state: of the ledger.
            n_planned: trials of the whole run, at most.
            count_quarantined: counts the photos that could not be read or prepared.
            store: its folder.
            n_folds: of a setting; None where the search trains each setting once.
        """
        from ray.util import metrics  # noqa: PLC0415

        self._run_id = run_id
        self._state = state
        self._n_planned = n_planned
        self._count_quarantined = count_quarantined
        self._store = store
        self._n_folds = n_folds
        self._of_settings: dict[str, list[FoldTraining]] = {}  # of those that have ended
        self._metrics: dict[str, Any] = {}
        for metric in METRICS:
            make = metrics.Counter if metric.counts else metrics.Gauge
            made = make(metric.name, description=metric.text, tag_keys=metric.tags)
            made.set_default_tags({"run": run_id})
            self._metrics[metric.name] = made
        self._states: dict[str, tuple[str, str]] = {}  # trial -> variant and state
        self._counts: Counter[tuple[str, str]] = Counter()  # by variant and state
        self._best: dict[str, float] = {}  # by variant
        for trial in state.trials.values():
            self._set_state(trial.trial_id, trial.status or RUNNING)
            for reported in trial.reports.values():
                self._take_report(trial, reported)
            if trial.status:
                self._take_end(trial)
        self._set_photos()
        self._set_queue()

    def take(self, event: Event) -> None:
        """Take in an event that the state of the ledger has already."""
        match event:
            case TrialStarted():
                self._set_state(event.trial_id, RUNNING)
                self._set_queue()
            case TrialReopened():
                self._set_state(event.trial_id, RUNNING)
            case TrialEnded():
                self._set_state(event.trial_id, event.status)
                self._take_end(self._state.trials[event.trial_id])
            case EpochReported():
                trial = self._state.trials[event.trial_id]
                self._metrics[EPOCHS.name].inc(1, {"variant": trial.variant})
                self._take_report(trial, event.metrics)
            case ShardWritten():
                if event.n_prepared:
                    self._metrics[PHOTOS.name].inc(event.n_prepared)
            case StageEnded():
                self._set_photos()

    def _set_state(self, trial_id: str, state: str) -> None:
        variant = self._state.trials[trial_id].variant
        before = self._states.get(trial_id)
        now = (variant, state)
        if before == now:
            return
        self._states[trial_id] = now
        self._counts[now] += 1
        changed = [now]
        if before is not None:
            self._counts[before] -= 1
            changed.append(before)
        for place in changed:
            tags = {"variant": place[0], "state": place[1]}
            self._metrics[TRIALS.name].set(self._counts[place], tags)

    def _take_report(self, trial: TrialRecord, reported: Mapping[str, float]) -> None:
        if trial.phase == "search" and self._n_folds is None:
            self._take_score(trial.variant, objective(dict(reported)))

    def _take_end(self, trial: TrialRecord) -> None:
        """Take in the score of a setting that has all its folds now, as the search itself does."""
        if self._n_folds is None:
            return
        of_setting = self._of_settings.setdefault(trial.setting, [])
        of_setting += fold_trainings([trial])
        for mean in fold_means(of_setting):
            if mean.n_folds == self._n_folds:
                self._take_score(mean.variant, mean.score)

    def _take_score(self, variant: str, score: float) -> None:
        if score > self._best.get(variant, -1.0):
            self._best[variant] = score
            self._metrics[BEST.name].set(score, {"variant": variant})

    def _set_photos(self) -> None:
        self._set(QUARANTINED, self._count_quarantined())
        self._set(CACHE, self._cache_bytes())

    def _set_queue(self) -> None:
        self._set(QUEUE, max(0, self._n_planned - len(self._state.trials)))

    def _set(self, metric: Metric, value: float) -> None:
        self._metrics[metric.name].set(value)

    def _cache_bytes(self) -> int:
        n_bytes = 0
        for kind in _CACHES:
            for path in (self._store / kind).rglob("*"):
                if path.is_file():
                    n_bytes += path.stat().st_size
        return n_bytes
