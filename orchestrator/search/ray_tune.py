"""The adapter of Ray Tune: runs what a trial controller proposes, and leaves a folder that any Tune user can open."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.tune.logger import JsonLoggerCallback
from ray.tune.result import RESULT_DUPLICATE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.controller import Finished, TrialController, Waiting
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.search.worker import TRAINING_MODULES, Body, Child, Reported, Watch
from orchestrator.store.events import OBJECTIVE

QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt is the driver's to answer
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # JSON is what ExperimentAnalysis reads; the others cost time per trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # one trial without the metric would end them all
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "300",  # copies the whole folder, and nobody restores from it
    "RAY_AIR_NEW_OUTPUT": "0",
}
_LOOK_S = 5.0
_RETRIED = {"exited", "killed", "memory"}


class Warm(tune.Trainable):
    """A worker that has everything loaded and runs one trial after another, each in a child of its own.

    A trial that has ended before is only replayed.
    """

    body: Body
    watch = Watch()
    modules: tuple[str, ...] = ()

    def setup(self, config: dict[str, Any]) -> None:
        for name in self.modules:
            importlib.import_module(name)
        self.child = Child(type(self).body, self.watch)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.child.stop()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.replay: Iterator[dict[str, Any]] | None = None
        if (replay := config.get("again")) is not None:
            self.replay = _results_of(replay["reports"], replay["error"])
            return
        spec = TrialSpec(**config["spec"])
        self.child.start(
            spec, spec.trial_id, seed=spec.seed, threads=spec.threads, device=spec.device
        )

    def step(self) -> dict[str, Any]:
        if self.replay is not None:
            return next(self.replay)
        message = self.child.next()
        if isinstance(message, Reported):
            return {"epoch": message.epoch, **message.metrics}
        if message is None:
            return {RESULT_DUPLICATE: True}
        return {"done": True, "cause": message.cause, "error": message.text}

    def cleanup(self) -> None:
        self.child.kill()


def _results_of(
    reports: list[tuple[int, dict[str, float]]], error: str | None
) -> Iterator[dict[str, Any]]:
    for epoch, metrics in reports:
        yield {"epoch": epoch, **metrics}
    yield {"done": True, "error": error} if error else {RESULT_DUPLICATE: True}


class KilledForMemory(RayActorError, OutOfMemoryError):  # noqa: N818 - says what happened
    """What Ray's OutOfMemoryError has to be for Tune: the death of an actor."""


@contextlib.contextmanager
def memory_kills_are_deaths() -> Iterator[None]:
    """Let a worker that Ray kills for memory fail its trial.

    Tune 2.60 does not know this error and ends the run.
    """
    original = RayActorManager._actor_task_failed  # noqa: SLF001 - there is no public way

    def failed(self: Any, task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError) and not isinstance(exception, RayActorError):
            exception = KilledForMemory(None, str(exception).partition("\n")[0])
        original(self, task, exception)

    RayActorManager._actor_task_failed = failed  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original  # noqa: SLF001


class Proposals(Searcher):
    """Hands out what the trial controller proposes."""

    def __init__(self, trial_controller: TrialController) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self.trial_controller = trial_controller

    def suggest(self, trial_id: str) -> Any:
        step = self.trial_controller.next()
        if isinstance(step, Waiting):
            return None
        if isinstance(step, Finished):
            return Searcher.FINISHED
        config: dict[str, Any] = {
            "name": step.spec.trial_id,
            "attempt": step.attempt,
            "spec": step.spec.to_json(),
        }
        if step.replay is not None:
            config["again"] = {"reports": step.replay.reports, "error": step.replay.error}
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
    """Passes reports and endings to the trial controller."""

    def __init__(self, trial_controller: TrialController) -> None:
        super().__init__()
        self.trial_controller = trial_controller
        self.failed: list[
            tuple[Any, Any, str]
        ] = []  # (controller, trial, reason), to be shown as errors
        self._nodes = _nodes()
        self._looked = time.monotonic()
        self._waiting: list[Any] = []

    def look(self) -> None:
        """Take in nodes that have joined; the death of a trial with its node tells that one has gone."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._nodes = self._nodes | _nodes()
            self._looked = time.monotonic()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._waiting.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # Tune's own looks through all trials there ever were, several times for each new one
        self._waiting = [trial for trial in self._waiting if trial.status == type(trial).PENDING]
        # one whose own worker is still loading is left to it: given an idle worker, Tune would end the loading one
        own = tune_controller._trial_to_actor  # noqa: SLF001 - there is no public way
        return next((trial for trial in self._waiting if trial not in own), None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "epoch" not in result or OBJECTIVE not in result:
            return str(TrialScheduler.CONTINUE)
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name.startswith(("val_", "train_")) or name in {"lr", "epoch_s"}
        }
        stops = self.trial_controller.on_report(_name(trial), int(result["epoch"]), metrics)
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        cause = result.get("cause")
        error = result.get("error")
        if error:
            self.failed.append((tune_controller, trial, error))
        if cause in _RETRIED:
            self.trial_controller.on_death(_name(trial), str(error), cause=str(cause))
        elif cause == "stopped":
            self.trial_controller.on_end(_name(trial), "PRUNED", why=error)
        elif cause:
            self.trial_controller.on_end(_name(trial), "FAILED", error, cause=cause)
        else:
            self.trial_controller.on_end(_name(trial), "COMPLETE")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        error = trial.get_error()
        text = _brief(error)
        if isinstance(error, OutOfMemoryError):
            self.trial_controller.on_death(
                _name(trial), f"the cluster ran out of memory and ended it: {text}", cause="memory"
            )
        elif isinstance(error, RayActorError | NodeDiedError):
            nodes = _nodes()
            lost = not self._nodes <= nodes or bool(getattr(error, "preempted", False))
            self._nodes = nodes
            where = "its node was lost" if lost else "its worker died"
            self.trial_controller.on_death(
                _name(trial),
                f"{where}: {text}",
                cause="node" if lost else "killed",
                counts=not lost,
            )
        else:
            self.trial_controller.on_end(_name(trial), "FAILED", text, cause="raised")

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (FIFOScheduler, ())


class Files(JsonLoggerCallback):
    """Writes Tune's files, and shows failed trials as what they are."""

    def __init__(self, decisions: Decisions, tick: Callable[[], None]) -> None:
        super().__init__()
        self.decisions = decisions
        self.tick = tick

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self.tick()
        self.decisions.look()
        while self.decisions.failed:
            controller, trial, reason = self.decisions.failed.pop()
            # a worker whose trial failed is as good as before: it was not raised there, because Tune would drop it
            with contextlib.suppress(AttributeError, AssertionError, KeyError):
                controller._set_trial_status(trial, type(trial).ERROR)  # noqa: SLF001 - there is no public way
                trial.handle_error(RuntimeError(reason))

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (JsonLoggerCallback, ())


def run(
    trial_controller: TrialController,
    folder: Path,
    *,
    cpu: float,
    gpu: float,
    max_concurrent: int,
    body: Body = run_trial,
    modules: Iterable[str] = TRAINING_MODULES,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run all trials of a controller as one Tune experiment in `folder`, which is made anew.

    Ended trials of a resumed run are replayed to Tune, so nothing of an older folder is needed.

    Args:
        trial_controller: what to run.
        folder: of the experiment.
        cpu: per trial.
        gpu: per trial, fractions allowed.
        max_concurrent: trials at a time.
        body: trains one spec and reports its epochs.
        modules: what workers load before their first trial.
        watch: limits of a trial.
        tick: called after every step of Tune's loop.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # what failed is told by us, with its reason
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a class of its own carries what all trials share, so that no trial's config does
    worker = type(
        "Trial", (Warm,), {"body": staticmethod(body), "watch": watch, "modules": tuple(modules)}
    )
    decisions = Decisions(trial_controller)
    with warnings.catch_warnings(), memory_kills_are_deaths():
        warnings.simplefilter("ignore")
        tune.Tuner(
            tune.with_resources(worker, {"cpu": cpu, "gpu": gpu}),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(trial_controller),
                scheduler=decisions,
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
                callbacks=[Files(decisions, tick)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_at_end=False
                ),  # a trial's own are in the store
            ),
        ).fit()


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _label(trial: Any) -> str:
    attempt = trial.config.get("attempt")
    return _name(trial) + (f"-attempt{attempt}" if attempt else "")


def _nodes() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _brief(error: Any) -> str:
    """Return an exception as one line, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error or "an error of the cluster's own"
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else ""
    return text if ":" in text[:60] else f"{type(cause).__name__}: {text}"
