"""What runs beside the steps of a training."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.overlap.device_copies import Copies, CudaCopies

_LAG = 2  # steps: enough to keep a card busy, few enough to end a diverged training soon
_WRITE_EVERY_S = 30.0


@dataclass(frozen=True)
class Overlap:
    """How a training keeps its device busy. It changes no result."""

    copies: Copies | None = None
    """To and from the device; None where torch computes on the host."""
    loss_lag: int = 0
    """Steps after which a loss is read; 0: at once."""
    writes_beside: bool = False
    """Checkpoints are written by a thread while the training goes on."""
    write_every_s: float = 0.0
    """A checkpoint is not begun sooner after the last one; the last epoch's is always written."""


def overlap_on(device: str) -> Overlap:
    """Return what pays on a device: nothing on a CPU, which has no time of its own to hide."""
    if not device.startswith("cuda"):
        return Overlap()
    return Overlap(CudaCopies(device), _LAG, writes_beside=True, write_every_s=_WRITE_EVERY_S)
