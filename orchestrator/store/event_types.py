"""The events of a run: a class per kind of ledger record, which alone knows its form on disk.

A record is one line with a JSON object: its number `n`, its `time`, its kind `event`, then the
fields of its class.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

Metrics = dict[str, float]
OBJECTIVE = "val_macro_f1"
"""The metric that a search maximizes; each report of a trial has it."""
SCORE = "val_score"
"""The metric that it maximizes instead, where the spec names another score."""
FOLD_SCORE = "fold_score"
"""The score of a search training on the people of role val in its fold, at its end alone."""
N_PARAMS = "n_params"
"""The parameters of a trained model, at its end alone, where a search aims at few of them."""


def objective(metrics: Metrics) -> float:
    """Return what a search maximizes, from the metrics of an epoch."""
    return float(metrics.get(FOLD_SCORE, metrics.get(SCORE, metrics[OBJECTIVE])))


_LARGEST = sys.float_info.max
_LAST_TIME = 253_370_764_800  # the start of the year 9999


class RecordInvalid(ValueError):  # noqa: N818 - says what is the case
    """A record is no object, or a field that its kind needs is missing or of another type."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all events have in common."""

    record_kind: ClassVar[str]
    left_out: ClassVar[frozenset[str]] = frozenset()  # fields that are written only with a value

    n: int = -1  # its place in the ledger; set when it is written
    time: float = 0.0  # seconds since 1970; set when it is written

    def stamped(self, n: int, time: float) -> Self:
        """Return the same event with its number and its time."""
        event = object.__new__(type(self))  # as `replace` does, at a fifth of its time
        vars(event).update(vars(self), n=n, time=time)
        return event

    def to_json(self) -> dict[str, object]:
        """Return the record as it is written to the file."""
        record = {"n": self.n, "time": self.time, "event": self.record_kind, **vars(self)}
        for name in self.left_out:
            if record[name] is None:
                del record[name]
        return record


@dataclass(frozen=True, kw_only=True)
class DriverStarted(Record):
    """A driver took the run up; an audit alone has no key, packages or overrides."""

    left_out = frozenset({"key", "git_commit", "packages", "overrides", "labels"})

    run_id: str = ""
    key: str | None = None
    git_commit: str | None = None
    packages: dict[str, str] | None = None
    overrides: dict[str, Any] | None = None
    labels: dict[str, list[str]] | None = None  # label -> names of its classes


@dataclass(frozen=True, kw_only=True)
class RunStarted(DriverStarted):
    """The first driver took up the run."""

    record_kind = "run_started"


@dataclass(frozen=True, kw_only=True)
class RunResumed(DriverStarted):
    """A later driver took up the run."""

    record_kind = "run_resumed"


@dataclass(frozen=True, kw_only=True)
class RunEnded(Record):
    """The driver left the run."""

    record_kind = "run_ended"

    state: str  # SUCCEEDED | FAILED | INTERRUPTED | CANCELLED


@dataclass(frozen=True, kw_only=True)
class Repaired(Record):
    """A torn last record of a killed driver was cut off."""

    record_kind = "repaired"

    lost_bytes: int


@dataclass(frozen=True, kw_only=True)
class StageEnded(Record):
    """A stage came to its end."""

    record_kind = "stage"

    stage: str
    outcome: str  # SUCCEEDED | CACHED | FAILED | BLOCKED
    wall_s: float | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Record):
    """A driver began to run the trials of a phase."""

    record_kind = "phase_started"

    phase: str  # search | confirm


@dataclass(frozen=True, kw_only=True)
class LimitReached(Record):
    """A limit of the budget ended the proposals of a phase."""

    record_kind = "limit_reached"

    phase: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RaceLooked(Record):
    """The finalists of a race were compared after a seed; some were stopped."""

    record_kind = "race_look"

    look: int  # 1 for the first
    n_seeds: int  # that every finalist in the race has finished
    n_compared: int  # finalists
    stopped: list[dict[str, Any]]  # as `evaluation.race.Stopped` has them


@dataclass(frozen=True, kw_only=True)
class ShardWritten(Record):
    """A shard of prepared photos was put into the store."""

    record_kind = "shard"

    number: int
    key: str
    n_prepared: int
    n_copied: int


@dataclass(frozen=True, kw_only=True)
class ArtifactDamaged(Record):
    """A damaged artifact was removed from the store, to be made again."""

    record_kind = "damaged"

    kind: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PrecisionChosen(Record):
    """The precision `auto` was decided."""

    record_kind = "precision"

    backbone: str
    size: int
    device: str
    seconds: dict[str, float] = field(default_factory=dict)  # of a step; older runs measured it
    chosen: str


@dataclass(frozen=True, kw_only=True)
class StepsTimed(Record):
    """Steps of a size were timed with and without compiling them."""

    record_kind = "steps_timed"

    size: dict[str, Any]  # as `card_sharing.capacity.TrialSize` has it
    device: str
    times: dict[str, Any]  # as `trainers.preflight.step_times.StepTimes` has it


@dataclass(frozen=True, kw_only=True)
class CardMeasured(Record):
    """The first trial of a size has ended, which had a card for itself."""

    record_kind = "card_measured"

    trial_id: str
    size: dict[str, Any]  # as `card_sharing.capacity.TrialSize` has it
    use: dict[str, Any]  # as `CardUse` there


@dataclass(frozen=True, kw_only=True)
class LabelsOpened(Record):
    """Labels of test photos were read."""

    record_kind = "test_labels_opened"

    part: str
    by: str


@dataclass(frozen=True, kw_only=True)
class TrialEvent(Record):
    """What happened to one trial."""

    trial_id: str


@dataclass(frozen=True, kw_only=True)
class TrialStarted(TrialEvent):
    """A trial was proposed: what its worker needs, and its number within its variant."""

    record_kind = "trial_started"
    left_out = frozenset({"facts", "score", "code"})

    setting: str
    variant: str
    phase: str  # search | confirm
    seed: int = 0
    fold: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    key: str  # of its artifact
    store: str = ""
    rows: str = ""
    parts: str | None = None
    label_sizes: dict[str, int] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    inputs: dict[str, str] = field(default_factory=dict)
    mixable: str | None = None
    facts: str | None = None
    source: str | None = None
    micro_batch: int | None = None
    score: dict[str, object] | None = None  # that it maximizes; None: macro F1
    code: list[str] | None = None
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class EpochReported(TrialEvent):
    """A trial reported the metrics of an epoch."""

    record_kind = "report"

    epoch: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class WorkerDied(TrialEvent):
    """The process of a trial died; the trial is tried again."""

    record_kind = "worker_died"
    left_out = frozenset({"micro_batch"})

    error: str
    cause: str = "killed"
    counts: bool = True  # towards the deaths after which a trial is given up
    micro_batch: int | None = None  # from now on, where memory was lacking


@dataclass(frozen=True, kw_only=True)
class TrialReopened(TrialEvent):
    """A trial with a transient failure is tried again by a later driver."""

    record_kind = "trial_reopened"


@dataclass(frozen=True, kw_only=True)
class TrialEnded(TrialEvent):
    """A trial came to its end."""

    record_kind = "trial_ended"
    left_out = frozenset({"parts", "gpu"})

    status: str  # COMPLETE | PRUNED | FAILED
    epochs: int = 0
    wall_s: float | None = None
    metrics: Metrics | None = None  # of its best epoch
    checkpoint: str | None = None
    error: str | None = None  # of a failure, in one line
    cause: str | None = None  # of a failure, in one word
    why: str | None = None  # of an early stop, in one line
    cached: bool = False  # the store had it finished
    deaths: int = 0
    parts: dict[str, float] | None = None  # what it did with wall_s, in seconds
    gpu: float | None = None  # its part of a card, where `gpu: auto` decided it


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Record):
    """A record of a kind that a newer version writes; it is kept as it is and changes no state."""

    record_kind = "unknown"

    record: dict[str, Any]

    def to_json(self) -> dict[str, object]:
        """Return the record as it was read, with this event's number and time."""
        return {**self.record, "n": self.n, "time": self.time}


Event = (
    RunStarted
    | RunResumed
    | RunEnded
    | Repaired
    | StageEnded
    | PhaseStarted
    | LimitReached
    | RaceLooked
    | ShardWritten
    | ArtifactDamaged
    | PrecisionChosen
    | StepsTimed
    | CardMeasured
    | LabelsOpened
    | TrialStarted
    | EpochReported
    | WorkerDied
    | TrialReopened
    | TrialEnded
    | UnknownEvent
)
KINDS: dict[str, type[Event]] = {
    cls.record_kind: cls for cls in Event.__args__ if cls is not UnknownEvent
}


class _Form:
    """What a kind of event needs to be built without its `__init__`, which takes most of the time."""

    def __init__(self, cls: type[Event]) -> None:
        self.cls = cls
        self.empty: dict[str, object] = {}  # every field, in order, with its default
        self.factories: dict[str, Callable[[], Any]] = {}
        self.types: dict[str, tuple[type, ...]] = {}  # what each field may be in JSON
        self.metrics: list[str] = []  # fields whose values are numbers
        needed = set()
        hints = get_type_hints(cls)
        for item in fields(cls):
            self.types[item.name] = _json_types(hints[item.name])
            if dict[str, float] in (hints[item.name], *get_args(hints[item.name])):
                self.metrics.append(item.name)
            self.empty[item.name] = None if item.default is MISSING else item.default
            if item.default_factory is not MISSING:
                self.factories[item.name] = item.default_factory
            elif item.default is MISSING:
                needed.add(item.name)
        self.needed = frozenset(needed)

    def check(self, given: dict[str, Any]) -> None:
        """Check the types of a record's fields.

        Raises:
            RecordInvalid: a field is missing, or of another type.
        """
        kind = self.cls.record_kind
        if missing := sorted(self.needed - given.keys()):
            raise RecordInvalid(f"{kind}: {', '.join(missing)} was required, found none")
        for name, value in given.items():
            allowed = self.types[name]
            if not isinstance(value, allowed):
                wanted = " or ".join(each.__name__ for each in allowed)
                raise RecordInvalid(f"{kind}: {name} was required as {wanted}, found {value!r:.60}")
            if isinstance(value, int) and not _is_finite(value):
                raise RecordInvalid(
                    f"{kind}: {name} was required below 1e308, found a longer number"
                )
        _check_time(kind, given.get("time", 0.0))
        metrics = given.get("metrics") or {}
        if (metrics or "metrics" in self.needed) and OBJECTIVE not in metrics:
            raise RecordInvalid(f"{kind}: {OBJECTIVE} was required in metrics, found none")
        for name in self.metrics:
            for value in (given.get(name) or {}).values():
                if not _is_finite(value):
                    raise RecordInvalid(
                        f"{kind}: numbers were required in {name}, found {value!r:.60}"
                    )


def _is_finite(value: Any) -> bool:
    """Return True for a number that a float can hold."""
    return isinstance(value, int | float) and -_LARGEST <= value <= _LARGEST


def _check_time(kind: str, time: Any) -> None:
    """Check that a record's time is a date that the system can show.

    Raises:
        RecordInvalid: it is not.
    """
    if not isinstance(time, int | float) or not 0 <= time <= _LAST_TIME:
        raise RecordInvalid(
            f"{kind}: time was required in seconds since 1970, before the year 9999, found {time!r:.60}"
        )


def _json_types(hint: Any) -> tuple[type, ...]:
    """Return the types that a field has when it is read from JSON."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        allowed: tuple[type, ...] = ()
        for part in get_args(hint):
            allowed += _json_types(part)
        return allowed
    if hint is Any:
        return (object,)
    if hint is float:
        return (float, int)
    if origin is tuple:
        return (list,)
    return (origin or hint,)


_FORMS = {kind: _Form(cls) for kind, cls in KINDS.items()}


def from_json(record: Any) -> Event:
    """Return the event of a record; fields that a newer version added are left out.

    Raises:
        RecordInvalid: it is no object, or a field is missing or of another type.
    """
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise RecordInvalid("an object with a field event was required")
    kind = record["event"]
    if kind not in KINDS:
        number = record.get("n")
        time = record.get("time", 0.0)
        _check_time(kind, time)
        return UnknownEvent(
            n=number if isinstance(number, int) else -1, time=float(time), record=record
        )
    form = _FORMS[kind]
    given = {name: value for name, value in record.items() if name in form.empty}
    form.check(given)
    event: Event = object.__new__(form.cls)
    values = vars(event)
    values.update(form.empty)
    for name, factory in form.factories.items():
        if name not in given:
            values[name] = factory()
    values.update(given)
    return event
