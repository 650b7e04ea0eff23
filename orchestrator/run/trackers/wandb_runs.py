"""W&B: one run per trial and one of the ensemble, in a group that has the name of our run."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.run.trackers.ensemble_facts import EnsembleFacts, ensemble_facts
from orchestrator.run.trackers.sink import Sink
from orchestrator.spec.tracking import Wandb
from orchestrator.store.ledger import State, TrialRecord

_CONFIG = ("variant", "phase", "setting", "seed", "fold", "params", "train")
_ENSEMBLE = "ensemble"


class WandbRuns(Sink):
    """Writes W&B runs. Nothing of the command line or the environment is sent."""

    def __init__(self, run: Path, settings: Wandb) -> None:
        self.run = run
        self.project = settings.project
        self.mode = settings.mode

    def take(self, trial: TrialRecord) -> None:
        config = {key: getattr(trial.started, key) for key in _CONFIG}
        record = self._start(trial.trial_id, trial.phase, config)
        for epoch, metrics in sorted(trial.reports.items()):
            record.log(metrics, step=epoch)
        record.summary["status"] = trial.status
        for name, value in trial.metrics.items():
            record.summary[f"best_{name}"] = value
        record.finish(exit_code=0 if trial.status != "FAILED" else 1)

    def end(self, state: State) -> None:
        facts = ensemble_facts(self.run) if state.state == "SUCCEEDED" else None
        if facts is None:
            return
        config = {"members": list(facts.members), "classes": list(facts.classes)}
        record = self._start(_ENSEMBLE, _ENSEMBLE, config)
        record.summary.update(facts.scores)
        if facts.answers is not None:
            record.log({"out_of_fold_confusion": _confusion(facts)})
        record.finish()

    def _start(self, name: str, job_type: str, config: Mapping[str, Any]) -> Any:
        """Begin a W&B run, in the place of an earlier one of the same name."""
        import wandb  # noqa: PLC0415

        run_id = hashlib.sha256(f"{self.run.name}/{name}".encode()).hexdigest()[:16]
        for earlier in (self.run / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(earlier)  # of a mirror that was killed, or of an earlier try of the trial
        try:
            return wandb.init(
                project=self.project,
                mode=self.mode,
                id=run_id,
                name=name,
                group=self.run.name,
                job_type=job_type,
                config=dict(config),
                dir=str(self.run),
                settings=_quiet(),
                reinit="finish_previous",
                resume="allow" if self.mode == "online" else None,
            )
        except Exception as error:
            if self.mode == "offline":
                raise
            later = f"going on offline, later: {sync_command(self.run)}"
            sys.stderr.write(f"W&B: {type(error).__name__}; {later}\n")
            self.mode = "offline"
            return self._start(name, job_type, config)


def sync_command(run: Path) -> str:
    """Return the command that uploads the W&B runs of a run, which were written offline."""
    return f"wandb sync {run / 'wandb'}/offline-run-*"


def _confusion(facts: EnsembleFacts) -> Any:
    """Return the confusion matrix of the out-of-fold vote as a chart of W&B."""
    import wandb  # noqa: PLC0415

    if facts.answers is None:
        raise ValueError("answers were required, found none")
    return wandb.plot.confusion_matrix(
        y_true=facts.answers.targets.tolist(),
        preds=facts.answers.preds.tolist(),
        class_names=list(facts.classes),
        title="out-of-fold vote",
    )


def _quiet() -> Any:
    import wandb  # noqa: PLC0415

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        init_timeout=10,
    )
