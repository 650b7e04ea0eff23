"""The ledger of a run: an append-only file of events, and the state that they add up to."""

from __future__ import annotations

import fcntl
import gc
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from orchestrator.base.errors import UserError
from orchestrator.store.event_types import (
    DriverStarted,
    EpochReported,
    Event,
    Metrics,
    RecordInvalid,
    Repaired,
    RunEnded,
    StageEnded,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    from_json,
)

EVENTS = "events.jsonl"
LOCK = "driver.lock"
REPEATABLE = {"raised", "diverged", "metric"}  # causes of failures that another try would repeat
_PEEK_S = 1.0  # `is_live` holds the lock for less
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class LedgerDamaged(UserError):  # noqa: N818 - says what is the case
    """A record that is not the last one cannot be read.

    Nothing is cut off then, because the records after it are good.
    """


class LedgerLocked(RuntimeError):  # noqa: N818 - says what is the case
    """Another process drives this run."""


@dataclass
class TrialRecord:
    """A trial, as its events describe it."""

    started: TrialStarted
    reports: dict[int, Metrics] = field(default_factory=dict)  # epoch -> metrics
    ended: TrialEnded | None = None  # None while it has not ended

    @property
    def trial_id(self) -> str:
        return self.started.trial_id

    @property
    def phase(self) -> str:
        return self.started.phase

    @property
    def variant(self) -> str:
        return self.started.variant

    @property
    def setting(self) -> str:
        return self.started.setting

    @property
    def params(self) -> dict[str, Any]:
        """The point of the search space."""
        return self.started.params

    @property
    def key(self) -> str:
        """The key of its artifact."""
        return self.started.key

    @property
    def status(self) -> str | None:
        """COMPLETE, PRUNED or FAILED; None while it has not ended."""
        return self.ended.status if self.ended else None

    @property
    def metrics(self) -> Metrics:
        """The metrics of its best epoch; empty if it has none, or has not ended."""
        return (self.ended.metrics if self.ended else None) or {}

    @property
    def error(self) -> str | None:
        """What went wrong, in one line."""
        return self.ended.error if self.ended else None

    @property
    def cause(self) -> str | None:
        """The cause of its failure, in one word."""
        return self.ended.cause if self.ended else None

    @property
    def why(self) -> str | None:
        """Why it was stopped early."""
        return self.ended.why if self.ended else None

    @property
    def is_cached(self) -> bool:
        """True if the store had it finished and nothing was trained."""
        return self.ended is not None and self.ended.cached

    @property
    def has_transient_failure(self) -> bool:
        """True if another try may succeed: memory, disk, time or a node was lacking."""
        return (
            self.ended is not None
            and self.ended.status == "FAILED"
            and self.ended.cause not in REPEATABLE
        )


@dataclass
class State:
    """A run, as its events describe it."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)  # in the order they were started
    stages: dict[str, str] = field(default_factory=dict)
    state: str = "RUNNING"


def replay(events: Iterable[Event]) -> State:
    """Return the state after some events; a pure function.

    The writer of a ledger has it already, as `Ledger.state`.
    """
    run = State()
    for event in events:
        apply(run, event)
    return run


def apply(run: State, event: Event) -> None:
    """Change a run's state by one more event; many kinds of events change nothing."""
    match event:
        case TrialStarted():
            run.trials.setdefault(event.trial_id, TrialRecord(event))
        case TrialEvent():
            if trial := run.trials.get(event.trial_id):
                _apply_to_trial(trial, event)
        case StageEnded():
            run.stages[event.stage] = event.outcome
        case RunEnded():
            run.state = event.state
        case DriverStarted():
            run.state = "RUNNING"


def _apply_to_trial(trial: TrialRecord, event: TrialEvent) -> None:
    match event:
        case EpochReported():
            trial.reports[event.epoch] = event.metrics
        case TrialEnded():
            trial.ended = event
        case TrialReopened():
            trial.ended = None


def read(path: Path) -> list[Event]:
    """Read events; none where there is no file. An incomplete last line is left out.

    Raises:
        LedgerDamaged: another line cannot be read.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return _parse(file, path).events


Shortcut = Callable[[bytes], Event | None]


class Tail:
    """Reads a growing ledger bit by bit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._n_bytes = 0  # read so far
        self._n_events = 0

    @property
    def n_unread_bytes(self) -> int:
        """Return how much of the file has not been read yet."""
        if not self.path.is_file():
            return 0
        return max(0, self.path.stat().st_size - self._n_bytes)

    def read(self, at_most_bytes: int = -1, shortcut: Shortcut | None = None) -> list[Event]:
        """Return the events that were added since the last call.

        Args:
            at_most_bytes: how much of the file to read, so that a long ledger needs little memory;
                at least one complete record is read. All by default.
            shortcut: gives the event of a line without decoding it whole, or None. The last line
                is decoded in any case, because a killed driver may have torn it.
        """
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._n_bytes)
            raw = file.read(at_most_bytes)
            while b"\n" not in raw and (more := file.read(at_most_bytes)):
                raw += more
        complete = raw[: raw.rfind(b"\n") + 1]
        n_before_last = complete.rfind(b"\n", 0, -1) + 1
        parsed = _parse(io.BytesIO(complete), self.path, shortcut, self._n_events, n_before_last)
        self._n_bytes += parsed.n_bytes
        self._n_events += len(parsed.events)
        return parsed.events


class _Parsed(NamedTuple):
    """The complete events of a file, and their size."""

    events: list[Event]
    n_bytes: int


def _parse(
    file: IO[bytes],
    path: Path,
    shortcut: Shortcut | None = None,
    n_before: int = 0,
    n_bytes_before_last: int = 0,
) -> _Parsed:
    # without the garbage collector it takes half the time: events are many, and form no cycles
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse_lines(file, path, shortcut, n_before, n_bytes_before_last)
    finally:
        if was_enabled:
            gc.enable()


def _parse_lines(
    file: IO[bytes],
    path: Path,
    shortcut: Shortcut | None,
    n_before: int,
    n_bytes_before_last: int,
) -> _Parsed:
    events: list[Event] = []
    n_bytes = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            event = None
            if shortcut is not None:
                if n_bytes >= n_bytes_before_last:  # the last line may be torn
                    from_json(json.loads(line))
                event = shortcut(line)
            events.append(event or from_json(json.loads(line)))
        except ValueError as error:  # no JSON, no UTF-8, or no event
            is_last = b"\n" not in file.read()
            if is_last and not isinstance(error, RecordInvalid):
                break
            raise LedgerDamaged(
                f"{path}, record {n_before + len(events) + 1}: a complete event was required, found one that "
                f"cannot be read ({error}); nothing was changed. Restore the file from a copy; or "
                "move the run's folder away and submit again: finished work is in the store"
            ) from None
        n_bytes += len(line)
    return _Parsed(events, n_bytes)


def is_live(run: Path) -> bool:
    """Return True if a process drives this run; its lock ends with the process in any case.

    For a run of a bucket this also brings what a driver on another machine has written.
    """
    from orchestrator.store.store_address import bucket_store  # noqa: PLC0415 - it may import a client

    if is_driven_here(run):
        return True
    store = bucket_store(run)
    return store is not None and store.runs.is_live(run)


def is_driven_here(run: Path) -> bool:
    """Return True if a process that sees this folder drives the run."""
    try:
        with (run / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Ledger:
    """The only writer of a run's events; a `with` block holds the lock of the run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.events: list[Event] = []
        self.state = State()  # after all events
        self.on_append: Callable[[Event], None] | None = None  # called when the state has changed
        self.on_commit: Callable[[], None] | None = None  # called when events are on the disk
        self._lock: IO[bytes] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._lock = (self.run / LOCK).open("ab")
        deadline = time.monotonic() + _PEEK_S
        while not _has_locked(self._lock):
            if time.monotonic() > deadline:
                self._lock.close()
                raise LedgerLocked(f"run {self.run.name} is driven by another process")
            time.sleep(0.02)
        path = self.run / EVENTS
        path.touch()
        self._file = path.open("r+b")
        try:
            self.events, n_bytes = _parse(self._file, path)
        except LedgerDamaged:
            self.__exit__()
            raise
        self.state = replay(self.events)
        self._file.seek(n_bytes)
        lost_bytes = path.stat().st_size - n_bytes
        if lost_bytes:  # the last line, which a killed driver was writing
            self._file.truncate()
            self.append(Repaired(lost_bytes=lost_bytes), commit=True)
        return self

    def __exit__(self, *exc: object) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()

    def append(self, event: Event, *, commit: bool = False) -> None:
        """Write one event with the next number and the time; `commit` flushes it to the disk."""
        if self._file is None:
            raise RuntimeError("the ledger is not open")
        event = event.stamped(len(self.events), time.time())
        self._file.write(_to_text(event.to_json()).encode() + b"\n")
        self._file.flush()
        if commit:
            os.fsync(self._file.fileno())
            if self.on_commit is not None:
                self.on_commit()
        self.events.append(event)
        apply(self.state, event)
        if self.on_append is not None:
            self.on_append(event)


def _has_locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def one_trial(trials: list[TrialRecord], name: str, wanted: str) -> TrialRecord:
    """Return the trial with this id or unique prefix of one.

    Raises:
        UserError: none or several fit.
    """
    fits = [trial for trial in trials if trial.trial_id == name]
    if not fits:
        fits = [trial for trial in trials if trial.trial_id.startswith(name)]
    if len(fits) != 1:
        shown = ", ".join(trial.trial_id for trial in (fits or trials)[:8]) or "none"
        number = "several" if fits else "no such one"
        raise UserError(f"{name}: {wanted} was required, found {number}; there are: {shown}")
    return fits[0]
