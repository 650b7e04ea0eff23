"""A worker's trials: a forked child runs them, the worker watches.

The child is forked from the fork server (`cluster/fork_server.py`), which has imported what is slow to load
(torch, timm), or from the worker, which has then imported it itself. They share that memory. A
child runs trial after trial while its process is as it was before the first one
(`process_leftovers.py`); otherwise the next trial gets a new child, which costs a tenth of a second.
A child that hangs, grows too large or dies costs only its own trial, and its worker can name the
reason.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn

import psutil

from data_prep.process_title import show_process_title
from orchestrator.base.errors import UserError
from orchestrator.cluster.fork_server import fork, leave_parent
from orchestrator.search.process_leftovers import (
    ProcessState,
    memory_on_card,
    seed_everything,
    warm_up,
)
from orchestrator.search.process_memory import resident_bytes
from orchestrator.store.event_types import OBJECTIVE
from orchestrator.store.store_address import open_store

Report = Callable[[int, dict[str, float]], None]
"""Takes an epoch (from 1) and its metrics."""
Body = Callable[[Any, Report], Any]
"""Trains as a spec says, and reports after each epoch."""

TRAINING_MODULES = (
    "trainers.training_loop",
    "trainers.inference",
    "albumentations",
    "data_prep.timm_without_wandb",
)
"""What a training imports. Imported by a child, it would look like something left behind."""

STOPPED_BY_HAND = "stopped by hand"
_POLL_S = 0.25
_UNWIND_S = 0.5
_CAUSES = {
    "MemoryError": "memory",
    "OutOfMemoryError": "memory",
    "TrainingDiverged": "diverged",
    "MissingSource": "source",
    "BucketError": "bucket",
}
_LOW_MEMORY = 0.08  # share of the machine's memory: less is left
_LARGE_TRIAL = 0.25  # share of the machine's memory: one trial takes more


@dataclass(frozen=True)
class Watch:
    """The limits of a trial; beyond one of them it is ended."""

    wall_s: float | None = None
    report_s: float | None = None  # between two reports
    memory_gb: float | None = None  # None: until the machine runs short
    control: str | None = None  # folder of the files with which `stop` asks for an end
    logs: str | None = None  # folder for the output of trials
    store: str | None = None  # where the output goes from there; None: the folder is shared

    def log_of(self, trial_id: str) -> Path | None:
        """Return the file for the output of a trial on this machine."""
        if self.logs is None:
            return None
        logs = Path(self.logs) if self.store is None else open_store(self.store).place_of(self.logs)
        return logs / f"{trial_id}.log"


@dataclass(frozen=True)
class Reported:
    """One epoch of a trial."""

    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Waits:
    """A trial waits for another run's training, which is no silence."""


@dataclass(frozen=True)
class Failed:
    """Why a trial failed or was stopped: the cause in one word, and a sentence."""

    cause: str
    text: str


@dataclass(frozen=True)
class _Order:
    """What a child needs to run one trial."""

    spec: Any
    trial_id: str
    seed: int
    threads: int
    device: str
    log: Path | None
    store: str | None  # to send the log to


@dataclass(frozen=True)
class _Ended:
    """The last message of a trial."""

    failure: Failed | None
    is_reusable: bool  # the process may run the next trial


class BadReport(ValueError):  # noqa: N818 - says what it is
    """A report that cannot be used."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def stop_file(control: str | Path, trial_id: str) -> Path:
    """Return the file whose existence asks for a trial's end."""
    return Path(control) / f"stop-{trial_id}"


@dataclass(frozen=True)
class _OwnChild:
    """A process that was forked here."""

    pid: int

    def wait(self) -> int:
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return 0


class Child:
    """A process that runs one trial after another, as its parent sees it."""

    def __init__(self, body: Body, watch: Watch = Watch(), fork_server: str | None = None) -> None:
        """Prepare for trials; no process is started yet.

        Args:
            body: trains one spec.
            watch: limits of a trial.
            fork_server: address of the process to fork from; None: this one.
        """
        self.body = body
        self.watch = watch
        self.fork_server = fork_server
        self.on_check: Callable[[], None] = _nothing  # called four times a second during a trial
        self.pid = 0  # 0 while there is no process
        self.n_forks = 0
        self.trial_id = ""
        self._pipe: Any = None
        self._process: Any = None  # waits for its end
        self._is_busy = False  # with a trial
        self._is_stopping = False  # the last trial was stopped, and its end was not received yet
        self._must_answer = False  # the trial waits to be told whether it goes on
        self._started = 0.0
        self._last_report = 0.0
        self._last_check = 0.0

    def start(
        self, spec: Any, trial_id: str, *, seed: int = 0, threads: int = 1, device: str = "cpu"
    ) -> None:
        """Start a trial, in a new process if the last trial left something behind.

        Raises:
            ForkServerGone: it has to be forked from a fork server that cannot be reached.
        """
        if self._is_stopping and not self._has_stopped():
            self.kill()
        self._is_stopping = False
        self.trial_id = trial_id
        log = self.watch.log_of(trial_id)
        order = _Order(spec, trial_id, seed, threads, device, log, self.watch.store)
        if not self.pid:
            self._fork()
        try:
            self._pipe.send(order)
        except OSError:  # it died while it was idle
            self.kill()
            self._fork()
            self._pipe.send(order)
        self._started = self._last_report = self._last_check = time.monotonic()
        self._must_answer = False
        self._is_busy = True

    def next(self) -> Reported | Failed | None:
        """Let the trial go on and wait for its next report; None is its regular end."""
        message: Reported | Failed | _Waits | None = _Waits()
        while isinstance(message, _Waits):
            message = self._next_message()
        return message

    def _next_message(self) -> Reported | Failed | _Waits | None:
        # a trial that reports all the time never waits below
        if self._is_busy and time.monotonic() - self._last_check > _POLL_S:
            reason = self._reason_to_end()
            if reason is not None:
                self.kill()
                return reason
        if self._must_answer:
            with contextlib.suppress(OSError):  # it has died, which recv() reports
                self._pipe.send(True)
            self._last_report = time.monotonic()  # it may have waited for this answer
        self._must_answer = False
        while not self._pipe.poll(_POLL_S):
            reason = self._reason_to_end()
            if reason is not None:
                self.kill()
                return reason
        try:
            message: Reported | _Ended | _Waits = self._pipe.recv()
        except (EOFError, OSError):
            return self._reason_of_death()
        if isinstance(message, Reported | _Waits):
            self._last_report = time.monotonic()
            self._must_answer = isinstance(message, Reported)
            return message
        self._take_end(message)
        return message.failure

    def stop(self) -> None:
        """End the trial after its last report; its process may run the next one."""
        if not self._is_busy:
            return
        if not self._must_answer:
            self.kill()
            return
        with contextlib.suppress(OSError):
            self._pipe.send(False)
        self._is_busy = False
        self._must_answer = False
        self._is_stopping = True

    def _has_stopped(self) -> bool:
        """Wait a moment until a stopped trial has ended; it may be in the middle of an epoch."""
        try:
            while self._pipe.poll(_UNWIND_S):
                message = self._pipe.recv()
                if isinstance(message, _Ended):
                    self._take_end(message)
                    return True
        except (EOFError, OSError):
            self._reap()
            return True
        return False

    def _take_end(self, message: _Ended) -> None:
        self._is_busy = False
        if not message.is_reusable:  # the process ends by itself
            self._reap()

    def kill(self) -> None:
        """End the process at once."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _fork(self) -> None:
        pipe, child_end = Pipe()
        task = partial(_run_trials, self.body, trims=self.watch.memory_gb is not None)
        try:
            if self.fork_server is not None:
                self._process = fork(self.fork_server, task, child_end)
            else:
                self._process = self._fork_here(task, child_end)
        finally:
            child_end.close()
        self._pipe = pipe
        self.pid = self._process.pid
        self.n_forks += 1

    def _fork_here(self, task: Callable[[Any, int], NoReturn], child_end: Any) -> _OwnChild:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            raise RuntimeError(
                "a process without CUDA was required to fork from, found one that has opened it; "
                "its children cannot use the GPU; open CUDA in trials only"
            )
        parent = os.getpid()
        if not self.n_forks:
            # the collector would otherwise touch, and so copy, each page that children share
            gc.freeze()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            task(child_end, parent)
        return _OwnChild(pid)

    def _reap(self) -> int:
        """Wait for the end of the process; return its exit status."""
        status: int = self._process.wait()
        self.pid = 0
        self._is_busy = False
        self._pipe.close()
        return status

    def _reason_of_death(self) -> Failed:
        status = self._reap()
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return Failed("killed", f"its process was killed by {name}")
        code = os.WEXITSTATUS(status)
        text = f"its process ended with exit code {code} in the middle of training"
        return Failed("exited", text)

    def _reason_to_end(self) -> Failed | None:
        """Return why the trial must be ended, or None."""
        self._last_check = time.monotonic()
        self.on_check()
        watch = self.watch
        if watch.control and stop_file(watch.control, self.trial_id).exists():
            return Failed("stopped", STOPPED_BY_HAND)
        silent_s = self._last_check - self._last_report
        if watch.report_s is not None and silent_s > watch.report_s and not self._has_reported():
            text = f"no report for {watch.report_s:g} s (resources.per_trial.report_s)"
            return Failed("hung", text)
        if watch.wall_s is not None and self._last_check - self._started > watch.wall_s:
            return Failed("hung", f"not done after {watch.wall_s:g} s (resources.per_trial.wall_s)")
        return self._memory_reason()

    def _has_reported(self) -> bool:
        """Return True if a report is unread, or if the trial waits for an answer to its last."""
        return self._must_answer or bool(self._pipe.poll())

    def _memory_reason(self) -> Failed | None:
        taken = resident_bytes(self.pid)
        taken_text = f"{taken / 1e9:.2f} GB of memory taken"
        limit_gb = self.watch.memory_gb
        if limit_gb is not None:
            if taken <= limit_gb * 1e9:
                return None
            limit = f"{limit_gb:g} allowed (resources.per_trial.memory_gb)"
            return Failed("memory", f"{taken_text}, {limit}")
        machine = psutil.virtual_memory()
        is_low = machine.available < _LOW_MEMORY * machine.total
        if not is_low or taken <= _LARGE_TRIAL * machine.total:
            return None
        left = f"while the machine has {machine.available / 1e9:.2f} GB left"
        return Failed(
            "memory", f"{taken_text} {left}; lower the batch size or resources.max_concurrent"
        )


def _nothing() -> None:
    pass


def check_metrics(epoch: int, metrics: dict[str, Any]) -> dict[str, float]:
    """Return a report's metrics as floats.

    Raises:
        BadReport: the objective is missing, or a value is not a finite number.
    """
    if OBJECTIVE not in metrics:
        names = ", ".join(sorted(metrics)) or "nothing"
        text = f"{OBJECTIVE} was required in the report of epoch {epoch}, found {names}"
        raise BadReport("metric", text)
    values = {}
    for name, value in metrics.items():
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            text = f"{name} was required as a number in epoch {epoch}, found {value!r}"
            raise BadReport("metric", text) from None
        if not math.isfinite(values[name]):
            raise BadReport("diverged", f"{name} is {values[name]} in epoch {epoch}")
    return values


class _Stopped(BaseException):
    """Unwinds a trial that was stopped early."""


def _run_trials(body: Body, pipe: Any, parent: int, *, trims: bool) -> NoReturn:
    """Be the child: run trials until one leaves something behind, then exit without exit handlers.

    Args:
        body: trains one spec.
        pipe: to the parent.
        parent: its pid.
        trims: the memory that a trial has freed does not count as the next one's.
    """
    try:
        leave_parent(pipe.fileno(), parent)
        state = None
        is_reusable = True
        while is_reusable:
            order: _Order = pipe.recv()
            show_process_title(f"trial {order.trial_id}")
            seed_everything(order.seed, order.threads)
            warm_up(order.device)
            if state is None:
                state = ProcessState(
                    getattr(body, "__globals__", None),
                    trims=trims,
                    card_bytes=None if order.device.startswith("cpu") else memory_on_card,
                )
            with _output_to(order.log):
                failure = _run_trial(body, order.spec, pipe)
                # the frames of an error keep alive what the trial had
                is_reusable = failure is None and _is_unchanged(state)
            _send_log(order)
            pipe.send(_Ended(failure, is_reusable))
    except (EOFError, OSError) as error:  # the parent has gone, or has no more trials
        # otherwise the parent waits for a trial whose log cannot be written
        text = f"its log cannot be written: {reason_of(error)}"
        with contextlib.suppress(OSError):
            pipe.send(_Ended(Failed(cause_of(error), text), is_reusable=False))
    finally:
        os._exit(0)


def _send_log(order: _Order) -> None:
    """Let other machines have a trial's output, where they do not share its folder."""
    if order.store is not None and order.log is not None and order.log.is_file():
        with contextlib.suppress(UserError):  # it stays on this machine
            open_store(order.store).share(order.log)


def _is_unchanged(state: ProcessState) -> bool:
    differences = state.differences()
    if differences:
        names = ", ".join(differences[:20])
        sys.stderr.write(f"left behind: {names}; the next trial gets a new process\n")
    return not differences


def _run_trial(body: Body, spec: Any, pipe: Any) -> Failed | None:
    """Run one trial; return its failure, or None if it ended or was stopped."""
    report = _Reports(pipe)
    failure = None
    try:
        body(spec, report)
    except _Stopped:
        return None
    except BaseException as error:  # noqa: BLE001 - the parent learns of each error
        traceback.print_exc()
        failure = Failed(cause_of(error), reason_of(error, getattr(spec, "store", None)))
    if report.must_wait and not pipe.recv():
        return None
    return failure


class _Reports:
    """Sends a trial's reports to the worker."""

    def __init__(self, pipe: Any) -> None:
        self.must_wait = False  # for the answer to the last report
        self._pipe = pipe

    def __call__(self, epoch: int, metrics: dict[str, Any]) -> None:
        values = check_metrics(epoch, metrics)
        if self.must_wait and not self._pipe.recv():
            raise _Stopped
        # one report ahead at most: a trial that is to stop must not reach its end meanwhile
        self._pipe.send(Reported(epoch, values))
        self.must_wait = True

    def wait(self) -> None:
        """Say that the trial waits for another run's training."""
        self._pipe.send(_Waits())


@contextlib.contextmanager
def _output_to(log: Path | None) -> Iterator[None]:
    """Send all output, native code's too, to a file; an empty file is removed."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()


def cause_of(error: BaseException) -> str:
    """Return an error's cause in one word; classes go by name, because torch may be absent."""
    if isinstance(error, BadReport):
        return error.cause
    if _is_disk_full(error):
        return "disk"
    for kind in type(error).__mro__:
        if kind.__name__ in _CAUSES:
            return _CAUSES[kind.__name__]
    return "raised"


def _is_disk_full(error: BaseException) -> bool:
    """Return True for errors of a full disk; those of torch and safetensors have only a text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error)


def reason_of(error: BaseException, store: str | None = None) -> str:
    """Return an error in one line; `store` is the folder that a trial writes to."""
    if _is_disk_full(error) and store is not None and Path(store).is_dir():
        free_mb = shutil.disk_usage(store).free / 1e6
        return (
            f"disk full: {store} has {free_mb:.1f} MB free; "
            "free some space and submit again, the run continues from there"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(error, BadReport):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
