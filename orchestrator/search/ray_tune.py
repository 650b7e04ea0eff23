"""The adapter of Ray Tune: it runs the trials of a controller, and writes Tune's own folder."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs
import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.train._internal.session import _TrainingResult
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.result import RESULT_DUPLICATE, TRAINING_ITERATION
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from data_prep.process_title import show_process_title
from orchestrator.base.errors import UserError
from orchestrator.cluster.fork_server import ForkServerGone
from orchestrator.search.card_sharing.capacity import CardUse
from orchestrator.search.card_sharing.meter import CardMeter, CardWatch, NvmlMeter
from orchestrator.search.controller import Finished, Proposal, Replay, TrialController, Waiting
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.search.trial_process import (
    TRAINING_MODULES,
    Body,
    Child,
    Reported,
    Watch,
    reason_of,
)
from orchestrator.store.event_types import OBJECTIVE, objective
from orchestrator.store.store_address import open_store
from trainers.config import IS_LAST
from trainers.overlap.clock import PARTS

Result = dict[str, Any]
"""A report as Tune passes it on: epoch and metrics, or done with a cause and an error."""

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver answers an interrupt
    # ExperimentAnalysis reads JSON; the other loggers cost time per trial
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # one trial without the metric would end them all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "300",  # it copies the whole folder; `Decisions.save` does it sooner
    "RAY_AIR_NEW_OUTPUT": "0",
}
_WORKER_NAME = "TrialWorker"  # on Ray's dashboard and in `ps`
_METRICS = {"lr", "epoch_s", *(f"{part}_s" for part in PARTS)}  # besides those with a prefix
_NODES_EVERY_S = 5.0
_GROWTH = 1.1  # of the ended trials, after which Tune's folder is written
_LOCAL_FILES = pyarrow.fs.LocalFileSystem()
_RETRIED = {"exited", "killed", "memory"}


@dataclass(frozen=True)
class Order:
    """What a worker has to do."""

    spec: TrialSpec
    replay: Replay | None  # if the trial has ended before
    gpu: float = 0.0  # its part of a card
    is_measured: bool = False  # the worker looks at what the trial does to its card


class TrialConfig(dict[str, Any]):
    """The settings of a trial as Tune shows them: searched settings, variant, setting, seed, fold.

    The worker's order travels with them as an attribute, which Tune's files do not show.
    """

    order: Order

    @classmethod
    def of(cls, proposal: Proposal) -> TrialConfig:
        """Return the settings of a proposed trial, with its order."""
        spec = proposal.spec
        config = cls(spec.params)
        config.update(variant=spec.variant, setting=spec.setting, seed=spec.seed, fold=spec.fold)
        config.order = Order(spec, proposal.replay, proposal.gpu, proposal.is_measured)
        return config


class Warm(tune.Trainable):
    """A worker that has all modules loaded and runs one trial after another in child processes.

    A trial that has ended before is only replayed.
    """

    body: Body
    watch = Watch()
    modules: tuple[str, ...] = ()
    fork_server: str | None = None  # its address
    cpu: float = 1.0
    meter: Callable[[], CardMeter] = NvmlMeter

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory | None:
        """Return what a worker of this trial takes of the cluster; Tune reuses equal ones."""
        order = getattr(config, "order", None)
        if order is None:  # Tune asks without a trial
            return None
        return tune.PlacementGroupFactory([{"CPU": cls.cpu, "GPU": order.gpu}])

    def setup(self, config: TrialConfig) -> None:
        self.broken: str | None = None
        if self.fork_server is None:
            # an error raised here would reach Tune without its text
            self.broken = self._load_modules(config.order.spec.trial_id)
        self.child = Child(type(self).body, self.watch, self.fork_server)
        self._begin(config)

    def _load_modules(self, trial_id: str) -> str | None:
        """Import what trainings need; return what is wrong with this machine, if something is."""
        for name in self.modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - a foreign module may raise anything
                log = self.watch.log_of(trial_id)
                if log is not None:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    with log.open("a", encoding="utf-8") as file:
                        traceback.print_exc(file=file)
                return f"{platform.node()} cannot import {name}: {reason_of(error)}"
        return None

    def reset_config(self, new_config: TrialConfig) -> bool:
        self.child.stop()
        self._begin(new_config)
        return True

    def _begin(self, config: TrialConfig) -> None:
        self.config = dict(config)  # each report carries it back to the driver
        order = config.order
        self.card = CardWatch(type(self).meter()) if order.is_measured else None
        self.child.on_check = self.card.sample if self.card else lambda: None
        self.replay: Iterator[Result] | None = None
        if order.replay is not None:
            self.replay = _results_of(order.replay)
            return
        if self.broken is not None:
            return
        spec = order.spec
        try:
            self._start(spec)
        except ForkServerGone:  # from now on this worker does without
            self.child.fork_server = None
            self.broken = self._load_modules(spec.trial_id)
            if self.broken is None:
                self._start(spec)

    def _start(self, spec: TrialSpec) -> None:
        self.child.start(
            spec, spec.trial_id, seed=spec.seed, threads=spec.threads, device=spec.device
        )

    def step(self) -> Result:
        if self.replay is not None:
            return next(self.replay)
        if self.broken is not None:
            raise BrokenWorker(self.broken)  # Tune gives the worker up
        show_process_title(f"{_WORKER_NAME} {self.child.trial_id}")
        message = self.child.next()
        if isinstance(message, Reported):
            return {"epoch": message.epoch, **message.metrics, **self._card_use()}
        if message is None:
            return {RESULT_DUPLICATE: True}
        return {"done": True, "cause": message.cause, "error": message.text}

    def _card_use(self) -> Result:
        if self.card is None:
            return {}
        self.card.sample()
        use = self.card.use()
        return {} if use is None else {"card": json.dumps(asdict(use))}  # Tune flattens a dict

    def cleanup(self) -> None:
        self.child.kill()


def _results_of(replay: Replay) -> Iterator[Result]:
    for epoch, metrics in replay.reports:
        yield {"epoch": epoch, **metrics}
    if replay.error:
        yield {"done": True, "error": replay.error}
    else:
        yield {RESULT_DUPLICATE: True}


class BrokenWorker(RuntimeError):  # noqa: N818 - says what is the case
    """A worker lacks what every training needs."""


class KilledForMemory(RayActorError, OutOfMemoryError):  # noqa: N818 - says what happened
    """Ray's OutOfMemoryError as the death of an actor, which Tune can handle."""


@contextlib.contextmanager
def memory_kills_are_deaths() -> Iterator[None]:
    """Let only the trial fail if Ray kills a worker for memory; Tune 2.60 would end the run."""
    original = RayActorManager._actor_task_failed  # noqa: SLF001 - there is no public way

    # Ray passes both by name
    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError) and not isinstance(exception, RayActorError):
            exception = KilledForMemory(None, str(exception).partition("\n")[0])
        original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    RayActorManager._actor_task_failed = failed  # noqa: SLF001
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original  # noqa: SLF001


@contextlib.contextmanager
def keys_stay_in_the_environment() -> Iterator[None]:
    """Keep Tune from writing keys of buckets into its workers' settings, which Ray logs.

    A worker has the environment of its node.
    """
    propagated = class_cache.ENV_VARS_TO_PROPAGATE
    keys = {name for name in propagated if name.startswith("AWS_")}
    propagated.difference_update(keys)
    try:
        yield
    finally:
        propagated.update(keys)


class Proposals(SearchAlgorithm):
    """Makes a Tune trial, with our id, of each proposal of the trial controller."""

    total_samples = sys.maxsize

    def __init__(self, trial_controller: TrialController, max_concurrent: int) -> None:
        self.trial_controller = trial_controller
        self.max_concurrent = max_concurrent
        self._spec: dict[str, object] = {}  # what all trials share
        self._trials: dict[str, Trial] = {}  # our id -> the last attempt

    def add_configurations(self, experiments: Any) -> None:
        self._spec = experiments[0].spec

    def next_trial(self) -> Trial | None:
        if len(self.trial_controller.handed_out) >= self.max_concurrent:
            return None
        step = self.trial_controller.next()
        if isinstance(step, Finished):
            self.set_finished()
        if isinstance(step, Finished | Waiting):
            return None
        trial_id = step.spec.trial_id
        if step.attempt:  # the attempt that counts has the id
            earlier = self._trials[trial_id]
            earlier.trial_id = f"{trial_id}-attempt{step.attempt - 1}"
            earlier.invalidate_json_state()
        self._trials[trial_id] = Trial(
            self._spec["run"],
            config=TrialConfig.of(step),
            trial_id=trial_id,
            storage=self._spec["storage"],
            evaluated_params=dict(step.spec.params),
            checkpoint_config=self._spec["checkpoint_config"],
            # no function of this package: Tune's files can be opened without it
            trial_name_creator=attrgetter("trial_id"),
            trial_dirname_creator=attrgetter("trial_id"),
        )
        return self._trials[trial_id]

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (object, ())  # what Tune pickles of it is never read


class FailedTrial(NamedTuple):
    """A trial that Tune has to show as an error."""

    tune_controller: Any
    trial: Any
    reason: str


class Decisions(FIFOScheduler):
    """Passes reports and ends to the trial controller."""

    def __init__(self, trial_controller: TrialController) -> None:
        super().__init__()
        self.trial_controller = trial_controller
        self.failed: list[FailedTrial] = []  # to be shown as errors
        self._nodes = _nodes()
        self._nodes_time = time.monotonic()
        self._waiting: list[Any] = []
        self._attempts: dict[str, Any] = {}  # our id -> the last attempt
        self._tune_controller: Any = None
        self._n_ended = 0
        self._n_saved = 0

    def save(self) -> None:
        """Let Tune write its folder when a tenth more trials have ended, for those who look after a kill.

        Tune copies the whole folder. At equal intervals the copies of a long search would take more
        and more of its time; this way a trial costs about ten copies, however many there are.
        """
        if self._n_ended and self._n_ended >= _GROWTH * self._n_saved:
            self._n_saved = self._n_ended
            self._tune_controller.checkpoint(force=True)

    def add_new_nodes(self) -> None:
        """Note nodes that have joined; one that is missing when a trial dies has been lost."""
        if time.monotonic() - self._nodes_time > _NODES_EVERY_S:
            self._nodes = self._nodes | _nodes()
            self._nodes_time = time.monotonic()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._waiting.append(trial)
        self._tune_controller = tune_controller
        if earlier := self._attempts.get(_name(trial)):  # it has another id now
            tune_controller._mark_trial_to_checkpoint(earlier)  # noqa: SLF001 - no public way
        self._attempts[_name(trial)] = trial

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # Tune's own method searches all earlier trials, several times for each new one
        self._waiting = [trial for trial in self._waiting if trial.status == type(trial).PENDING]
        # a trial whose worker is still loading waits for it: Tune would end that worker
        workers = tune_controller._trial_to_actor  # noqa: SLF001 - there is no public way
        for trial in self._waiting:
            if trial not in workers:
                return trial
        return None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Result) -> str:
        if "epoch" not in result or OBJECTIVE not in result:
            return str(TrialScheduler.CONTINUE)
        metrics = {}
        for name, value in result.items():
            if name.startswith(("val_", "train_")) or name in _METRICS:
                metrics[name] = float(value)
        if "card" in result:
            self.trial_controller.on_card_use(_name(trial), CardUse(**json.loads(result["card"])))
        stops = self.trial_controller.on_report(
            _name(trial), int(result["epoch"]), metrics, is_last=bool(result.get(IS_LAST))
        )
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Result) -> None:
        self._n_ended += 1
        cause = result.get("cause")
        error = result.get("error")
        if error:
            self.failed.append(FailedTrial(tune_controller, trial, error))
        if cause in _RETRIED:
            self.trial_controller.on_death(_name(trial), str(error), cause=str(cause))
        elif cause == "stopped":
            self.trial_controller.on_end(_name(trial), "PRUNED", why=error)
        elif cause:
            self.trial_controller.on_end(_name(trial), "FAILED", error, cause=cause)
        else:
            self.trial_controller.on_end(_name(trial), "COMPLETE")
            self._name_checkpoint(trial)

    def _name_checkpoint(self, trial: Trial) -> None:
        """Tell Tune where the store has the trained model of a complete trial."""
        record = self.trial_controller.records[_name(trial)]
        if record.ended is None or record.ended.checkpoint is None:
            return
        metrics = dict(record.ended.metrics or {})
        best_epoch = max(record.reports, key=lambda epoch: objective(record.reports[epoch]))
        metrics[TRAINING_ITERATION] = best_epoch
        store = open_store(trial.config.order.spec.store)
        folder = store.root.resolve() / record.ended.checkpoint
        checkpoint = tune.Checkpoint(str(folder), filesystem=_LOCAL_FILES)
        trial.run_metadata.checkpoint_manager.register_checkpoint(
            _TrainingResult(checkpoint, metrics)
        )
        trial.run_metadata.invalidate_cache()

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._n_ended += 1
        error = _error_of(trial)
        text = _in_one_line(error)
        controller = self.trial_controller
        broken = isinstance(getattr(error, "cause", None), BrokenWorker)
        if broken or getattr(error, "actor_init_failed", False):
            controller.on_broken_worker(_name(trial), text)
        elif isinstance(error, OutOfMemoryError):
            text = f"the cluster ran out of memory and ended it: {text}"
            controller.on_death(_name(trial), text, cause="memory")
        elif not isinstance(error, RayActorError | NodeDiedError):
            controller.on_end(_name(trial), "FAILED", text, cause="raised")
        elif self._is_node_lost(error):
            text = f"its node was lost: {text}"
            controller.on_death(_name(trial), text, cause="node", counts=False)
        else:
            controller.on_death(_name(trial), f"its worker died: {text}", cause="killed")

    def _is_node_lost(self, error: Any) -> bool:
        before = self._nodes
        self._nodes = _nodes()
        return not before <= self._nodes or bool(getattr(error, "preempted", False))

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (FIFOScheduler, ())


class Files(JsonLoggerCallback):
    """Writes Tune's files, and shows failed trials as errors."""

    def __init__(self, decisions: Decisions, tick: Callable[[], None]) -> None:
        super().__init__()
        self.decisions = decisions
        self.tick = tick

    def update_config(self, trial: Any, config: Mapping[str, Any]) -> None:
        super().update_config(trial, dict(config))  # without the worker's order

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self.tick()
        self.decisions.add_new_nodes()
        while self.decisions.failed:
            controller, trial, reason = self.decisions.failed.pop()
            # an error raised in the worker would end the worker, which can run more trials
            with contextlib.suppress(AttributeError, AssertionError, KeyError):
                set_status = controller._set_trial_status  # noqa: SLF001 - there is no public way
                set_status(trial, type(trial).ERROR)
                trial.handle_error(RuntimeError(reason))
        self.decisions.save()

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (JsonLoggerCallback, ())


def run(
    trial_controller: TrialController,
    folder: Path,
    *,
    cpu: float,
    max_concurrent: int,
    body: Body = run_trial,
    modules: Iterable[str] = TRAINING_MODULES,
    fork_server: str | None = None,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    meter: Callable[[], CardMeter] = NvmlMeter,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run all trials of a controller as one Tune experiment in a new `folder`.

    The ended trials of a resumed run are replayed to Tune, so an older folder is not needed.

    Args:
        trial_controller: what to run; it knows the GPUs of each trial.
        folder: of the experiment.
        cpu: per trial.
        max_concurrent: trials at a time.
        body: trains one spec and reports its epochs.
        modules: what workers load before their first trial.
        fork_server: address of a process that has loaded it for the workers of this machine.
        watch: limits of a trial.
        meter: makes what looks at the card of a worker.
        tick: called after every step of Tune's loop.

    Raises:
        UserError: several workers could not be set up. Their trials are open, and the study was told nothing.
    """
    os.environ.update(_ENVIRONMENT)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max_concurrent)
    # the console shows what failed, with its reason
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a new class holds what all trials share, so that their configs need not
    shared = {
        "body": staticmethod(body),
        "watch": watch,
        "modules": tuple(modules),
        "fork_server": fork_server,
        "cpu": cpu,
        "meter": staticmethod(meter),
    }
    worker = type("Trial", (Warm,), shared | {"__qualname__": _WORKER_NAME})
    decisions = Decisions(trial_controller)
    with warnings.catch_warnings(), memory_kills_are_deaths(), keys_stay_in_the_environment():
        warnings.simplefilter("ignore")
        tune.Tuner(
            worker,
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                search_alg=Proposals(trial_controller, max_concurrent),
                scheduler=decisions,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent.resolve()),
                verbose=0,
                callbacks=[Files(decisions, tick)],
                failure_config=tune.FailureConfig(max_failures=0),
                # the checkpoints of trials are in the store
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if trial_controller.has_broken_workers:
        raise UserError(
            f"workers that can train were required, found {len(trial_controller.broken_workers)} "
            f"that cannot: {trial_controller.broken_workers[-1]}; mend this and submit again: no "
            "trial has failed, and the run goes on"
        )


def _name(trial: Any) -> str:
    return str(trial.config.order.spec.trial_id)


def _nodes() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _error_of(trial: Any) -> Any:
    """Return the exception of a trial; its text if it is no pickle, None if there is neither.

    Tune's own `get_error` looks where the files are copied to some minutes later.
    """
    path = trial.pickled_error_file
    if path is not None and Path(path).is_file():
        with contextlib.suppress(Exception):  # of a class that this process does not have
            return ray.cloudpickle.loads(Path(path).read_bytes())
    path = trial.error_file
    if path is not None and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return None


def _in_one_line(error: Any) -> str:
    """Return the last line of an exception, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error or "an error of the cluster"
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else ""
    return text if ":" in text[:60] else f"{type(cause).__name__}: {text}"
