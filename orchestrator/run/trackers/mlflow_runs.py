"""MLflow: a run for the whole, with one nested run per trial."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from orchestrator.run.trackers.ensemble_facts import ensemble_facts
from orchestrator.run.trackers.sink import Sink
from orchestrator.spec.tracking import Mlflow
from orchestrator.store.event_types import TrialEnded
from orchestrator.store.ledger import State, TrialRecord

_RUN_TAG = "robust_vote.run"
_TRIAL_TAG = "robust_vote.trial"
_PARENT_TAG = "mlflow.parentRunId"
_BATCH = 1000  # metrics that a server takes at once
_STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED"}
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # a server that does not answer is given up before the driver stops waiting for the mirror
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def tracking_uri(run: Path, settings: Mlflow) -> str:
    """Return where MLflow keeps the runs: a server, or a file in the folder of the run."""
    return settings.uri or f"sqlite:///{(run / 'mlflow' / 'mlflow.db').resolve()}"


class MlflowRuns(Sink):
    """Writes MLflow runs; a trial that is there already is replaced, not repeated."""

    def __init__(self, run: Path, settings: Mlflow) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # noqa: PLC0415

        self.run = run
        if settings.uri is None:
            (run / "mlflow").mkdir(exist_ok=True)
        self.client = MlflowClient(tracking_uri=tracking_uri(run, settings))
        self.experiment_id = self._experiment(settings)
        self.parent_id = self._parent()
        self._trial_runs: dict[str, str] = {}  # trial -> MLflow's id of its run
        for child in self._find(f"tags.`{_PARENT_TAG}` = '{self.parent_id}'"):
            self._trial_runs[child.data.tags[_TRIAL_TAG]] = child.info.run_id

    def _experiment(self, settings: Mlflow) -> str:
        known = self.client.get_experiment_by_name(settings.experiment)
        if known is not None:
            return str(known.experiment_id)
        place = None
        if settings.uri is None:
            place = (self.run / "mlflow" / "artifacts").resolve().as_uri()
        return str(self.client.create_experiment(settings.experiment, artifact_location=place))

    def _parent(self) -> str:
        """Return the run of the whole, opened again if an earlier driver has ended it."""
        for known in self._find(f"tags.`{_RUN_TAG}` = '{self.run.name}'"):
            self.client.update_run(known.info.run_id, status="RUNNING")
            return str(known.info.run_id)
        tags = {_RUN_TAG: self.run.name}
        parent = self.client.create_run(self.experiment_id, tags=tags, run_name=self.run.name)
        return str(parent.info.run_id)

    def _find(self, condition: str) -> list[Any]:
        """Return all MLflow runs of the experiment that meet a condition."""
        runs: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def take(self, trial: TrialRecord) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        started = trial.started
        ended = trial.ended or TrialEnded(trial_id=trial.trial_id, status="FAILED")
        if trial.trial_id in self._trial_runs:
            self.client.delete_run(self._trial_runs.pop(trial.trial_id))
        tags = {_PARENT_TAG: self.parent_id, _TRIAL_TAG: trial.trial_id, "status": ended.status}
        for name in ("variant", "phase", "setting", "seed", "fold"):
            tags[name] = str(getattr(started, name))
        if ended.error or ended.why:
            tags["reason"] = (ended.error or ended.why or "")[:500]
        child = self.client.create_run(
            self.experiment_id, _milliseconds(started.time), tags, run_name=trial.trial_id
        )
        self._trial_runs[trial.trial_id] = child.info.run_id
        params = [Param(name, _text(value)) for name, value in trial.params.items()]
        end_ms = _milliseconds(ended.time)
        points = []
        for epoch, metrics in sorted(trial.reports.items()):
            for name, value in metrics.items():
                points.append(Metric(name, value, end_ms, epoch))
        for name, value in trial.metrics.items():
            points.append(Metric(f"best_{name}", value, end_ms, 0))
        self.client.log_batch(child.info.run_id, params=params)
        for start in range(0, len(points), _BATCH):
            self.client.log_batch(child.info.run_id, metrics=points[start : start + _BATCH])
        status = "FAILED" if ended.status == "FAILED" else "FINISHED"
        self.client.set_terminated(child.info.run_id, status, end_ms)

    def end(self, state: State) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        now_ms = _milliseconds(time.time())
        facts = ensemble_facts(self.run) if state.state == "SUCCEEDED" else None
        if facts is not None:
            metrics = [Metric(name, value, now_ms, 0) for name, value in facts.scores.items()]
            params = [Param("members", ", ".join(facts.members)[:6000])]
            self.client.log_batch(self.parent_id, metrics=metrics, params=params)
        self.client.set_terminated(self.parent_id, _STATUS.get(state.state, "KILLED"), now_ms)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
