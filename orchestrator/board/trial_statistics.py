"""How far one run is: trials by status, trials worth a curve, and epochs of early stopping."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.board.live_run_state import LiveRun, LiveTrial


@dataclass(frozen=True)
class Rung:
    """An epoch at which trials were stopped early."""

    variant: str
    epoch: int
    n_reached: int
    n_stopped: int
    best: float | None  # validation score up to this epoch


def rungs(trials: list[LiveTrial]) -> list[Rung]:
    """Return the epochs at which the scheduler stopped search trials, by variant."""
    stopped: Counter[tuple[str, int]] = Counter()
    searched = [trial for trial in trials if trial.phase == "search"]
    for trial in searched:
        if trial.status == "PRUNED" and trial.n_epochs:
            stopped[trial.variant, trial.n_epochs] += 1
    rows = []
    for (variant, epoch), n_stopped in sorted(stopped.items()):
        reached = [t for t in searched if t.variant == variant and t.n_epochs >= epoch]
        scores = [score for trial in reached if (score := trial.best_up_to(epoch)) is not None]
        rows.append(Rung(variant, epoch, len(reached), n_stopped, max(scores, default=None)))
    return rows


def spread(trials: list[LiveTrial], n: int) -> list[LiveTrial]:
    """Return at most `n` trials with a score, evenly over their ranks, the best one among them."""
    ranked = [trial for trial in trials if trial.score is not None]
    ranked.sort(key=lambda trial: -(trial.score or 0.0))
    if len(ranked) <= n:
        return ranked
    step = len(ranked) / n
    return [ranked[int(place * step)] for place in range(n)]


def counts(run: LiveRun) -> list[tuple[str, int]]:
    """Return how many trials there are by status."""
    by_status: Counter[str] = Counter()
    for (_, status), n in run.counts.items():
        by_status[status or ("RUNNING" if run.is_live else "UNFINISHED")] += n
    return [(status, n) for status, n in sorted(by_status.items()) if n]
