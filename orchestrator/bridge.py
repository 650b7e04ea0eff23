"""What joins Ray Tune, Optuna and the ledger: who is next, who stops, who has ended and how.

One bridge serves one phase. It proposes trials in a fixed order: what the ledger says has ended (told again, so that
Tune's folder holds every trial), what a killed driver left in flight, then new ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.ledger import Ledger, TrialState, replay
from orchestrator.space import Asha, Median
from orchestrator.trial import TrialSpec
from trainers.config import Duration

OBJECTIVE = "val_macro_f1"
_MAX_DEATHS = 2  # of a trial's worker, by no fault of the trial's own


@dataclass
class Rungs:
    """Asynchronous successive halving for one variant, or the median rule; plain numbers, rebuilt from reports."""

    scheduler: Any
    max_epochs: int
    scores: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch -> trial -> best so far

    def stops(self, trial_id: str, epoch: int, best: float) -> bool:
        """Take in a trial's best score up to an epoch (from 1) and say whether it ends here."""
        if epoch >= self.max_epochs:
            return False
        if isinstance(self.scheduler, Asha) and epoch in self.rungs():
            here = self.scores.setdefault(epoch, {})
            here[trial_id] = best
            ranked = sorted(here.values(), reverse=True)
            keep = max(1, len(ranked) // self.scheduler.reduction)
            # before `reduction` trials have come there is nothing to halve
            return len(ranked) >= self.scheduler.reduction and best < ranked[keep - 1]
        if isinstance(self.scheduler, Median) and epoch >= Duration.parse(self.scheduler.grace).n:
            here = self.scores.setdefault(epoch, {})
            others = list(here.values())
            here[trial_id] = best
            return len(others) > 1 and best < statistics.median(others)
        return False

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
    told_again: TrialState | None  # set when it has ended before and is only told again
    began: float = field(default_factory=time.monotonic)
    best: float = -1.0
    deaths: int = 0


class Bridge:
    """The state of one phase, driven by Tune's calls and written to the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        phase: str,
        proposals: Iterator[tuple[TrialSpec, Any] | None],
        *,
        rungs: dict[str, Rungs] | None = None,
        tell: Callable[[Any, str, dict[int, dict[str, float]]], None] | None = None,
        resume: Callable[[TrialState], tuple[TrialSpec, Any]] | None = None,
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        """Start from what the ledger knows of this phase.

        Args:
            ledger: open for writing.
            phase: search or confirm.
            proposals: new trials, (spec, Optuna's trial); None to wait, the end when there are no more.
            rungs: per variant; None where nothing is stopped early.
            tell: takes Optuna's trial, a status and the reports of an ended trial.
            resume: rebuilds the spec of a trial that the ledger knows, and asks Optuna for it again.
            progress: told how many trials have ended.
        """
        self.ledger, self.phase, self.proposals = ledger, phase, proposals
        self.rungs, self.tell, self.progress = rungs or {}, tell, progress
        self.known = {name: trial for name, trial in replay(ledger.events).trials.items() if trial.phase == phase}
        self.live: dict[str, Live] = {}
        self.retries: list[Live] = []
        self.n_ended = 0
        self._again = [(trial, resume) for trial in self.known.values()] if resume else []

    # -- proposing -------------------------------------------------------------------------------------------------
    def next(self) -> Live | str | None:
        """Return the next trial, None to wait for running ones, or 'FINISHED'."""
        if self.retries:
            live = self.retries.pop()
        elif self._again:
            trial, resume = self._again.pop(0)
            spec, asked = resume(trial)
            live = Live(spec, asked, trial if trial.status else None)
        else:
            try:
                proposal = next(self.proposals)
            except StopIteration:
                return "FINISHED"
            if proposal is None:
                return None
            live = Live(*proposal, None)
            facts = {name: value for name, value in live.spec.to_json().items() if name != "trial_id"}
            number = sum(1 for other in self.known.values() if other.facts["variant"] == live.spec.variant)
            self.ledger.append("trial_started", commit=True, trial_id=live.spec.trial_id, number=number, **facts)
            self.known[live.spec.trial_id] = TrialState(live.spec.trial_id, {**facts, "number": number})
        self.live[live.spec.trial_id] = live
        return live

    # -- hearing ---------------------------------------------------------------------------------------------------
    def heard(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in a report and say whether the trial stops here."""
        live, trial = self.live[trial_id], self.known[trial_id]
        if epoch not in trial.reports:
            trial.reports[epoch] = metrics
            self.ledger.append("report", trial_id=trial_id, epoch=epoch, metrics=metrics)
        live.best = max(live.best, metrics[OBJECTIVE])
        rungs = self.rungs.get(live.spec.variant)
        stops = rungs.stops(trial_id, epoch, live.best) if rungs else False
        if live.told_again is not None:  # the decision was made when it was news; the rungs only had to hear the score
            return False
        if stops:
            self.ended(trial_id, "PRUNED")
        return stops

    def ended(self, trial_id: str, status: str, error: str | None = None) -> None:
        """Take in how a trial ended; it counts once, whoever says so again."""
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        trial = self.known[trial_id]
        if live.told_again is None:
            best = max(trial.reports.values(), key=lambda metrics: metrics[OBJECTIVE], default=None)
            if status == "COMPLETE" and best is None:
                status, error = "FAILED", "ended without a report; a trainer reports after every epoch"
            trial.status = status
            trial.end = {
                "status": status,
                "epochs": len(trial.reports),
                "wall_s": round(time.monotonic() - live.began, 3),
                "metrics": best,
                "checkpoint": f"trial/{live.spec.key}" if status == "COMPLETE" else None,
                "error": error,
            }
            self.ledger.append("trial_ended", commit=True, trial_id=trial_id, **trial.end)
        if self.tell and live.asked is not None:
            self.tell(live.asked, str(trial.status), trial.reports)
        self.n_ended += 1
        if self.progress:
            scores = [other.end["metrics"][OBJECTIVE] for other in self.known.values() if other.end.get("metrics")]
            self.progress(self.n_ended, f"best {max(scores):.3f}" if scores else "")

    def died(self, trial_id: str, error: str, *, memory: bool = False) -> None:
        """Take in that a trial's worker died: it is tried again, a few times.

        One that was killed because the host's memory ran out is tried once more, with half the micro-batch: unchanged
        it would only be killed again.
        """
        live = self.live.get(trial_id)
        if live is None:
            return
        spec = live.spec
        if memory:
            whole = spec.micro_batch or spec.train.get("micro_batch") or spec.train["batch_size"]
            if spec.micro_batch is not None or whole < 4:
                self.ended(
                    trial_id,
                    "FAILED",
                    f"out of memory: its worker was killed with {whole} photos at once; use a smaller "
                    f"train.batch_size, photo size or backbone, or fewer trials at once ({error})",
                )
                return
            spec = replace(spec, micro_batch=whole // 2)
        elif live.deaths + 1 > _MAX_DEATHS:
            self.ended(trial_id, "FAILED", f"its worker died {live.deaths + 1} times: {error}")
            return
        self.ledger.append("worker_died", commit=True, trial_id=trial_id, error=error, micro_batch=spec.micro_batch)
        del self.live[trial_id]
        self.retries.append(replace(live, spec=spec, deaths=live.deaths + 1))
