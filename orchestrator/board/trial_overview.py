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
    best_stopped: float | None  # the highest score of those that were stopped here


def rungs(trials: list[LiveTrial]) -> list[Rung]:
    """Return the epochs at which the scheduler stopped search trials, by variant."""
    lengths: Counter[tuple[str, int]] = Counter()  # (variant, epochs) -> trials
    stopped: dict[tuple[str, int], list[LiveTrial]] = {}
    for trial in trials:
        if trial.phase != "search" or not trial.n_epochs:
            continue
        length = (trial.variant, trial.n_epochs)
        lengths[length] += 1
        if trial.status == "PRUNED":
            stopped.setdefault(length, []).append(trial)
    rows = []
    for (variant, epoch), there in sorted(stopped.items()):
        n_reached = sum(
            n for (name, last), n in lengths.items() if name == variant and last >= epoch
        )
        scores = [trial.score for trial in there if trial.score is not None]
        rows.append(Rung(variant, epoch, n_reached, len(there), max(scores, default=None)))
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
