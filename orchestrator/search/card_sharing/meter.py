"""Measures what a trial does to its card, from a process that never opens CUDA."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.search.card_sharing.capacity import CardUse


@dataclass(frozen=True)
class CardSample:
    """A card at one moment."""

    card: str  # its name
    total_bytes: int
    used_bytes: int  # by all processes
    busy_share: float  # of the last moments, 0 to 1


class CardMeter(Protocol):
    """Looks at the card of this process."""

    def sample(self) -> CardSample | None:
        """Return the card as it is now, None where nobody can tell."""
        ...


class NvmlMeter:
    """Asks NVIDIA's management library, which opens no CUDA context."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        with contextlib.suppress(Exception):  # no driver, no library, or a part of a card (MIG)
            import pynvml  # noqa: PLC0415

            pynvml.nvmlInit()
            self._handle = _handle(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
            self._nvml = pynvml

    def sample(self) -> CardSample | None:
        """Return the card as it is now, None where there is no driver or it does not tell."""
        if self._nvml is None:
            return None
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
            name = str(self._nvml.nvmlDeviceGetName(self._handle))
        except self._nvml.NVMLError:
            return None
        return CardSample(name, int(memory.total), int(memory.used), rates.gpu / 100)


def _handle(pynvml: Any, visible: str) -> Any:
    """Return the handle of the first visible card, which is named by number or by UUID."""
    name = visible.split(",", maxsplit=1)[0].strip()
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


class CardWatch:
    """Adds up samples over one trial; they are taken evenly over its time."""

    def __init__(self, meter: CardMeter) -> None:
        self._meter = meter
        self._last: CardSample | None = None
        self._peak_bytes = 0
        self._busy = 0.0
        self._n = 0

    def sample(self) -> None:
        """Take a sample, where the meter has one."""
        sample = self._meter.sample()
        if sample is None:
            return
        self._last = sample
        self._peak_bytes = max(self._peak_bytes, sample.used_bytes)
        self._busy += sample.busy_share
        self._n += 1

    def use(self) -> CardUse | None:
        """Return what the trial did to the card so far; None without a sample."""
        if self._last is None:
            return None
        return CardUse(
            card=self._last.card,
            total_bytes=self._last.total_bytes,
            peak_bytes=self._peak_bytes,
            busy_share=round(self._busy / self._n, 4),
        )
