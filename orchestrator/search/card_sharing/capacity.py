"""How many trials fit on a card: a rule on what one trial of a size did to it."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.config import Train

_RESERVE_SHARE = 0.1  # of a card's memory: allocators and libraries take more beside others
_AT_MOST = 8  # trials; each has a CUDA context, and processes on a card take turns


@dataclass(frozen=True)
class TrialSize:
    """What decides the memory and the work of a training on a card."""

    backbone: str
    head: str
    is_frozen: bool
    pixels: int  # side of a photo
    photos: int  # in the model at once
    precision: str

    def __str__(self) -> str:
        """Return the size as words."""
        frozen = "frozen " if self.is_frozen else ""
        return (
            f"{frozen}{self.backbone} with head {self.head}, {self.pixels} px, "
            f"{self.photos} photos at once, {self.precision}"
        )


@dataclass(frozen=True)
class CardUse:
    """What one trial did to a card that it had for itself."""

    card: str
    total_bytes: int
    peak_bytes: int  # in use on the card at most, the context and everything else included
    busy_share: float  # of the trial's time in which the card worked, 0 to 1

    @property
    def trials_per_card(self) -> int:
        """How many such trials share the card."""
        reserve_bytes = int(_RESERVE_SHARE * self.total_bytes)
        return trials_per_card(self.total_bytes, reserve_bytes, self.peak_bytes, self.busy_share)


def trials_per_card(
    total_bytes: int, reserve_bytes: int, peak_bytes: int, busy_share: float
) -> int:
    """Return how many equal trials share a card, 1 to 8.

    Memory: their peaks fit beside the reserve, also where all come at one moment. Throughput: one
    more is placed where at least half of its work meets an idle card. The busy shares of n trials
    fill the card at n * b = 1, so this is 1 / b, rounded.

    Args:
        total_bytes: of the card.
        reserve_bytes: that are left free.
        peak_bytes: of one trial.
        busy_share: of its time in which one trial keeps the card at work, 0 to 1.
    """
    by_memory = (total_bytes - reserve_bytes) // max(peak_bytes, 1)
    by_throughput = int(1 / max(busy_share, 1e-3) + 0.5)
    return max(1, min(by_memory, by_throughput, _AT_MOST))


def size_of(train: Train, pixels: int, *, micro_batch: int | None = None) -> TrialSize:
    """Return the size of a training.

    Args:
        train: its section of the spec.
        pixels: side of its prepared photos.
        micro_batch: a limit besides the spec's own.
    """
    return TrialSize(
        backbone=train.model.backbone_text,
        head=train.model.head.name,
        is_frozen=train.model.freeze is not None,
        pixels=pixels,
        photos=min(train.photos_at_once, micro_batch or train.photos_at_once),
        precision=train.precision,
    )
