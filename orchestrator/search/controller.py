"""The trial controller joins Ray Tune, Optuna and the ledger: which trial is next, which stops, how each ended.

One controller serves one phase. It first replays the ledger, event by event, so that studies and rungs are what they
were. Then it hands out trials in a fixed order: those that have ended (replayed to Tune, so that its folder holds every
trial), those that a killed driver left open, then new ones.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from orchestrator.base.console import PhaseSnapshot
from orchestrator.search.budget import Budget
from orchestrator.search.early_stopping import Rungs
from orchestrator.search.trial import TrialSpec
from orchestrator.store.events import (
    EpochReported,
    Event,
    LimitReached,
    Metrics,
    PhaseStarted,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    WorkerDied,
)
from orchestrator.store.ledger import Ledger, TrialRecord, replay

OBJECTIVE = "val_macro_f1"
_MAX_DEATHS = 2  # of a trial's process, before it is given up
_LEAST_SPLIT = 4  # photos: fewer are not split once more

Reports = dict[int, Metrics]  # epoch -> metrics


class TrialState(Enum):
    """Where a trial stands."""

    PROPOSED = auto()  # not in the ledger yet
    OPEN = auto()  # in the ledger, waits for a worker
    RUNNING = auto()  # a worker has it
    ENDED = auto()  # its end is in the ledger; where it is handed out, it is only replayed


@dataclass
class Trial:
    """A trial in the controller's hands."""

    spec: TrialSpec
    asked: Any  # Optuna's trial, or None
    state: TrialState
    stored: list[Metrics] | None = None  # its epochs, where the store has all of them
    began: float = field(default_factory=time.monotonic)
    deaths: int = 0  # that count
    attempt: int = 0


@dataclass(frozen=True)
class Replay:
    """What a worker repeats instead of training."""

    reports: list[tuple[int, Metrics]]
    error: str | None = None


@dataclass(frozen=True)
class Proposal:
    """The next trial to run."""

    spec: TrialSpec
    attempt: int
    deaths: int
    replay: Replay | None  # where it has ended before, or the store has it finished
    has_ended: bool


@dataclass(frozen=True)
class Waiting:
    """There is no trial now; there may be one when a running one has ended."""


@dataclass(frozen=True)
class Finished:
    """There are no more trials."""


class TrialController:
    """The state of one phase, driven by Tune's calls and written to the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        phase: str,
        proposals: Iterator[tuple[TrialSpec, Any] | None],
        *,
        rungs: dict[str, Rungs] | None = None,
        tell: Callable[[Any, str, Reports, str | None], None] | None = None,
        resume: Callable[[TrialRecord], tuple[TrialSpec, Any]] | None = None,
        finished: Callable[[TrialSpec], list[Metrics] | None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Start from what the ledger knows of this phase.

        Args:
            ledger: open for writing.
            phase: search or confirm.
            proposals: new trials, (spec, Optuna's trial); None to wait, the end when there are no more.
            rungs: per variant; None where nothing is stopped early.
            tell: takes Optuna's trial, a status, the reports of an ended trial, and the cause of a failure.
            resume: rebuilds the spec of a trial that the ledger knows, and asks Optuna for it again.
            finished: looks up the epochs of a trial that is finished in the store.
            budget: ends the phase before the proposals do.
        """
        self.ledger = ledger
        self.phase = phase
        self.proposals = proposals
        self.rungs = rungs or {}
        self.tell = tell
        self.finished = finished
        self.budget = budget or Budget()
        self.records: dict[str, TrialRecord] = {}  # of this phase, in the order of their starts
        self.queue: deque[Trial] = deque()  # to be handed out
        self.handed_out: dict[str, Trial] = {}  # to Tune
        self.counts: Counter[str] = Counter()  # status -> trials
        self.best: float | None = None  # score of all trials
        self._n_started: Counter[str] = Counter()  # variant -> trials
        self._proposals_wait = False
        if resume:
            self._replay_ledger(resume)

    # -- replaying ---------------------------------------------------------------------------------
    def _replay_ledger(  # noqa: C901, PLR0912 - one branch a kind of event
        self, resume: Callable[[TrialRecord], tuple[TrialSpec, Any]]
    ) -> None:
        """Repeat, in the ledger's order, all that happened before."""
        self._reopen_transient_failures()
        events = self.ledger.events
        last_reopened = {}
        for index, event in enumerate(events):
            if isinstance(event, TrialReopened):
                last_reopened[event.trial_id] = index
        resumed: dict[str, Trial] = {}  # as they were first asked for
        open_trials: dict[str, Trial] = {}
        for index, event in enumerate(events):
            self.budget.replay(event, self.phase)
            if not isinstance(event, TrialEvent):
                continue
            name = event.trial_id
            if isinstance(event, TrialStarted) and name not in self.records:
                if event.phase == self.phase:
                    record = TrialRecord(event)
                    self._register(record)
                    spec, asked = resume(record)
                    resumed[name] = Trial(spec, asked, TrialState.OPEN)
                    open_trials[name] = replace(resumed[name])
            elif name not in self.records:
                continue  # of another phase
            elif isinstance(event, EpochReported):
                self._take_report(self.records[name], event.epoch, event.metrics)
            elif isinstance(event, WorkerDied):
                trial = open_trials[name]
                trial.deaths += event.counts
                if event.micro_batch is not None:
                    trial.spec = replace(trial.spec, micro_batch=event.micro_batch)
            elif isinstance(event, TrialReopened):
                open_trials[name] = replace(resumed[name])
            elif isinstance(event, TrialEnded) and index < last_reopened.get(name, -1):
                self.budget.used_s += event.wall_s or 0.0
            elif isinstance(event, TrialEnded):
                trial = open_trials.pop(name)
                self._take_end(trial, self.records[name], event)
                self.queue.append(trial)
        for trial in open_trials.values():
            trial.stored = self._look_up(trial.spec)
            self.queue.append(trial)

    def _reopen_transient_failures(self) -> None:
        """Give trials with transient failures another try, unless the next phase depends on their failure."""
        if self.phase == "search" and _has_begun(self.ledger.events, "confirm"):
            return
        for record in replay(self.ledger.events).trials.values():
            if record.phase == self.phase and record.has_transient_failure:
                self.ledger.append(TrialReopened(trial_id=record.trial_id), commit=True)

    # -- proposing ---------------------------------------------------------------------------------
    def next(self) -> Proposal | Waiting | Finished:
        """Return the next trial, or whether there may be one later."""
        if all(trial.state is TrialState.PROPOSED for trial in self.queue):
            if self.is_exhausted():
                self.queue.clear()  # what has begun goes on to its end, what has not does not begin
            elif not self.queue:
                self._propose()
        trial = self._first_ready()
        if trial is not None:
            return self._hand_out(trial)
        if self.queue or self.handed_out:  # one of them may have to be tried again
            return Waiting()
        return Waiting() if self._proposals_wait else Finished()

    def _propose(self) -> None:
        """Put the next new trial into the queue, if there is one now."""
        self._proposals_wait = False
        for proposal in self.proposals:
            if proposal is None:
                self._proposals_wait = True
            else:
                self.queue.append(Trial(*proposal, TrialState.PROPOSED))
            return

    def _first_ready(self) -> Trial | None:
        """Return the first trial of the queue that need not wait for another one."""
        if self.queue and self.queue[0].state is TrialState.ENDED:
            return self.queue[0]
        running = [trial for trial in self.handed_out.values() if trial.state is TrialState.RUNNING]
        running_keys = {trial.spec.key for trial in running}
        waiting = [trial for trial in self.queue if trial.state is TrialState.OPEN]
        unfinished_keys = running_keys | {trial.spec.key for trial in waiting}
        for trial in self.queue:
            if trial.state is TrialState.ENDED:
                return trial
            # two trainings of one artifact at a time would write the same files
            if trial.spec.key not in running_keys and trial.spec.source not in unfinished_keys:
                return trial
        return None

    def _hand_out(self, trial: Trial) -> Proposal:
        self.queue.remove(trial)
        if trial.state is TrialState.PROPOSED:
            self._start(trial)
        trial.began = time.monotonic()
        self.handed_out[trial.spec.trial_id] = trial
        replayed: Replay | None = None
        if trial.state is TrialState.ENDED:
            record = self.records[trial.spec.trial_id]
            replayed = Replay(sorted(record.reports.items()), record.error)
        else:
            trial.state = TrialState.RUNNING
            if trial.stored is not None:
                replayed = Replay(list(enumerate(trial.stored, 1)))
        has_ended = trial.state is TrialState.ENDED
        return Proposal(trial.spec, trial.attempt, trial.deaths, replayed, has_ended)

    def _start(self, trial: Trial) -> None:
        number = self._n_started[trial.spec.variant]
        event = TrialStarted(number=number, **trial.spec.to_json())
        self.ledger.append(event, commit=True)
        self._register(TrialRecord(event))
        trial.state = TrialState.OPEN
        trial.stored = self._look_up(trial.spec)

    def _look_up(self, spec: TrialSpec) -> list[Metrics] | None:
        return self.finished(spec) if self.finished else None

    def _register(self, record: TrialRecord) -> None:
        self.records[record.trial_id] = record
        self._n_started[record.variant] += 1

    def is_exhausted(self) -> bool:
        """Return True if a limit of the budget is reached; once reached it stays so, over restarts too."""
        if self.budget.reached is None:
            best = self.best if self.best is not None else -1.0
            self.budget.reached = self.budget.limit_reached(best, self.running_s())
            if self.budget.reached is not None:
                event = LimitReached(phase=self.phase, reason=self.budget.reached)
                self.ledger.append(event, commit=True)
        return self.budget.reached is not None

    # -- what is to be seen ------------------------------------------------------------------------
    def _running(self) -> list[Trial]:
        # a copy first: another thread may ask while trials come and go
        trials = list(self.handed_out.values())
        return [trial for trial in trials if trial.state is TrialState.RUNNING]

    def running_s(self) -> float:
        """Return the seconds that the running trials have taken so far, summed."""
        now = time.monotonic()
        return sum(now - trial.began for trial in self._running())

    @property
    def n_ended(self) -> int:
        """How many trials have ended."""
        return self.counts.total()

    def snapshot(self, total: int) -> PhaseSnapshot:
        """Return what there is to see now; may be called from another thread.

        Args:
            total: how many trials there will be.
        """
        now = time.monotonic()
        running = self._running()
        lines = []
        for trial in running:
            name = trial.spec.trial_id
            scores = [metrics[OBJECTIVE] for metrics in list(self.records[name].reports.values())]
            progress = "no report yet"
            if scores:
                progress = f"epoch {len(scores)}, best {max(scores):.4f}"
            lines.append(f"{name}  {progress}, {now - trial.began:.0f} s")
        ends = [record.ended for record in list(self.records.values()) if record.ended]
        took = [end.wall_s for end in ends if end.wall_s is not None and not end.cached]
        left_s = None
        if took:
            left_s = statistics.fmean(took) * max(0, total - self.n_ended) / max(1, len(running))
        return PhaseSnapshot(self.n_ended, dict(self.counts), self.best, left_s, tuple(lines))

    # -- what Tune tells ---------------------------------------------------------------------------
    def on_report(self, trial_id: str, epoch: int, metrics: Metrics) -> bool:
        """Take in a report; return True if the trial stops here."""
        trial = self.handed_out[trial_id]
        if trial.state is TrialState.ENDED:  # its reports were taken in when they were new
            return False
        record = self.records[trial_id]
        if epoch not in record.reports:
            event = EpochReported(trial_id=trial_id, epoch=epoch, metrics=metrics)
            self.ledger.append(event)
        why = self._take_report(record, epoch, record.reports.get(epoch, metrics))
        if why is None or trial.stored is not None:  # stopping what is finished saves nothing
            return False
        self._finish(trial, "PRUNED", why=why)
        return True

    def _take_report(self, record: TrialRecord, epoch: int, metrics: Metrics) -> str | None:
        """Take in an epoch; return why the trial ends there, if it does."""
        record.reports[epoch] = metrics
        score = metrics[OBJECTIVE]
        self.best = score if self.best is None else max(self.best, score)
        rungs = self.rungs.get(record.variant)
        if rungs is None:
            return None
        # after a restart a trial repeats its early epochs: a rung must not count what came later
        scores = [known[OBJECTIVE] for n, known in record.reports.items() if n <= epoch]
        return rungs.reason_to_stop(record.trial_id, epoch, max(scores))

    def on_end(
        self,
        trial_id: str,
        status: str,
        error: str | None = None,
        *,
        cause: str | None = None,
        why: str | None = None,
    ) -> None:
        """Take in how a trial ended; it counts once, however often it is said.

        Args:
            trial_id: of a trial that was handed out.
            status: COMPLETE, PRUNED or FAILED.
            error: what went wrong, in one line.
            cause: of a failure, in one word (raised, diverged, metric, hung, memory, disk, exited, killed, node).
            why: it was stopped early.
        """
        trial = self.handed_out.get(trial_id)
        if trial is not None:
            self._finish(trial, status, error=error, cause=cause, why=why)

    def _finish(
        self,
        trial: Trial,
        status: str,
        *,
        error: str | None = None,
        cause: str | None = None,
        why: str | None = None,
    ) -> None:
        name = trial.spec.trial_id
        del self.handed_out[name]
        if trial.state is TrialState.ENDED:
            return
        record = self.records[name]
        best = max(record.reports.values(), key=lambda metrics: metrics[OBJECTIVE], default=None)
        if status == "COMPLETE" and best is None:
            status = "FAILED"
            cause = "metric"
            error = "ended without a report; a trainer reports after every epoch"
        event = TrialEnded(
            trial_id=name,
            status=status,
            epochs=len(record.reports),
            wall_s=round(time.monotonic() - trial.began, 3),
            metrics=best,
            checkpoint=f"trial/{trial.spec.key}" if status == "COMPLETE" else None,
            error=error,
            cause=cause,
            why=why,
            cached=trial.stored is not None,
            deaths=trial.deaths,
        )
        self.ledger.append(event, commit=True)
        self._take_end(trial, record, event)

    def _take_end(self, trial: Trial, record: TrialRecord, event: TrialEnded) -> None:
        """Take in the end of a trial that stands in the ledger."""
        trial.state = TrialState.ENDED
        record.ended = event
        self.counts[event.status] += 1
        if not event.cached:  # otherwise another run spent its time
            self.budget.used_s += event.wall_s or 0.0
        if self.tell and trial.asked is not None:
            self.tell(trial.asked, event.status, record.reports, event.cause)

    def on_death(
        self, trial_id: str, error: str, *, cause: str = "killed", counts: bool = True
    ) -> None:
        """Take in that a trial's process died: it is tried again from its checkpoint, a few times.

        A death that does not count (its node was lost or taken away) leaves the number of attempts as it was. One for
        want of memory is tried once more, with half the micro-batch: unchanged it would come again.
        """
        trial = self.handed_out.get(trial_id)
        if trial is None:
            return
        if trial.state is TrialState.ENDED:
            del self.handed_out[trial_id]
            trial.attempt += 1
            self.queue.append(trial)
            return
        if counts and trial.deaths >= _MAX_DEATHS:
            times = trial.deaths + 1
            self._finish(trial, "FAILED", error=f"{error}, {times} times", cause=cause)
            return
        micro_batch = None
        if cause == "memory":
            in_use = _photos_at_once(trial.spec)
            if trial.spec.micro_batch is not None or in_use < _LEAST_SPLIT:
                error = (
                    f"out of memory with {in_use} photos at once: {error}; use a smaller "
                    "train.batch_size, photo size or backbone, or fewer trials at once"
                )
                self._finish(trial, "FAILED", error=error, cause=cause)
                return
            micro_batch = in_use // 2
            trial.spec = replace(trial.spec, micro_batch=micro_batch)
        event = WorkerDied(
            trial_id=trial_id, error=error, cause=cause, counts=counts, micro_batch=micro_batch
        )
        self.ledger.append(event, commit=True)
        del self.handed_out[trial_id]
        trial.state = TrialState.OPEN
        trial.deaths += counts
        trial.attempt += 1
        self.queue.appendleft(trial)


def _has_begun(events: list[Event], phase: str) -> bool:
    starts = [event for event in events if isinstance(event, PhaseStarted | TrialStarted)]
    return any(event.phase == phase for event in starts)


def _photos_at_once(spec: TrialSpec) -> int:
    settings = spec.train
    size = spec.micro_batch or settings.get("micro_batch") or settings.get("batch_size", 0)
    return int(size)
