"""The trial controller joins Ray Tune, Optuna and the ledger.

It decides which trial is next and which stops early, and records how each one ended. One controller
serves one phase. It first replays the ledger, so that studies and rungs are as they were. Then it
hands out trials in a fixed order: those that have ended (replayed to Tune, whose folder shows all
trials), those that a killed driver left open, then new ones.
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
from orchestrator.search.card_sharing.capacity import CardUse
from orchestrator.search.card_sharing.measurements import measurement
from orchestrator.search.card_sharing.shares import FixedShare, MeasuredShares, Shares
from orchestrator.search.early_stopping import Rungs
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_process import STOPPED_BY_HAND
from orchestrator.search.trial_times import TrialTimes
from orchestrator.store.event_types import (
    EpochReported,
    LimitReached,
    Metrics,
    PhaseStarted,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    WorkerDied,
    objective,
)
from orchestrator.store.ledger import Ledger, TrialRecord

_MAX_DEATHS = 2  # of a trial's process; with one more the trial has failed
_MAX_BROKEN_WORKERS = 3  # before the phase ends: they take trial after trial
_MIN_SPLIT = 4  # photos at once; fewer are not halved

Reports = dict[int, Metrics]
"""Epoch (from 1) -> metrics."""


class TrialState(Enum):
    """Where a trial stands."""

    PROPOSED = auto()  # not in the ledger yet
    OPEN = auto()  # in the ledger, waits for a worker
    RUNNING = auto()  # on a worker
    ENDED = auto()  # its end is in the ledger; handed out, it is only replayed


@dataclass
class Trial:
    """A trial that the controller has not finished yet."""

    spec: TrialSpec
    asked: Any  # Optuna's trial, or None
    state: TrialState
    stored: list[Metrics] | None = None  # its epochs, if the store has it finished
    times: TrialTimes = field(default_factory=TrialTimes)  # of this attempt
    deaths: int = 0  # without lost nodes
    attempt: int = 0
    gpu: float = 0.0  # its part of a card in this attempt
    is_alone: bool = False  # it ran out of memory beside others
    was_complete: bool = False  # and its artifact was lost: it is trained to its end
    card_use: CardUse | None = None  # so far, in this attempt


@dataclass(frozen=True)
class Replay:
    """What a worker reports instead of training."""

    reports: list[tuple[int, Metrics]]
    error: str | None = None


@dataclass(frozen=True)
class Proposal:
    """The next trial to run."""

    spec: TrialSpec
    attempt: int
    deaths: int
    replay: Replay | None  # if it has ended before, or the store has it finished
    has_ended: bool
    gpu: float = 0.0  # its part of a card
    is_measured: bool = False  # its worker looks at what it does to the card


@dataclass(frozen=True)
class Waiting:
    """There is no trial now; there may be another one when a running trial has ended."""


@dataclass(frozen=True)
class Finished:
    """There are no more trials."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a training when it has ended, beside what it reported."""

    metrics: Metrics = field(default_factory=dict)
    why: str | None = None  # its setting is trained no further


class TrialController:
    """The state of one phase, driven by Tune's calls and written to the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        phase: str,
        proposals: Iterator[tuple[TrialSpec, Any] | None],
        *,
        rungs: dict[str, Rungs] | None = None,
        tell: Callable[[Any, TrialEnded, Reports], float | None] | None = None,
        judge: Callable[[Any, TrialSpec], Verdict] | None = None,
        counts_reports: bool = True,
        resume: Callable[[TrialRecord], tuple[TrialSpec, Any]] | None = None,
        finished: Callable[[TrialSpec], list[Metrics] | None] | None = None,
        budget: Budget | None = None,
        shares: Shares = FixedShare(),  # noqa: B008 - frozen
        is_lost: Callable[[TrialRecord], bool] = lambda _: False,
    ) -> None:
        """Start from what the ledger knows of this phase.

        Args:
            ledger: open for writing.
            phase: search or confirm.
            proposals: new trials as (spec, Optuna's trial); None to wait for a running one.
            rungs: per variant; None if nothing is stopped early.
            tell: takes Optuna's trial, its end and its reports; returns the score of a setting that
                is known by it alone, if there is one.
            judge: adds to the end of a training that is complete; it takes Optuna's trial.
            counts_reports: False where no single report has the score of a setting.
            resume: rebuilds the spec of a trial in the ledger, and asks Optuna for it again.
            finished: looks up the epochs of a trial that is finished in the store.
            budget: ends the phase before the proposals do.
            shares: which part of a card a trial gets.
            is_lost: returns True for a complete trial whose artifact is no longer in the store.
        """
        self.ledger = ledger
        self.phase = phase
        self.proposals = proposals
        self.rungs = rungs or {}
        self.tell = tell
        self.judge = judge
        self.counts_reports = counts_reports
        self.finished = finished
        self.budget = budget or Budget()
        self.shares = shares
        self.is_lost = is_lost
        self.must_yield: Callable[[], bool] = lambda: False  # to a run of a higher priority
        self.has_yielded = False
        self.must_stop: Callable[[str], bool] = lambda _: False  # somebody has asked for its end
        self.records: dict[str, TrialRecord] = {}  # the ledger's, of this phase, by start
        self.queue: deque[Trial] = deque()  # to be handed out
        self.handed_out: dict[str, Trial] = {}  # to Tune
        self.counts: Counter[str] = Counter()  # status -> trials
        self.best: float | None = None  # score of all trials
        self._n_started: Counter[str] = Counter()  # variant -> trials
        self._proposals_wait = False
        self.broken_workers: list[str] = []  # what was wrong with each
        if resume:
            self._replay_ledger(resume)

    # -- replaying ---------------------------------------------------------------------------------
    def _replay_ledger(  # noqa: C901, PLR0912 - one branch a kind of event
        self, resume: Callable[[TrialRecord], tuple[TrialSpec, Any]]
    ) -> None:
        """Repeat all earlier events in their order."""
        self._reopen()
        events = self.ledger.events
        last_reopened = {}
        for index, event in enumerate(events):
            if isinstance(event, TrialReopened):
                last_reopened[event.trial_id] = index
        resumed: dict[str, Trial] = {}  # as they were first asked for
        open_trials: dict[str, Trial] = {}
        complete: set[str] = set()  # before they were reopened
        for index, event in enumerate(events):
            self.budget.replay(event, self.phase)
            if not isinstance(event, TrialEvent):
                continue
            name = event.trial_id
            if isinstance(event, TrialStarted) and name not in self.records:
                if event.phase == self.phase:
                    spec, asked = resume(self._register(name))
                    resumed[name] = Trial(spec, asked, TrialState.OPEN)
                    open_trials[name] = replace(resumed[name])
            elif name not in self.records:
                continue  # of another phase
            elif isinstance(event, EpochReported):
                self._take_report(self.records[name], event.epoch)
            elif isinstance(event, WorkerDied):
                trial = open_trials[name]
                trial.deaths += event.counts
                if event.micro_batch is not None:
                    trial.spec = replace(trial.spec, micro_batch=event.micro_batch)
                elif event.cause == "memory":
                    trial.is_alone = True
            elif isinstance(event, TrialReopened):
                open_trials[name] = replace(resumed[name], was_complete=name in complete)
            elif isinstance(event, TrialEnded) and index < last_reopened.get(name, -1):
                self.budget.spend(event)
                if event.status == "COMPLETE":
                    complete.add(name)
            elif isinstance(event, TrialEnded):
                trial = open_trials.pop(name)
                self._take_end(trial, event)
                self.queue.append(trial)
        for trial in open_trials.values():
            trial.stored = self._look_up(trial.spec)
            self.queue.append(trial)

    def _reopen(self) -> None:
        """Train again what was lost, and try transient failures again unless the next phase depends on them."""
        is_too_late = self.phase == "search" and self._has_confirm_begun()
        for record in self.ledger.state.trials.values():
            if record.phase != self.phase:
                continue
            is_lost = record.status == "COMPLETE" and self.is_lost(record)
            if is_lost or (record.has_transient_failure and not is_too_late):
                self.ledger.append(TrialReopened(trial_id=record.trial_id), commit=True)

    def _has_confirm_begun(self) -> bool:
        for event in self.ledger.events:
            if isinstance(event, PhaseStarted | TrialStarted) and event.phase == "confirm":
                return True
        return False

    # -- proposing ---------------------------------------------------------------------------------
    def next(self) -> Proposal | Waiting | Finished:
        """Return the next trial, or whether there may be one later."""
        if self.has_broken_workers:
            return Waiting() if self.handed_out else Finished()
        if self.must_yield():
            self.has_yielded = not self.handed_out
            return Finished() if self.has_yielded else Waiting()
        if all(trial.state is TrialState.PROPOSED for trial in self.queue):
            if self.is_exhausted():
                self.queue.clear()  # running trials go on to their end
            elif not self.queue:
                self._propose()
        trial = self._first_ready()
        if trial is not None:
            return self._hand_out(trial)
        # a trial that is handed out may have to be tried again
        if self.queue or self.handed_out or self._proposals_wait:
            return Waiting()
        return Finished()

    def _propose(self) -> None:
        """Put the next new trial into the queue, if there is one."""
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
            is_free = trial.spec.key not in running_keys
            if is_free and trial.spec.source not in unfinished_keys and self._has_room(trial):
                return trial
        return None

    def _has_room(self, trial: Trial) -> bool:
        """Return False if the trial waits until others have left their cards."""
        if not isinstance(self.shares, MeasuredShares):
            return True
        share = self.shares.share_of(trial.spec, is_alone=trial.is_alone)
        return self.shares.fits(share, [other.gpu for other in self.handed_out.values()])

    def _hand_out(self, trial: Trial) -> Proposal:
        self.queue.remove(trial)
        if trial.state is TrialState.PROPOSED:
            self._start(trial)
        trial.times = TrialTimes()
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
        shares = self.shares
        trial.gpu = shares.share_of(trial.spec, is_alone=trial.is_alone)
        trial.card_use = None
        is_measured = False
        if isinstance(shares, MeasuredShares):
            if replayed is not None:
                trial.gpu = 0.0  # it waits for no card
            else:
                is_measured = trial.is_alone or not shares.is_measured(trial.spec)
        return Proposal(
            trial.spec, trial.attempt, trial.deaths, replayed, has_ended, trial.gpu, is_measured
        )

    def _start(self, trial: Trial) -> None:
        number = self._n_started[trial.spec.variant]
        event = TrialStarted(number=number, **trial.spec.to_json())
        self.ledger.append(event, commit=True)
        self._register(event.trial_id)
        trial.state = TrialState.OPEN
        trial.stored = self._look_up(trial.spec)

    def _look_up(self, spec: TrialSpec) -> list[Metrics] | None:
        return self.finished(spec) if self.finished else None

    def _register(self, trial_id: str) -> TrialRecord:
        record = self.ledger.state.trials[trial_id]
        self.records[trial_id] = record
        self._n_started[record.variant] += 1
        return record

    def is_exhausted(self) -> bool:
        """Return True if a limit of the budget was reached, by this driver or an earlier one."""
        if self.budget.reached is None:
            best = self.best if self.best is not None else -1.0
            self.budget.reached = self.budget.limit_reached(
                best, self.running_s(), self._running_card_s()
            )
            if self.budget.reached is not None:
                event = LimitReached(phase=self.phase, reason=self.budget.reached)
                self.ledger.append(event, commit=True)
        return self.budget.reached is not None

    # -- progress ----------------------------------------------------------------------------------
    def _running(self) -> list[Trial]:
        # a copy first: another thread may ask while trials come and go
        trials = list(self.handed_out.values())
        return [trial for trial in trials if trial.state is TrialState.RUNNING]

    def running_s(self) -> float:
        """Return the seconds that the running trials have taken so far, summed."""
        now = time.monotonic()
        return sum(now - trial.times.began for trial in self._running())

    def _running_card_s(self) -> float:
        """Return the same, times each trial's own part of a card."""
        if not isinstance(self.shares, MeasuredShares):
            return 0.0
        now = time.monotonic()
        return sum((now - trial.times.began) * trial.gpu for trial in self._running())

    @property
    def n_ended(self) -> int:
        """How many trials have ended."""
        return self.counts.total()

    def snapshot(self, total: int) -> PhaseSnapshot:
        """Return the state of the phase; may be called from another thread.

        Args:
            total: number of trials at the end.
        """
        now = time.monotonic()
        running = self._running()
        lines = []
        for trial in running:
            name = trial.spec.trial_id
            scores = [objective(metrics) for metrics in list(self.records[name].reports.values())]
            progress = "no report yet"
            if scores:
                progress = f"epoch {len(scores)}, best {max(scores):.4f}"
            lines.append(f"{name}  {progress}, {now - trial.times.began:.0f} s")
        ends = [record.ended for record in list(self.records.values()) if record.ended]
        took = [end.wall_s for end in ends if end.wall_s is not None and not end.cached]
        left_s = None
        if took:
            left_s = statistics.fmean(took) * max(0, total - self.n_ended) / max(1, len(running))
        return PhaseSnapshot(self.n_ended, dict(self.counts), self.best, left_s, tuple(lines))

    # -- reports and ends --------------------------------------------------------------------------
    def on_report(
        self, trial_id: str, epoch: int, metrics: Metrics, *, is_last: bool = False
    ) -> bool:
        """Take in a report; return True if the trial stops here.

        Args:
            trial_id: of a trial that was handed out.
            epoch: from 1.
            metrics: of the epoch.
            is_last: the training has reached its end; stopping it would only throw it away.
        """
        trial = self.handed_out[trial_id]
        if trial.state is TrialState.ENDED:  # its reports are known
            return False
        record = self.records[trial_id]
        if epoch not in record.reports:
            event = EpochReported(trial_id=trial_id, epoch=epoch, metrics=metrics)
            self.ledger.append(event)
            trial.times.on_report(metrics)
        why = self._take_report(record, epoch)
        if self.must_stop(trial_id):  # its worker may be on a machine that does not see the request
            why = STOPPED_BY_HAND
        # stopping what is finished saves nothing, and what was finished before shall be so again
        if why is None or trial.stored is not None or trial.was_complete or is_last:
            return False
        self._finish(trial, "PRUNED", why=why)
        return True

    def on_card_use(self, trial_id: str, use: CardUse) -> None:
        """Take in what a measured trial has done to its card so far."""
        trial = self.handed_out.get(trial_id)
        if trial is not None:
            trial.card_use = use

    def _take_report(self, record: TrialRecord, epoch: int) -> str | None:
        """Take in an epoch of the record; return why the trial ends there, or None."""
        if self.counts_reports:
            self._take_score(objective(record.reports[epoch]))
        rungs = self.rungs.get(record.variant)
        if rungs is None:
            return None
        # after a restart the record has later epochs already, which this rung must not count
        scores = [objective(metrics) for n, metrics in record.reports.items() if n <= epoch]
        return rungs.reason_to_stop(record.trial_id, epoch, max(scores))

    def _take_score(self, score: float) -> None:
        self.best = score if self.best is None else max(self.best, score)

    def on_end(
        self,
        trial_id: str,
        status: str,
        error: str | None = None,
        *,
        cause: str | None = None,
        why: str | None = None,
    ) -> None:
        """Take in how a trial ended; only the first call counts.

        Args:
            trial_id: of a trial that was handed out.
            status: COMPLETE, PRUNED or FAILED.
            error: what went wrong, in one line.
            cause: of a failure, in one word (raised, diverged, metric, hung, memory, disk, exited,
                killed, node).
            why: of an early stop, in one line.
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
        best = max(record.reports.values(), key=objective, default=None)
        if status == "COMPLETE" and best is None:
            status = "FAILED"
            cause = "metric"
            error = "ended without a report; a trainer reports after every epoch"
        if status == "COMPLETE" and best is not None and self.judge is not None:
            verdict = self.judge(trial.asked, trial.spec)
            best = {**best, **verdict.metrics}
            why = verdict.why
        parts = None
        if trial.stored is None:
            parts = trial.times.parts(is_complete=status == "COMPLETE")
        event = TrialEnded(
            trial_id=name,
            status=status,
            epochs=len(record.reports),
            wall_s=round(time.monotonic() - trial.times.began, 3),
            metrics=best,
            checkpoint=f"trial/{trial.spec.key}" if status == "COMPLETE" else None,
            error=error,
            cause=cause,
            why=why,
            cached=trial.stored is not None,
            deaths=trial.deaths,
            parts=parts,
            gpu=trial.gpu if isinstance(self.shares, MeasuredShares) else None,
        )
        if status != "FAILED":
            self._keep_card_use(trial)
        self.ledger.append(event, commit=True)
        self._take_end(trial, event)

    def _keep_card_use(self, trial: Trial) -> None:
        """Let later trials of the size share cards as this one was measured."""
        if trial.card_use is None or not isinstance(self.shares, MeasuredShares):
            return
        size = self.shares.size_of(trial.spec)
        self.shares.uses[size] = trial.card_use
        self.ledger.append(measurement(trial.spec.trial_id, size, trial.card_use))

    def _take_end(self, trial: Trial, event: TrialEnded) -> None:
        """Take in an end that is in the ledger."""
        trial.state = TrialState.ENDED
        self.counts[event.status] += 1
        if not event.cached:  # else another run spent the time
            self.budget.spend(event)
        if self.tell and trial.asked is not None:
            reports = self.records[event.trial_id].reports
            score = self.tell(trial.asked, event, reports)
            if score is not None:
                self._take_score(score)

    def on_death(
        self, trial_id: str, error: str, *, cause: str = "killed", counts: bool = True
    ) -> None:
        """Take in that a trial's process died; the trial is tried again from its checkpoint.

        Args:
            trial_id: of a trial that was handed out.
            error: what happened, in one line.
            cause: in one word; after `memory` the trial gets a card for itself if it shared one,
                else half the micro-batch, once.
            counts: False if the machine was lost; the trial is then tried again in any case.
        """
        trial = self.handed_out.get(trial_id)
        if trial is None:
            return
        if trial.state is TrialState.ENDED:
            self._take_back(trial)
            return
        if counts and trial.deaths >= _MAX_DEATHS:
            times = trial.deaths + 1
            self._finish(trial, "FAILED", error=f"{error}, {times} times", cause=cause)
            return
        micro_batch = None
        if cause == "memory" and 0 < trial.gpu < 1 and isinstance(self.shares, MeasuredShares):
            trial.is_alone = True
            counts = False
        elif cause == "memory":
            in_use = _photos_at_once(trial.spec)
            if trial.spec.micro_batch is not None or in_use < _MIN_SPLIT:
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
        trial.deaths += counts
        self._take_back(trial)

    def on_broken_worker(self, trial_id: str, error: str) -> None:
        """Take in that a worker cannot train at all: its trial waits for another worker.

        After a few of them no trial is handed out any more: whatever is wrong is no setting's fault.
        """
        trial = self.handed_out.get(trial_id)
        if trial is None:
            return
        self.broken_workers.append(error)
        if trial.state is not TrialState.ENDED:
            event = WorkerDied(trial_id=trial_id, error=error, cause="worker", counts=False)
            self.ledger.append(event, commit=True)
        self._take_back(trial)

    @property
    def has_broken_workers(self) -> bool:
        """Return True if so many workers could not be set up that the phase ends."""
        return len(self.broken_workers) >= _MAX_BROKEN_WORKERS

    def _take_back(self, trial: Trial) -> None:
        """Put a trial back into the queue: first if it has to be trained, last if it is replayed."""
        del self.handed_out[trial.spec.trial_id]
        trial.attempt += 1
        if trial.state is TrialState.ENDED:
            self.queue.append(trial)
            return
        trial.state = TrialState.OPEN
        self.queue.appendleft(trial)


def _photos_at_once(spec: TrialSpec) -> int:
    settings = spec.train
    size = spec.micro_batch or settings.get("micro_batch") or settings.get("batch_size", 0)
    return int(size)
