"""The truth of a run: an append-only file of events, and the pure function that replays it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from orchestrator.base.errors import UserError
from orchestrator.store.events import (
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


REPEATABLE = {"raised", "diverged", "metric"}  # causes of failures that would come about again
_PEEK_S = 1.0  # whoever only looks whether a run is live holds its lock for less


class LedgerDamaged(UserError):  # noqa: N818 - says what is the case
    """A record that is not the last one cannot be read; nothing is cut off then, because what follows is good."""


class LedgerLocked(RuntimeError):  # noqa: N818 - says what is the case
    """Another process drives this run."""


@dataclass
class TrialRecord:
    """A trial as its events tell it."""

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
        """The metrics of its best epoch; empty while it has not ended, or where it ended without."""
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
        """True where the store had it finished and nothing was trained."""
        return self.ended is not None and self.ended.cached

    @property
    def has_transient_failure(self) -> bool:
        """True where another try may end otherwise: memory, disk, time or a node was lacking."""
        return (
            self.ended is not None
            and self.ended.status == "FAILED"
            and self.ended.cause not in REPEATABLE
        )


@dataclass
class State:
    """A run as its events tell it."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)  # in the order they were started
    stages: dict[str, str] = field(default_factory=dict)
    state: str = "RUNNING"


def replay(events: Iterable[Event]) -> State:
    """Rebuild a run from its events. Pure: the same events give the same state."""
    run = State()
    for event in events:
        apply(run, event)
    return run


def apply(run: State, event: Event) -> None:
    """Take one more event into a run's state; a kind that changes no state is passed over."""
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
    """Read events; a last line that is not whole yet is left out.

    Raises:
        LedgerDamaged: another line cannot be read.
    """
    return _parse(path.read_bytes(), path)[0]


class Tail:
    """Reads a growing ledger bit by bit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    @property
    def n_unread_bytes(self) -> int:
        """Return how much of the file has not been read yet."""
        return max(0, self.path.stat().st_size - self._at) if self.path.is_file() else 0

    def read(self, at_most_bytes: int = -1) -> list[Event]:
        """Return the events that have come since the last call.

        Args:
            at_most_bytes: how much of the file to read, so that a long ledger needs little memory;
                at least one whole record is read. All by default.
        """
        if not self.path.is_file():
            return []
        with self.path.open("rb") as handle:
            handle.seek(self._at)
            raw = handle.read(at_most_bytes)
            while at_most_bytes > 0 and b"\n" not in raw and (more := handle.read(at_most_bytes)):
                raw += more
        whole = raw[: raw.rfind(b"\n") + 1]
        events, size = _parse(whole, self.path)
        self._at += size
        return events


def _parse(raw: bytes, path: Path) -> tuple[list[Event], int]:
    """Return the whole events and how many bytes they take."""
    events: list[Event] = []
    end = 0
    for line in raw.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            events.append(from_json(json.loads(line)))
        except ValueError as error:  # no JSON, no UTF-8, or no event
            is_last = b"\n" not in raw[end + len(line) :]
            if is_last and not isinstance(error, RecordInvalid):
                break
            raise LedgerDamaged(
                f"{path}, record {len(events) + 1}: a whole event was required, found one that cannot be read "
                f"({error}); nothing was changed. Put the file back from a copy; or move the run's folder away and "
                "submit again: what is finished is found in the store"
            ) from None
        end += len(line)
    return events, end


def is_live(run: Path) -> bool:
    """Say whether a process drives this run; the lock dies with its owner, however that ends."""
    try:
        with (run / LOCK).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Ledger:
    """The one writer of a run's events. Use it in a `with` block; entering takes the run's lock."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.events: list[Event] = []
        self._lock: IO[bytes] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._lock = (self.run / LOCK).open("ab")
        until = time.monotonic() + _PEEK_S
        while not self._has_lock():
            if time.monotonic() > until:
                self._lock.close()
                raise LedgerLocked(f"run {self.run.name} is driven by another process")
            time.sleep(0.02)
        path = self.run / EVENTS
        raw = path.read_bytes() if path.exists() else b""
        try:
            self.events, whole = _parse(raw, path)
        except LedgerDamaged:
            self._lock.close()
            raise
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)  # a torn last line is what the killed driver was writing
        self._file.seek(whole)
        if whole < len(raw):
            self.append(Repaired(lost_bytes=len(raw) - whole), commit=True)
        return self

    def _has_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
        except OSError:
            return False
        return True

    def __exit__(self, *exc: object) -> None:
        if self._file:
            self._file.close()
        if self._lock:
            self._lock.close()

    def append(self, event: Event, *, commit: bool = False) -> None:
        """Write one event, with the next number and the time; with `commit` it is on the disk when this returns."""
        if self._file is None:
            raise RuntimeError("the ledger is not open")
        event = event.stamped(len(self.events), time.time())
        text = json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        if commit:
            os.fsync(self._file.fileno())
        self.events.append(event)


def one_trial(trials: list[TrialRecord], name: str, wanted: str) -> TrialRecord:
    """Return the trial with this id or unique prefix of one.

    Raises:
        UserError: none or several fit.
    """
    fits = [t for t in trials if t.trial_id == name] or [
        t for t in trials if t.trial_id.startswith(name)
    ]
    if len(fits) != 1:
        shown = ", ".join(t.trial_id for t in (fits or trials)[:8]) or "none"
        raise UserError(
            f"{name}: {wanted} was required, found {'several' if fits else 'no such one'}; there are: {shown}"
        )
    return fits[0]
