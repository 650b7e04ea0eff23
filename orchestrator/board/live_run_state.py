"""A run as its growing ledger tells it, read once for all who look at it.

A ledger may hold a hundred thousand trials, so only what the board shows is kept of each record.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.base.stage_versions import STAGE_NAMES
from orchestrator.report.command_text.event_sentences import clock, describe
from orchestrator.store.event_types import (
    SCORE,
    DriverStarted,
    EpochReported,
    Event,
    Metrics,
    PhaseStarted,
    ShardWritten,
    StageEnded,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    WorkerDied,
    from_json,
)
from orchestrator.store.fold_means import (
    FoldMean,
    FoldPlace,
    FoldTraining,
    best_setting,
    place_of,
    score_of,
)
from orchestrator.store.ledger import LedgerDamaged, Tail, is_live
from orchestrator.store.ledger_summary import RawReport, decode_reports, raw_report
from orchestrator.store.run_dir import RunPaths, state_of
from orchestrator.store.run_files.trials import EpochRow, TrialRow

_BATCH_BYTES = 2**21
_REFRESH_EVERY_S = 0.4
_FIRST_S = 0.3  # of reading, so that the first page shows something
_STEP_S = 0.05  # of reading afterwards: a page that is asked for waits for it
_N_SENTENCES = 400
_CURVE = ("val_macro_f1", "val_loss", "train_loss")
_ROW = 1 + len(_CURVE)  # numbers per epoch in LiveTrial.reports
_NAN = float("nan")
_LAST_SCORES = tuple(
    re.compile(rb'"%s": (-?[0-9][0-9.e+-]*)' % name.encode()) for name in (SCORE, _CURVE[0])
)


@dataclass(slots=True)
class LiveTrial:
    """What the board shows of one trial."""

    trial_id: str
    variant: str
    phase: str  # search | confirm
    setting: str
    seed: int
    fold: int | None
    params: dict[str, Any]  # short name -> sampled value
    started_s: float
    number: int  # its place among all trials of the run
    decoded: array[float]  # epoch, then the metrics of _CURVE; NaN where one was not reported
    lines: bytearray  # reports that were not decoded yet
    status: str = ""  # COMPLETE | PRUNED | FAILED; empty while it has not ended
    wall_s: float | None = None
    score: float | None = None  # of its best epoch, by the score of the spec
    fold_score: float | None = None  # at its end, of a search training that holds out a fold
    error: str = ""
    why: str = ""  # it was stopped early
    words: str = ""  # what a filter looks into, made when it is first asked for
    n_deaths: int = 0
    n_ended: int = 0  # epochs, as the record of its end says
    checkpoint: str = ""  # key of its artifact, of confirm trials alone

    @property
    def place(self) -> FoldPlace | None:
        """Return which training of its setting it is; None where it holds out no fold of a search."""
        return place_of(self.phase, self.setting, self.seed, self.fold)

    @property
    def reports(self) -> array[float]:
        """Return epoch and metrics of all epochs, one after the other.

        Raises:
            LedgerDamaged: a report cannot be read; the next call leaves it out, and those after it.
        """
        lines = bytes(self.lines)
        self.lines.clear()
        for event in decode_reports(self.trial_id, lines):
            self.take(event.epoch, event.metrics)
        return self.decoded

    @property
    def n_epochs(self) -> int:
        """Return how many epochs it has reported."""
        if self.lines and self.n_ended:  # the record of its end says it
            return self.n_ended
        return len(self.reports) // _ROW

    @property
    def last_score(self) -> float | None:
        """Return the validation score of the last epoch."""
        start = self.lines.rfind(b"\n", 0, -1) + 1
        for pattern in _LAST_SCORES:
            if found := pattern.search(self.lines, start):
                return float(found[1])
        if not self.reports:
            return None
        return _known(self.reports[1 - _ROW])

    def take(self, epoch: int, metrics: Metrics) -> None:
        """Take the metrics of one epoch; a trial that is tried again repeats earlier epochs."""
        while self.decoded and self.decoded[-_ROW] >= epoch:
            del self.decoded[-_ROW:]
        self.decoded.append(epoch)
        score = _score_of(metrics)
        values = [score, *map(metrics.get, _CURVE[1:])]
        self.decoded.extend(_NAN if value is None else value for value in values)
        if not self.status and score is not None and (self.score is None or score > self.score):
            self.score = score

    def row(self, status: str) -> TrialRow:
        """Return the trial as a row of trials.parquet, with the status that is shown."""
        return TrialRow.model_construct(  # its validator expects the columns of the file
            trial_id=self.trial_id,
            variant=self.variant,
            phase=self.phase,
            setting=self.setting,
            seed=self.seed,
            fold=self.fold,
            status=status,
            params=self.params,
            epochs=self.n_epochs,
            wall_s=self.wall_s,
            val_macro_f1=self.score,
            fold_score=self.fold_score,
            error=self.error,
        )

    def epochs(self) -> Iterator[EpochRow]:
        """Yield its epochs as rows of curves.parquet."""
        reports = self.reports
        for start in range(0, len(reports), _ROW):
            epoch, *values = reports[start : start + _ROW]
            metrics: dict[str, Any] = {
                name: _known(value) for name, value in zip(_CURVE, values, strict=True)
            }
            yield EpochRow.model_construct(trial_id=self.trial_id, epoch=int(epoch), **metrics)


@dataclass
class StageState:
    """One stage of a run as it stands."""

    name: str
    outcome: str = "WAITING"  # or RUNNING, or what StageEnded says
    wall_s: float | None = None
    note: str = ""
    n_done: int = 0
    n_total: int | None = None
    left_s: float | None = None  # until its end; None where nothing can be said yet

    @property
    def share(self) -> float | None:
        """Return how much is done, in 0..1."""
        if not self.n_total or not self.n_done:
            return None
        return min(1.0, self.n_done / self.n_total)


@dataclass
class Phase:
    """How far the trials of search or confirm are."""

    began_s: float
    n_before: int  # trials that had ended when the driver began


@dataclass
class LiveRun:
    """A run and everything that its ledger has told so far. Methods may be called from any thread."""

    paths: RunPaths
    trials: dict[str, LiveTrial] = field(default_factory=dict)  # in the order they were started
    events: list[Event] = field(default_factory=list)  # those of no trial
    told: deque[Event] = field(default_factory=lambda: deque(maxlen=_N_SENTENCES))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (phase, status) -> trials
    phases: dict[str, Phase] = field(default_factory=dict)
    param_names: dict[str, None] = field(default_factory=dict)
    n_prepared: int = 0
    version: int = 0  # grows whenever something that is shown has changed
    damage: str = ""  # why the ledger cannot be read further
    is_live: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._tail = Tail(self.paths.events)
        self._next_s = 0.0
        self._signature: object = None
        self._reporting: dict[str, LiveTrial] = {}  # reports to decode, because it has not ended

    @property
    def is_due(self) -> bool:
        """Return True if it has not been refreshed for a moment."""
        return time.monotonic() >= self._next_s

    @property
    def n_unread_bytes(self) -> int:
        """Return how much of the ledger is still to be read."""
        return 0 if self.damage else self._tail.n_unread_bytes

    def refresh(self, budget_s: float | None = None) -> None:
        """Read what is new in the ledger; who asks too early gets nothing new.

        Args:
            budget_s: for how long; a moment by default, and a little longer at the first time.
        """
        if not self.is_due or not self.lock.acquire(blocking=False):
            return  # the second: another thread reads it
        try:
            if budget_s is None:
                budget_s = _STEP_S if self.trials else _FIRST_S
            until = time.monotonic() + budget_s
            while self.n_unread_bytes and self._read_batch() and time.monotonic() < until:
                pass
            self._decode_reports()
            self.is_live = is_live(self.paths.root)
            signature = (self.is_live, self.file_times())
            if signature != self._signature:
                self._signature = signature
                self.version += 1
            pause_s = 0.0 if self.n_unread_bytes else _REFRESH_EVERY_S
            self._next_s = time.monotonic() + pause_s
        finally:
            self.lock.release()

    def _decode_reports(self) -> None:
        """Decode what running trials have reported, because they show their best epoch."""
        while self._reporting:
            _, trial = self._reporting.popitem()
            try:
                trial.reports  # noqa: B018 - decodes them
            except LedgerDamaged as error:
                self.damage = str(error)

    def file_times(self) -> tuple[int, ...]:
        """Return when the result files of the run were written."""
        return tuple(_written_ns(getattr(self.paths, name)) for name in _RESULT_FILES)

    def _read_batch(self) -> bool:
        """Read some of the ledger; return True if that was a whole record or more."""
        try:
            events = self._tail.read(_BATCH_BYTES, raw_report)
        except LedgerDamaged as error:
            self.damage = str(error)
            self.version += 1
            return False
        for event in events:
            if isinstance(event, RawReport):  # most events are
                if trial := self.trials.get(event.trial_id):
                    trial.lines += event.text + b"\n"
                    self._reporting[event.trial_id] = trial
            else:
                self._apply(event)
        self.version += bool(events)
        return bool(events)

    def _apply(self, event: Event) -> None:
        if isinstance(event, TrialEvent):
            self._apply_to_trial(event)
        else:
            self.events.append(event)
        match event:
            case DriverStarted():
                self.n_prepared = 0
            case ShardWritten():
                self.n_prepared += event.n_prepared + event.n_copied
            case PhaseStarted():
                self.phases[event.phase] = Phase(event.time, self.n_ended(event.phase))
        if not isinstance(event, EpochReported):
            self.told.append(event)

    def sentences(self) -> list[str]:
        """Return what has happened lately, in words."""
        lines = []
        for event in self.told:
            if sentence := describe(event):
                lines.append(f"{clock(event.time)} {sentence}")
        return lines

    def _apply_to_trial(self, event: TrialEvent) -> None:
        if isinstance(event, TrialStarted):
            if event.trial_id not in self.trials:
                self.trials[event.trial_id] = self._new_trial(event)
                self.counts[event.phase, ""] += 1
            return
        trial = self.trials.get(event.trial_id)
        if trial is None:
            return
        match event:
            case EpochReported():
                trial.take(event.epoch, event.metrics)
            case TrialEnded():
                self._end(trial, event)
            case TrialReopened():
                trial.reports  # noqa: B018 - the epochs of the next attempt replace some of them
                self._set_status(trial, "")
                trial.fold_score = None
            case WorkerDied():
                trial.n_deaths += 1

    def _end(self, trial: LiveTrial, event: TrialEnded) -> None:
        best = _score_of(event.metrics or {})
        trial.fold_score = score_of(event.status, event.metrics)
        if best is not None:
            trial.score = best
        elif trial.lines:
            trial.reports  # noqa: B018 - decodes them, which finds the best
        self._reporting.pop(trial.trial_id, None)
        self._set_status(trial, event.status)
        trial.n_ended = event.epochs or 0
        if trial.phase == "confirm":
            trial.checkpoint = (event.checkpoint or "").removeprefix("trial/")
        trial.wall_s = event.wall_s
        trial.error = event.error or ""
        trial.why = event.why or ""

    def _new_trial(self, event: TrialStarted) -> LiveTrial:
        params = {}
        for name, value in event.params.items():
            short = sys.intern(name.removeprefix("train."))
            params[short] = sys.intern(value) if isinstance(value, str) else value
        if event.phase == "search":
            self.param_names |= dict.fromkeys(params)
        return LiveTrial(
            event.trial_id,
            sys.intern(event.variant),
            sys.intern(event.phase),
            event.setting,
            event.seed,
            event.fold,
            params,
            event.time,
            len(self.trials),
            array("f"),
            bytearray(),
        )

    def _set_status(self, trial: LiveTrial, status: str) -> None:
        self.counts[trial.phase, trial.status] -= 1
        self.counts[trial.phase, status] += 1
        trial.status = sys.intern(status)

    def n_ended(self, phase: str) -> int:
        """Return how many trials of a phase have ended."""
        return sum(n for (name, status), n in self.counts.items() if name == phase and status)

    def shown_status(self, trial: LiveTrial) -> str:
        """Return the status of a trial as people read it."""
        return trial.status or ("RUNNING" if self.is_live else "UNFINISHED")

    def running(self) -> list[LiveTrial]:
        """Return the trials that are running now."""
        if not self.is_live:
            return []
        return [trial for trial in self.trials.values() if not trial.status]

    def best_setting(self) -> FoldMean | None:
        """Return the best setting of a search that trains folds."""
        trainings = []
        for trial in self.trials.values():
            if trial.fold is not None and (place := trial.place):
                score = trial.fold_score
                trainings.append(FoldTraining(trial.trial_id, trial.variant, place, score))
        return best_setting(trainings)

    def best(self) -> LiveTrial | None:
        """Return the search trial with the highest score; None where settings are trained on folds."""
        best: LiveTrial | None = None
        for trial in self.trials.values():
            if trial.phase != "search" or trial.score is None or trial.fold is not None:
                continue
            if best is None or trial.score > (best.score or 0.0):
                best = trial
        return best

    def state(self) -> dict[str, Any]:
        """Return {state, wall_s} of the run."""
        return state_of(self.paths)

    def stages(self) -> list[StageState]:
        """Return the stages in their order, with how far the running one is."""
        states = {name: StageState(name) for name in STAGE_NAMES}
        for event in self.events:
            if isinstance(event, DriverStarted):
                states = {name: StageState(name) for name in STAGE_NAMES}
            elif isinstance(event, StageEnded):
                state = states.setdefault(event.stage, StageState(event.stage))
                state.outcome = event.outcome
                state.wall_s = event.wall_s
                state.note = event.note or ""
        waiting = [state for state in states.values() if state.outcome == "WAITING"]
        if self.is_live and waiting:
            waiting[0].outcome = "RUNNING"
            self._measure(waiting[0])
        return list(states.values())

    def _measure(self, stage: StageState) -> None:
        """Fill in how much of the running stage is done."""
        plan = self.plan()
        if stage.name == "prepare":
            stage.n_done = self.n_prepared
            stage.n_total = plan.get("n_photos")
            return
        phase = self.phases.get(stage.name)
        if phase is None:
            return
        stage.n_done = self.n_ended(stage.name)
        stage.n_total = (plan.get("trials") or {}).get(stage.name)
        n_new = stage.n_done - phase.n_before
        if stage.n_total and n_new > 0:
            elapsed_s = time.time() - phase.began_s
            stage.left_s = elapsed_s / n_new * max(0, stage.n_total - stage.n_done)

    def plan(self) -> dict[str, Any]:
        """Return what plan.json says; empty where it cannot be read."""
        try:
            plan = self.paths.read_json("plan")
        except (OSError, ValueError):
            return {}
        return plan if isinstance(plan, dict) else {}

    def rows(self, trials: Iterable[LiveTrial]) -> tuple[TrialRow, ...]:
        """Return trials as the report reads them."""
        return tuple(trial.row(self.shown_status(trial)) for trial in trials)


_RESULT_FILES = ("summary", "selection", "hypotheses", "certificate", "audit", "prep", "resolved")


def trial_events(paths: RunPaths, trial_id: str) -> list[Event]:
    """Return the events of one trial, without decoding those of the others."""
    mark = json.dumps(trial_id, ensure_ascii=False).encode()
    events: list[Event] = []
    with paths.events.open("rb") as handle:
        for line in handle:
            if mark not in line or not line.endswith(b"\n"):
                continue
            try:
                event = from_json(json.loads(line))
            except ValueError:
                continue
            if isinstance(event, TrialEvent) and event.trial_id == trial_id:
                events.append(event)
    return events


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _score_of(metrics: Metrics) -> float | None:
    """Return the validation score of an epoch, by the score of the spec."""
    return metrics.get(SCORE, metrics.get(_CURVE[0]))


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124 - NaN is not equal to itself
