"""study.log: the search of a run as Optuna's own tools read it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from orchestrator.run.trackers.sink import Sink
from orchestrator.search.reuse import fold_suffix
from orchestrator.spec.search_space import Choice, Search
from orchestrator.store.event_types import N_PARAMS, objective
from orchestrator.store.ledger import TrialRecord


class Journal(Sink):
    """study.log: an Optuna journal with one study per variant.

    Every driver writes it anew. Nothing reads it back.
    """

    def __init__(self, run: Path, search: Search) -> None:
        import optuna  # noqa: PLC0415
        from optuna.storages import JournalStorage  # noqa: PLC0415
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        (run / "study.log").unlink(missing_ok=True)
        self.run = run
        self.search = search
        self.storage = JournalStorage(JournalFileBackend(str(run / "study.log")))
        self.studies: dict[str, optuna.Study] = {}
        self.folds: dict[str, dict[str, float]] = {}  # begin of the ids -> id -> score

    def take(self, trial: TrialRecord) -> None:
        import optuna  # noqa: PLC0415
        from optuna.trial import TrialState as State  # noqa: PLC0415

        if trial.phase != "search":
            return
        scores = {epoch: objective(metrics) for epoch, metrics in trial.reports.items()}
        score = max(scores.values(), default=None)
        if trial.started.fold is not None:
            of_folds = self._take_fold(trial)
            if of_folds is None:
                return  # its setting goes on
            scores = of_folds
            score = statistics.fmean(scores.values()) if scores else None
        variant = trial.variant
        if variant not in self.studies:
            directions = ["maximize", "minimize"] if self.search.counts_parameters else ["maximize"]
            self.studies[variant] = optuna.create_study(
                storage=self.storage, study_name=f"{self.run.name}/{variant}", directions=directions
            )
        space = self.search.space_of(variant)
        params = {}
        distributions = {}
        for path, value in trial.params.items():
            if path in space:
                params[path], distributions[path] = _stored(space[path], value)
        state = {"COMPLETE": State.COMPLETE, "PRUNED": State.PRUNED}.get(
            str(trial.status), State.FAIL
        )
        if state not in {State.COMPLETE, State.PRUNED}:
            score = None
        values = None if score is None else [score]
        if self.search.counts_parameters:
            scores = {}  # Optuna takes no intermediate values of several objectives
            size = trial.metrics.get(N_PARAMS)
            values = None if score is None or size is None else [score, size]
        self.studies[variant].add_trial(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions=distributions,
                intermediate_values=scores,
                values=values,
                user_attrs={"trial_id": trial.trial_id},
            )
        )

    def _take_fold(self, trial: TrialRecord) -> dict[int, float] | None:
        """Take in a fold; return step -> score of its setting if it was the last one, else None."""
        begin = trial.trial_id.removesuffix(fold_suffix(trial.started))
        scores = self.folds.setdefault(begin, {})
        if trial.status == "COMPLETE":
            scores[trial.trial_id] = objective(trial.metrics)
            if trial.why is None and len(scores) < (self.search.folds or 0):
                return None
        return dict(enumerate(scores.values()))


def _stored(entry: Any, value: Any) -> tuple[Any, Any]:
    """Return a value and its distribution as Optuna stores them; lists and maps go as JSON."""
    from optuna import distributions as d  # noqa: PLC0415

    if isinstance(entry, Choice):
        return _plain(value), d.CategoricalDistribution([_plain(item) for item in entry.choice])
    if hasattr(entry, "int_"):
        return value, d.IntDistribution(*entry.int_, log=entry.log, step=entry.step or 1)
    return value, d.FloatDistribution(*entry.float_, log=entry.log, step=entry.step)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
