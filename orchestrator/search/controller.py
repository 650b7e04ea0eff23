"""What joins Ray Tune, Optuna and the ledger: who is next, who stops, who has ended and how.

One bridge serves one phase. It first takes in what the ledger tells, event by event, so that studies and rungs are what
they were; then it proposes trials in a fixed order: those that have ended (told to Tune again, so that its folder holds
every trial), what a killed driver left in flight, then new ones.
"""

from __future__ import annotations

import statistics
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.base.console import Glance
from orchestrator.search.budget import Budget
from orchestrator.search.trial import TrialSpec
from orchestrator.spec.search_space import Asha, Median
from orchestrator.store.events import (
    EpochReported,
    LimitReached,
    PhaseStarted,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    WorkerDied,
)
from orchestrator.store.ledger import Ledger, TrialRecord, replay
from trainers.config import Duration

OBJECTIVE = "val_macro_f1"
_MAX_DEATHS = 2  # of a trial's process, before it is given up

Reports = dict[int, dict[str, float]]


@dataclass
class Rungs:
    """Asynchronous successive halving for one variant, or the median rule; plain numbers, rebuilt from reports."""

    scheduler: Any
    max_epochs: int
    scores: dict[int, dict[str, float]] = field(
        default_factory=dict
    )  # epoch -> trial -> best so far
    _ranked: dict[int, list[float]] = field(
        default_factory=dict
    )  # epoch -> the same scores, ascending

    def stops(self, trial_id: str, epoch: int, best: float) -> str | None:
        """Take in a trial's best score up to an epoch (from 1); say why it ends here, or None."""
        if epoch >= self.max_epochs:
            return None
        if isinstance(self.scheduler, Asha) and epoch in self.rungs():
            ranked = self._enter(trial_id, epoch, best)
            keep = max(1, len(ranked) // self.scheduler.reduction)
            # before `reduction` trials have come there is nothing to halve
            if len(ranked) >= self.scheduler.reduction and best < ranked[-keep]:
                place = sum(score > best for score in ranked) + 1
                return (
                    f"asha: best {best:.4f} after epoch {epoch} is place {place} of {len(ranked)}; "
                    f"the first {keep} go on, {ranked[-keep]:.4f} was needed"
                )
        if isinstance(self.scheduler, Median) and epoch >= Duration.parse(self.scheduler.grace).n:
            others = [
                score for name, score in self.scores.get(epoch, {}).items() if name != trial_id
            ]
            self._enter(trial_id, epoch, best)
            if len(others) > 1 and best < (middle := statistics.median(others)):
                return (
                    f"median: best {best:.4f} after epoch {epoch} is below {middle:.4f}, "
                    f"the median of {len(others)} others"
                )
        return None

    def _enter(self, trial_id: str, epoch: int, best: float) -> list[float]:
        here, ranked = self.scores.setdefault(epoch, {}), self._ranked.setdefault(epoch, [])
        if trial_id in here:
            ranked.remove(here[trial_id])
        here[trial_id] = best
        insort(ranked, best)
        return ranked

    def rungs(self) -> list[int]:
        """Return the epochs at which successive halving looks."""
        epoch, found = Duration.parse(self.scheduler.grace).n, []
        while epoch < self.max_epochs:
            found.append(epoch)
            epoch *= self.scheduler.reduction
        return found


@dataclass
class Live:
    """A trial that Tune has been given."""

    spec: TrialSpec
    asked: Any  # Optuna's trial, or None
    told_again: TrialRecord | None  # set when it has ended before and is only told again
    finished: list[dict[str, float]] | None = None  # its epochs, where the store has them all
    began: float = field(default_factory=time.monotonic)
    deaths: int = 0  # that count
    attempt: int = 0


class Bridge:
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
        progress: Callable[[int, str], None] | None = None,
        finished: Callable[[TrialSpec], list[dict[str, float]] | None] | None = None,
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
            progress: told how many trials have ended.
            finished: looks up the epochs of a trial that is finished in the store.
            budget: ends the phase before the proposals do.
        """
        self.ledger, self.phase, self.proposals = ledger, phase, proposals
        self.rungs, self.tell, self.progress = rungs or {}, tell, progress
        self.finished, self.budget = finished, budget or Budget()
        self.known: dict[str, TrialRecord] = {}
        self.best: dict[str, float] = {}  # trial -> best score so far
        self.top = -1.0  # of them
        self.counts: Counter[str] = Counter()  # status -> trials
        self.per_variant: Counter[str] = Counter()
        self.live: dict[str, Live] = {}
        self.retries: list[Live] = []
        self.parked: Live | None = None  # waits for a live trial of the same key
        self.n_ended = 0
        self._again: list[Live] = []
        if resume:
            self._take_in(resume)

    def _take_in(self, resume: Callable[[TrialRecord], tuple[TrialSpec, Any]]) -> None:
        """Hear and tell again, in the ledger's order, all that happened before."""
        given: dict[str, Live] = {}
        first: dict[str, Live] = {}
        self._reopen()
        events = self.ledger.events
        reopened = {
            event.trial_id: at
            for at, event in enumerate(events)
            if isinstance(event, TrialReopened)
        }
        for at, event in enumerate(events):
            self.budget.see(event, self.phase)
            if not isinstance(event, TrialEvent):
                continue
            name = event.trial_id
            if (
                isinstance(event, TrialStarted)
                and event.phase == self.phase
                and name not in self.known
            ):
                trial = TrialRecord(event)
                self._know(trial)
                given[name] = first[name] = Live(*resume(trial), None)
            elif name not in self.known:
                continue
            elif isinstance(event, EpochReported):
                self._hear(self.known[name], event.epoch, event.metrics)
            elif isinstance(event, TrialReopened):
                given[name] = first[name]
            elif isinstance(event, TrialEnded) and at < reopened.get(name, -1):
                self.budget.used_s += event.wall_s or 0.0
            elif isinstance(event, TrialEnded):
                trial, live = self.known[name], given.pop(name)
                trial.ended = event
                self._end(trial, live)
                self._again.append(replace(live, told_again=trial))
            elif isinstance(event, WorkerDied):
                live = given[name]
                micro_batch = event.micro_batch or live.spec.micro_batch
                spec = replace(live.spec, micro_batch=micro_batch)
                given[name] = replace(live, spec=spec, deaths=live.deaths + event.counts)
        self._again += [
            replace(live, finished=self._in_store(live.spec)) for live in given.values()
        ]

    def _reopen(self) -> None:
        """Give trials that failed by chance another go, unless what comes after this phase rests on their failure."""
        if self.phase == "search" and any(
            isinstance(event, PhaseStarted | TrialStarted | LimitReached)
            and event.phase == "confirm"
            for event in self.ledger.events
        ):
            return
        for trial in replay(self.ledger.events).trials.values():
            if trial.phase == self.phase and trial.has_transient_failure:
                self.ledger.append(TrialReopened(trial_id=trial.trial_id), commit=True)

    # -- proposing -------------------------------------------------------------------------------------------------
    def next(self) -> Live | str | None:
        """Return the next trial, None to wait for running ones, or 'FINISHED'."""
        live = self._choose()
        if isinstance(live, Live):
            live.began = time.monotonic()
            self.live[live.spec.trial_id] = live
        elif live == "FINISHED" and self.live:
            return None  # one of them may have to be tried again
        return live

    def _choose(self) -> Live | str | None:
        if self._again:
            return self._told_or_ready()
        if self.retries:
            return self.retries.pop()
        if self.over():
            return "FINISHED"  # what has begun ends as it would have: stopped, it would be of no use to anybody
        live, self.parked = self.parked or self._propose(), None
        if live is not None and any(
            live.spec.key == other.spec.key for other in self.live.values()
        ):
            self.parked = live  # two trainings of one artifact at a time would write the same files
            return None
        if live is None:
            return None if self._waits else "FINISHED"
        number = self.per_variant[live.spec.variant]
        started = TrialStarted(number=number, **live.spec.to_json())
        self.ledger.append(started, commit=True)
        self._know(TrialRecord(started))
        live.finished = self._in_store(live.spec)
        return live

    def _told_or_ready(self) -> Live | None:
        """Return the next one of before: those that are told again, then those whose source has ended."""
        if self._again[0].told_again is not None:
            return self._again.pop(0)
        open_ = {live.spec.key for live in [*self.live.values(), *self._again]}
        at = next(
            (at for at, live in enumerate(self._again) if live.spec.source not in open_), None
        )
        return self._again.pop(at) if at is not None else None

    def _propose(self) -> Live | None:
        self._waits = False
        try:
            proposal = next(self.proposals)
        except StopIteration:
            return None
        self._waits = proposal is None
        return Live(*proposal, None) if proposal else None

    def _in_store(self, spec: TrialSpec) -> list[dict[str, float]] | None:
        return self.finished(spec) if self.finished else None

    def _know(self, trial: TrialRecord) -> None:
        self.known[trial.trial_id] = trial
        self.per_variant[trial.variant] += 1

    def over(self) -> str | None:
        """Say which limit of the budget is reached, or None; once reached it stays so, over restarts too."""
        if self.budget.reached is None and (reason := self.budget.over(self.top, self.live_s())):
            self.budget.reached = reason
            self.ledger.append(LimitReached(phase=self.phase, reason=reason), commit=True)
        return self.budget.reached

    def live_s(self) -> float:
        """Return the seconds that the running trials have taken so far, summed."""
        now = time.monotonic()
        return sum(now - live.began for live in self.live.values() if live.told_again is None)

    def look(self, total: int) -> Glance:
        """Return what there is to see now; may be called from another thread.

        Args:
            total: how many trials there will be.
        """
        now, running = time.monotonic(), []
        lives = [live for live in list(self.live.values()) if live.told_again is None]
        for live in lives:
            name = live.spec.trial_id
            epochs, best = len(self.known[name].reports), self.best.get(name)
            score = f"epoch {epochs}, best {best:.4f}" if best is not None else "no report yet"
            running.append(f"{name}  {score}, {now - live.began:.0f} s")
        took = [
            trial.ended.wall_s
            for trial in list(self.known.values())
            if trial.ended and trial.ended.wall_s is not None and not trial.ended.cached
        ]
        left = (
            statistics.fmean(took) * max(0, total - self.n_ended) / max(1, len(lives))
            if took
            else None
        )
        return Glance(
            self.n_ended, dict(self.counts), self.top if self.best else None, left, tuple(running)
        )

    # -- hearing ---------------------------------------------------------------------------------------------------
    def heard(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in a report and say whether the trial stops here."""
        live, trial = self.live[trial_id], self.known[trial_id]
        if live.told_again is not None:  # all of it was heard when it was news
            return False
        if epoch not in trial.reports:
            self.ledger.append(EpochReported(trial_id=trial_id, epoch=epoch, metrics=metrics))
        why = self._hear(trial, epoch, trial.reports.get(epoch, metrics))
        if (
            why is None or live.finished is not None
        ):  # nothing is saved by stopping what is finished
            return False
        self._finish(live, "PRUNED", why=why)
        return True

    def _hear(self, trial: TrialRecord, epoch: int, metrics: dict[str, float]) -> str | None:
        trial.reports[epoch] = metrics
        self.best[trial.trial_id] = max(metrics[OBJECTIVE], self.best.get(trial.trial_id, -1.0))
        self.top = max(self.top, metrics[OBJECTIVE])
        # after a restart a trial says its early epochs again: a rung must not hear of what came later
        best = max(found[OBJECTIVE] for number, found in trial.reports.items() if number <= epoch)
        rungs = self.rungs.get(trial.variant)
        return rungs.stops(trial.trial_id, epoch, best) if rungs else None

    def ended(
        self,
        trial_id: str,
        status: str,
        error: str | None = None,
        *,
        cause: str | None = None,
        why: str | None = None,
    ) -> None:
        """Take in how a trial ended; it counts once, whoever says so again.

        Args:
            trial_id: of a live trial.
            status: COMPLETE, PRUNED or FAILED.
            error: what went wrong, in one line.
            cause: of a failure, in one word (raised, diverged, metric, hung, memory, disk, exited, killed, node).
            why: it was stopped early.
        """
        if (live := self.live.get(trial_id)) is not None:
            self._finish(live, status, error=error, cause=cause, why=why)

    def _finish(
        self,
        live: Live,
        status: str,
        *,
        error: str | None = None,
        cause: str | None = None,
        why: str | None = None,
    ) -> None:
        name = live.spec.trial_id
        self.live.pop(name, None)
        if live.told_again is not None:
            return
        trial = self.known[name]
        best = max(trial.reports.values(), key=lambda metrics: metrics[OBJECTIVE], default=None)
        if status == "COMPLETE" and best is None:
            status, cause = "FAILED", "metric"
            error = "ended without a report; a trainer reports after every epoch"
        trial.ended = TrialEnded(
            trial_id=name,
            status=status,
            epochs=len(trial.reports),
            wall_s=round(time.monotonic() - live.began, 3),
            metrics=best,
            checkpoint=f"trial/{live.spec.key}" if status == "COMPLETE" else None,
            error=error,
            cause=cause,
            why=why,
            cached=live.finished is not None,
            deaths=live.deaths,
        )
        self.ledger.append(trial.ended, commit=True)
        self._end(trial, live)

    def _end(self, trial: TrialRecord, live: Live) -> None:
        self.counts[str(trial.status)] += 1
        if trial.ended and not trial.ended.cached:  # its time was spent by another run
            self.budget.used_s += trial.ended.wall_s or 0.0
        self.n_ended += 1
        if self.tell and live.asked is not None:
            self.tell(live.asked, str(trial.status), trial.reports, trial.cause)
        if self.progress:
            self.progress(self.n_ended, f"best {self.top:.3f}" if self.best else "")

    def died(
        self, trial_id: str, error: str, *, cause: str = "killed", counts: bool = True
    ) -> None:
        """Take in that a trial's process died: it is tried again from its checkpoint, a few times.

        A death that does not count (its node was lost or taken away) leaves the number of attempts as it was. One for
        want of memory is tried once more, with half the micro-batch: unchanged it would only come again.
        """
        live = self.live.get(trial_id)
        if live is None:
            return
        if live.told_again is not None:
            self._again.append(replace(self.live.pop(trial_id), attempt=live.attempt + 1))
            return
        if counts and live.deaths >= _MAX_DEATHS:
            self._finish(live, "FAILED", error=f"{error}, {live.deaths + 1} times", cause=cause)
            return
        spec = live.spec
        death = WorkerDied(trial_id=trial_id, error=error, cause=cause, counts=counts)
        if cause == "memory":
            whole = (
                spec.micro_batch or spec.train.get("micro_batch") or spec.train.get("batch_size", 0)
            )
            if spec.micro_batch is not None or whole < 4:
                advice = "use a smaller train.batch_size, photo size or backbone, or fewer trials at once"
                error = f"out of memory with {whole} photos at once: {error}; {advice}"
                self._finish(live, "FAILED", error=error, cause=cause)
                return
            spec = replace(spec, micro_batch=whole // 2)
            death = replace(death, micro_batch=spec.micro_batch)
        self.ledger.append(death, commit=True)
        del self.live[trial_id]
        self.retries.append(
            replace(live, spec=spec, deaths=live.deaths + counts, attempt=live.attempt + 1)
        )
