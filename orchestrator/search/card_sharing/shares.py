"""Which part of a card each trial gets: a fixed one, or as much as its size was measured to need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.search.card_sharing.capacity import CardUse, TrialSize
from orchestrator.search.trial import TrialSpec

_DIGITS = 1e4  # Ray counts in ten thousandths of a card


@dataclass(frozen=True)
class FixedShare:
    """The same part of a card for each trial; the cluster alone decides who waits."""

    gpu: float = 0.0

    def share_of(self, spec: TrialSpec, *, is_alone: bool = False) -> float:
        """Return the part of a card that a trial gets."""
        del spec, is_alone
        return self.gpu


@dataclass
class MeasuredShares:
    """A card for the first trial of each size; an equal part of a card for the later ones."""

    n_cards: int
    size_of: Callable[[TrialSpec], TrialSize]
    uses: dict[TrialSize, CardUse] = field(default_factory=dict)  # what is known so far

    def share_of(self, spec: TrialSpec, *, is_alone: bool = False) -> float:
        """Return the part of a card that a trial gets.

        Args:
            spec: of the trial.
            is_alone: it did not fit beside others.
        """
        use = self.uses.get(self.size_of(spec))
        if use is None or is_alone:
            return 1.0
        return math.floor(_DIGITS / use.trials_per_card) / _DIGITS

    def fits(self, share: float, running: Iterable[float]) -> bool:
        """Return True if a trial with this share has room beside the running ones."""
        return share + sum(running) <= self.n_cards + 1 / _DIGITS

    def is_measured(self, spec: TrialSpec) -> bool:
        """Return True if it is known what a trial of this size does to a card."""
        return self.size_of(spec) in self.uses


Shares = FixedShare | MeasuredShares
