"""A warm worker's trials: run by a forked child, watched by its parent.

The parent has imported what is slow to load (torch, timm); a child has all of it at once and shares the memory. It goes
from trial to trial while it is as it was before its first one (`slate.py`); otherwise the next trial gets a new child,
which costs a tenth of a second. A child that hangs, grows too big or dies costs its own trial only, and its parent can
say which of these it was.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.search.isolation import Slate, make_ready, seed_everything
from orchestrator.search.memory import machine_bytes, resident_bytes

OBJECTIVE = "val_macro_f1"
Report = Callable[[int, dict[str, float]], None]
Body = Callable[[Any, Report], Any]
"""Trains what a spec says and reports after every epoch."""

TRAINING = ("trainers.classifier", "trainers.inference", "albumentations", "timm")
"""What a training imports sooner or later. What a child imported by itself would look like something left behind."""

_POLL_S = 0.25
_UNWIND_S = 0.5
_PR_SET_PDEATHSIG = 1  # prctl(2)
_CAUSES = {
    "MemoryError": "memory",
    "OutOfMemoryError": "memory",
    "TrainingDiverged": "diverged",
    "MissingSource": "source",
}
_SHORT = 0.08
_BIG = 0.25  # of the machine's memory: so little left, so much taken by one trial


@dataclass(frozen=True)
class Watch:
    """What a trial may take before it is ended."""

    wall_s: float | None = None
    report_s: float | None = None  # between two reports
    memory_gb: float | None = None  # None: until the machine runs short
    control: str | None = None  # folder where `stop` leaves its wishes
    logs: str | None = None  # folder for what trials print


@dataclass(frozen=True)
class Reported:
    """One epoch of a trial."""

    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """Why a trial has no proper end: a cause in one word, and a sentence."""

    cause: str
    text: str


class BadReport(ValueError):  # noqa: N818 - says what it is
    """A report that cannot be used."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def stop_file(control: str | Path, trial_id: str) -> Path:
    """Return the file whose existence asks for a trial's end."""
    return Path(control) / f"stop-{trial_id}"


class Child:
    """A process that runs trials, one after another while nothing is left behind by them, seen from its parent."""

    def __init__(self, body: Body, watch: Watch = Watch()) -> None:
        self.body = body
        self.watch = watch
        self.pid = 0
        self.n_forks = 0
        self.trial_id = ""
        self._pipe: Any = None
        self._unheard = False  # the trial has not been told whether to go on after its last report
        self._busy = self._stopping = False
        self._began = self._heard = self._looked = 0.0

    def start(
        self, spec: Any, trial_id: str, *, seed: int = 0, threads: int = 1, device: str = "cpu"
    ) -> None:
        """Begin a trial; in a new process if the last one is not as it was before its first trial."""
        if self._stopping and not self._has_stopped():
            self.kill()
        self._stopping = False
        self.trial_id = trial_id
        order = (spec, seed, threads, device, self._log(trial_id))
        if not self.pid:
            self._fork()
        try:
            self._pipe.send(order)
        except OSError:  # it died while it had nothing to do
            self.kill()
            self._fork()
            self._pipe.send(order)
        self._began = self._heard = self._looked = time.monotonic()
        self._unheard = False
        self._busy = True

    def next(self) -> Reported | Failed | None:
        """Wait for the trial's next report; None is its proper end. Asking again lets it go on."""
        if (
            self._busy
            and time.monotonic() - self._looked > _POLL_S
            and (reason := self._reason()) is not None
        ):
            self.kill()  # one that reports all the time is never waited for
            return reason
        if self._unheard:
            with contextlib.suppress(OSError):  # it has died, which the next lines find out
                self._pipe.send(True)
            self._heard = time.monotonic()  # it may have waited for this
        self._unheard = False
        while not self._pipe.poll(_POLL_S):
            if (reason := self._reason()) is not None:
                self.kill()
                return reason
        try:
            kind, *rest = self._pipe.recv()
        except (EOFError, OSError):
            return self._dead()
        if kind == "report":
            self._heard = time.monotonic()
            self._unheard = True
            return Reported(*rest)
        self._busy = False
        if not rest.pop():  # it left something behind, and has gone
            self._reap()
        return None if kind == "ended" else Failed(*rest)

    def stop(self) -> None:
        """End the trial after the report that was heard last; its process may go on to the next."""
        if not self._busy:
            return
        self._busy = False
        if self._unheard:
            with contextlib.suppress(OSError):
                self._pipe.send(False)
            self._unheard = False
            self._stopping = True
        else:
            self.kill()

    def _has_stopped(self) -> bool:
        """Wait a moment for a stopped trial to unwind; it may be in the middle of an epoch."""
        try:
            while self._pipe.poll(_UNWIND_S):
                kind, *rest = self._pipe.recv()
                if kind != "report":
                    if not rest.pop():
                        self._reap()
                    return True
        except (EOFError, OSError):
            self._reap()
            return True
        return False

    def kill(self) -> None:
        """End the process at once."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _fork(self) -> None:
        parent = os.getpid()
        self._pipe, theirs = Pipe()
        if not self.n_forks:
            gc.freeze()  # the collector would otherwise touch, and so copy, every page that children share
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(self.body, theirs, parent, trims=self.watch.memory_gb is not None)
        theirs.close()
        self.n_forks += 1

    def _reap(self) -> int:
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = 0
        self.pid = 0
        self._busy = False
        self._pipe.close()
        return status

    def _log(self, trial_id: str) -> Path | None:
        return Path(self.watch.logs) / f"{trial_id}.log" if self.watch.logs else None

    def _dead(self) -> Failed:
        status = self._reap()
        if os.WIFSIGNALED(status):
            return Failed(
                "killed", f"its process was killed by {signal.Signals(os.WTERMSIG(status)).name}"
            )
        return Failed(
            "exited",
            f"its process ended with exit code {os.WEXITSTATUS(status)} in the middle of training",
        )

    def _reason(self) -> Failed | None:
        """Say why a trial has to end, if it has to."""
        self._looked = time.monotonic()
        return self._wished() or self._memory()

    def _wished(self) -> Failed | None:
        now = time.monotonic()
        watch = self.watch
        if watch.control and stop_file(watch.control, self.trial_id).exists():
            return Failed("stopped", "stopped by hand")
        if watch.report_s is not None and now - self._heard > watch.report_s and self._is_awaited():
            return Failed(
                "hung", f"no report for {watch.report_s:g} s (resources.per_trial.report_s)"
            )
        if watch.wall_s is not None and now - self._began > watch.wall_s:
            return Failed("hung", f"not done after {watch.wall_s:g} s (resources.per_trial.wall_s)")
        return None

    def _is_awaited(self) -> bool:
        """Say whether a report is the trial's to give: none lies unread, and it does not wait to be told to go on."""
        return not self._unheard and not self._pipe.poll()

    def _memory(self) -> Failed | None:
        watch = self.watch
        taken = resident_bytes(self.pid)
        if watch.memory_gb is not None:
            if taken > watch.memory_gb * 1e9:
                return Failed(
                    "memory",
                    f"{taken / 1e9:.2f} GB of memory taken, {watch.memory_gb:g} allowed "
                    "(resources.per_trial.memory_gb)",
                )
            return None
        total, free = machine_bytes()
        if free < _SHORT * total and taken > _BIG * total:
            return Failed(
                "memory",
                f"{taken / 1e9:.2f} GB of memory taken while the machine has {free / 1e9:.2f} GB left; lower the batch "
                "size or resources.max_concurrent",
            )
        return None


def checked(epoch: int, metrics: dict[str, Any]) -> dict[str, float]:
    """Return a report's metrics as floats.

    Raises:
        BadReport: the objective is missing, or a value is no finite number.
    """
    if OBJECTIVE not in metrics:
        found = ", ".join(sorted(metrics)) or "nothing"
        raise BadReport(
            "metric", f"{OBJECTIVE} was required in the report of epoch {epoch}, found {found}"
        )
    values = {}
    for name, value in metrics.items():
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise BadReport(
                "metric", f"{name} was required as a number in epoch {epoch}, found {value!r}"
            ) from None
        if not math.isfinite(values[name]):
            raise BadReport("diverged", f"{name} is {values[name]} in epoch {epoch}")
    return values


class _Stopped(BaseException):
    """Unwinds a trial that was stopped early."""


def _be_child(body: Body, pipe: Any, parent: int, *, trims: bool) -> NoReturn:
    """Run trials until one leaves something behind; go without running anybody's exit handlers.

    Args:
        body: trains one spec.
        pipe: to the parent.
        parent: its pid.
        trims: what a trial has freed does not count as the next one's memory.
    """
    try:
        _leave_parent(pipe.fileno(), parent)
        slate = None
        clean = True
        while clean:
            spec, seed, threads, device, log = pipe.recv()
            seed_everything(seed, threads)
            make_ready(device)
            slate = slate or Slate(getattr(body, "__globals__", None), trims=trims)
            with _printing_to(log):
                answer = _run(body, spec, pipe)
                # an error's frames hold on to whatever the trial had; its process is given up
                left = slate.differences() if answer[0] != "failed" else ["an error"]
                clean = not left
                if left and answer[0] != "failed":
                    sys.stderr.write(
                        f"left behind: {', '.join(left[:20])}; the next trial gets a new process\n"
                    )
            pipe.send((*answer, clean))
    except (EOFError, OSError) as error:
        with contextlib.suppress(OSError):  # the parent has gone, or has no more trials
            # otherwise it waits for a trial whose log cannot be written
            pipe.send(
                ("failed", cause_of(error), f"its log cannot be written: {reason_of(error)}", False)
            )
    finally:
        os._exit(0)


def _run(body: Body, spec: Any, pipe: Any) -> tuple[str, ...]:
    waits = False

    def report(epoch: int, metrics: dict[str, Any]) -> None:
        nonlocal waits
        values = checked(epoch, metrics)
        if waits and not pipe.recv():
            raise _Stopped
        # one report ahead at most: a trial that is to stop must not reach its end meanwhile
        pipe.send(("report", epoch, values))
        waits = True

    try:
        body(spec, report)
    except _Stopped:
        return ("stopped",)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent hears of it
        traceback.print_exc()
        answer: tuple[str, ...] = (
            "failed",
            cause_of(error),
            reason_of(error, getattr(spec, "store", None)),
        )
    else:
        answer = ("ended",)
    if waits and not pipe.recv():
        return ("stopped",)
    return answer


@contextlib.contextmanager
def _printing_to(log: Path | None) -> Iterator[None]:
    """Send what is printed, by native code too, to a file; none is left where nothing was printed."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(handle, number)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()


def _leave_parent(pipe: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        # where memory runs out, the kernel shall take a trial and not the cluster
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for path in list(Path("/proc/self/fd").iterdir()):
        if (handle := int(path.name)) > 2 and handle != pipe:
            with contextlib.suppress(OSError):
                os.close(handle)  # the cluster's sockets are not ours to hold open
    # the cluster's own streams write to its logs
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)


def cause_of(error: BaseException) -> str:
    """Return an error's cause in one word; by class names, because torch need not be there."""
    if isinstance(error, BadReport):
        return error.cause
    if _is_full(error):
        return "disk"
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((_CAUSES[name] for name in names if name in _CAUSES), "raised")


def _is_full(error: BaseException) -> bool:
    """Say whether an error is that of a full disk; torch and safetensors have no errno, only texts."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error)


def reason_of(error: BaseException, store: str | None = None) -> str:
    """Return an error in one line; `store` is the folder that a trial writes to."""
    if _is_full(error) and store is not None:
        free_mb = shutil.disk_usage(store).free / 1e6
        return f"disk full: {store} has {free_mb:.1f} MB free; free some space and submit again, it goes on from there"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(error, BadReport) else f"{type(error).__name__}: {text}".rstrip(": ")
