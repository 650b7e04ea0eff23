"""Early stopping: asynchronous successive halving, or the median rule."""

from __future__ import annotations

import statistics
from bisect import insort
from dataclasses import dataclass, field

from orchestrator.spec.search_space import Asha, Median, Scheduler
from trainers.settings.duration import Duration


@dataclass
class Rungs:
    """The scores of one variant's trials at the epochs where its scheduler compares them."""

    scheduler: Scheduler
    max_epochs: int
    scores: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch -> trial -> score
    _ranked: dict[int, list[float]] = field(default_factory=dict)  # the same scores, ascending

    def reason_to_stop(self, trial_id: str, epoch: int, best: float) -> str | None:
        """Take in a trial's best score up to an epoch (from 1).

        Returns:
            Why the trial ends here; None where it goes on.
        """
        if epoch >= self.max_epochs:
            return None
        if isinstance(self.scheduler, Asha):
            return self._halve(self.scheduler, trial_id, epoch, best)
        if isinstance(self.scheduler, Median):
            return self._compare_with_median(self.scheduler, trial_id, epoch, best)
        return None

    def _halve(self, asha: Asha, trial_id: str, epoch: int, best: float) -> str | None:
        if epoch not in rung_epochs(asha, self.max_epochs):
            return None
        ranked = self._enter(trial_id, epoch, best)
        n_kept = max(1, len(ranked) // asha.reduction)
        needed = ranked[-n_kept]
        # fewer than `reduction` trials cannot be divided
        if len(ranked) < asha.reduction or best >= needed:
            return None
        place = sum(score > best for score in ranked) + 1
        return (
            f"asha: best {best:.4f} after epoch {epoch} is place {place} of {len(ranked)}; "
            f"the first {n_kept} go on, {needed:.4f} was needed"
        )

    def _compare_with_median(
        self, rule: Median, trial_id: str, epoch: int, best: float
    ) -> str | None:
        if epoch < Duration.parse(rule.grace).n:
            return None
        scores = self.scores.get(epoch, {})
        others = [score for name, score in scores.items() if name != trial_id]
        self._enter(trial_id, epoch, best)
        if len(others) < 2:
            return None
        median = statistics.median(others)
        if best >= median:
            return None
        return (
            f"median: best {best:.4f} after epoch {epoch} is below {median:.4f}, "
            f"the median of {len(others)} others"
        )

    def _enter(self, trial_id: str, epoch: int, best: float) -> list[float]:
        """Set a trial's score at an epoch; return all scores there, ascending."""
        scores = self.scores.setdefault(epoch, {})
        ranked = self._ranked.setdefault(epoch, [])
        if trial_id in scores:
            ranked.remove(scores[trial_id])
        scores[trial_id] = best
        insort(ranked, best)
        return ranked


def rung_epochs(asha: Asha, max_epochs: int) -> list[int]:
    """Return the epochs at which successive halving compares trials."""
    epochs = []
    epoch = Duration.parse(asha.grace).n
    while epoch < max_epochs:
        epochs.append(epoch)
        epoch *= asha.reduction
    return epochs
