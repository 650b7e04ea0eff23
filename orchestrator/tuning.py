"""The adapter of Ray Tune: runs what a bridge proposes, and leaves a folder that any Tune user can open."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from orchestrator.bridge import Bridge
from orchestrator.trial import TrialSpec, run_trial

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt is the driver's to answer
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "30",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def trainable(config: dict[str, Any]) -> None:
    """Run one trial inside a Tune worker; a trial that ended before only says again what it said."""
    from ray import tune  # noqa: PLC0415

    def report(epoch: int, metrics: dict[str, float]) -> None:
        tune.report({"epoch": epoch, **metrics})

    if (again := config.get("again")) is not None:
        for epoch, metrics in again["reports"]:
            report(epoch, metrics)
        if again["error"]:
            raise RuntimeError(again["error"])
        return
    run_trial(TrialSpec(**config["spec"]), report)


def run(
    bridge: Bridge, folder: Path, *, cpu: float, gpu: float, max_concurrent: int, function: Any = trainable
) -> None:
    """Run all trials of a bridge as one Tune experiment in `folder`, which is made anew.

    A run that is gone on with tells Tune of its ended trials again, so nothing of an older folder is needed.
    """
    from ray import tune  # noqa: PLC0415
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # noqa: PLC0415
    from ray.tune.search import Searcher  # noqa: PLC0415

    class Proposals(Searcher):
        """Hands out what the bridge proposes."""

        def __init__(self) -> None:
            super().__init__(metric="val_macro_f1", mode="max")

        def suggest(self, trial_id: str) -> Any:
            live = bridge.next()
            if live is None:
                return None
            if isinstance(live, str):
                return Searcher.FINISHED
            config: dict[str, Any] = {"name": live.spec.trial_id, "attempt": live.deaths, "spec": live.spec.to_json()}
            if (told := live.told_again) is not None:
                config["again"] = {"reports": sorted(told.reports.items()), "error": told.end.get("error")}
            return config

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Nothing: the scheduler's calls carry the trial and come first."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # the ledger is the truth; Tune wants a file

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: a run is never restored from Tune's files."""

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def __reduce__(self) -> Any:
            return (object, ())  # what Tune pickles of it is never read

    class Decisions(FIFOScheduler):
        """Passes reports and endings to the bridge."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "epoch" not in result or "val_macro_f1" not in result:
                return str(TrialScheduler.CONTINUE)
            metrics = {
                name: float(value)
                for name, value in result.items()
                if name.startswith(("val_", "train_")) or name in {"lr", "epoch_s"}
            }
            stops = bridge.heard(_name(trial), int(result["epoch"]), metrics)
            return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            bridge.ended(_name(trial), "COMPLETE")

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            cause = trial.get_error()
            text = _reason(cause)
            if _is_death(cause):
                bridge.died(_name(trial), text, memory=_is_out_of_memory(cause))
            else:
                bridge.ended(_name(trial), "FAILED", text)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

        def __reduce__(self) -> Any:
            return (FIFOScheduler, ())

    os.environ.update(QUIET)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tune.Tuner(
            tune.with_resources(function, {"cpu": cpu, "gpu": gpu}),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(),
                scheduler=Decisions(),
                num_samples=-1,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
                trial_name_creator=_label,
                trial_dirname_creator=_label,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent.resolve()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _label(trial: Any) -> str:
    attempt = trial.config.get("attempt")
    return _name(trial) + (f"-attempt{attempt}" if attempt else "")


def _is_death(error: Any) -> bool:
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError  # noqa: PLC0415

    return isinstance(error, RayActorError | NodeDiedError | OutOfMemoryError)


def _is_out_of_memory(error: Any) -> bool:
    """Say whether Ray killed the worker because the host's memory ran out."""
    from ray.exceptions import OutOfMemoryError  # noqa: PLC0415

    return isinstance(error, OutOfMemoryError)


def _reason(error: Any) -> str:
    """Return an exception as one line, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else ""
    return text if ":" in text[:60] else f"{type(cause).__name__}: {text}"
