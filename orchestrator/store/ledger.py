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

EVENTS, LOCK = "events.jsonl", "driver.lock"


REPEATABLE = {"raised", "diverged", "metric"}  # causes of failures that would come about again
_PEEK_S = 1.0  # whoever only looks whether a run is live holds its lock for less


class LedgerDamaged(UserError):  # noqa: N818 - says what is the case
    """A record that is not the last one cannot be read; nothing is cut off then, because what follows is good."""


class LedgerLocked(RuntimeError):  # noqa: N818 - says what is the case
    """Another process drives this run."""


@dataclass
class TrialState:
    """A trial as its events tell it."""

    trial_id: str
    facts: dict[
        str, Any
    ]  # of trial_started: phase, variant, number, setting, params, seed, fold, key
    reports: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch -> metrics
    status: str | None = None  # COMPLETE, PRUNED, FAILED; None while it has not ended
    end: dict[str, Any] = field(default_factory=dict)  # of trial_ended

    @property
    def phase(self) -> str:
        return str(self.facts["phase"])

    @property
    def failed_by_chance(self) -> bool:
        """Whether it may end otherwise when it is tried again: memory, disk, time or a node was lacking."""
        return self.status == "FAILED" and self.end.get("cause") not in REPEATABLE


@dataclass
class State:
    """A run as its events tell it."""

    trials: dict[str, TrialState] = field(default_factory=dict)  # in the order they were started
    stages: dict[str, str] = field(default_factory=dict)
    state: str = "RUNNING"


def replay(events: Iterable[dict[str, Any]]) -> State:
    """Rebuild a run from its events. Pure: the same events give the same state."""
    run = State()
    for event in events:
        apply(run, event)
    return run


def apply(run: State, event: dict[str, Any]) -> None:
    """Take one more event into a run's state."""
    kind = event["event"]
    if kind == "trial_started":
        run.trials.setdefault(event["trial_id"], TrialState(event["trial_id"], payload(event)))
    elif kind == "report" and event["trial_id"] in run.trials:
        run.trials[event["trial_id"]].reports[event["epoch"]] = event["metrics"]
    elif kind == "trial_ended" and event["trial_id"] in run.trials:
        trial = run.trials[event["trial_id"]]
        trial.status, trial.end = event["status"], payload(event)
    elif kind == "trial_reopened" and event["trial_id"] in run.trials:
        trial = run.trials[event["trial_id"]]
        trial.status, trial.end = None, {}
    elif kind == "stage":
        run.stages[event["stage"]] = event["outcome"]
    elif kind == "run_ended":
        run.state = event["state"]
    elif kind in {"run_started", "run_resumed"}:
        run.state = "RUNNING"


def payload(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event's own fields, without its number, time and kind."""
    return {name: value for name, value in event.items() if name not in {"n", "time", "event"}}


def read(path: Path) -> list[dict[str, Any]]:
    """Read events; a last line that is not whole yet is left out.

    Raises:
        LedgerDamaged: another line cannot be read.
    """
    return _parse(path.read_bytes(), path)[0]


class Tail:
    """Reads a growing ledger bit by bit."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the events that have come since the last call."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as handle:
            handle.seek(self._at)
            events, size = _parse(handle.read(), self.path)
        self._at += size
        return events


def _parse(raw: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the whole events and how many bytes they take."""
    events: list[dict[str, Any]] = []
    end = 0
    for line in raw.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            events.append(json.loads(line))
        except ValueError as error:  # no JSON, or no UTF-8
            if b"\n" not in raw[end + len(line) :]:
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
        self.events: list[dict[str, Any]] = []
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
            self.append("repaired", commit=True, lost_bytes=len(raw) - whole)
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

    def append(self, event: str, *, commit: bool = False, **fields: Any) -> None:
        """Write one event; with `commit` it is on the disk when this returns."""
        if self._file is None:
            raise RuntimeError("the ledger is not open")
        record = {"n": len(self.events), "time": time.time(), "event": event, **fields}
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if commit:
            os.fsync(self._file.fileno())
        self.events.append(record)


def one_trial(trials: list[TrialState], name: str, wanted: str) -> TrialState:
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
