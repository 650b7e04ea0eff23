"""Scales of charts: the values at the ends of an axis, its ticks, and places in px."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.report.svg_elements import line, text


@dataclass(frozen=True)
class Scale:
    """The values at the two ends of an axis."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float | None], room: float) -> Scale | None:
        """Return the scale of all values that are known, with some room; None where none is."""
        known = [value for value in values if value is not None]
        return cls(min(known) - room, max(known) + room) if known else None

    def share(self, value: float) -> float:
        """Return where a value lies between the ends: 0 at the low one, 1 at the high one."""
        return (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self, n: int) -> list[float]:
        """Return about `n` round values between the ends."""
        return nice_ticks(self.low, self.high, n)


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart in px: its size and its four margins."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, share: float) -> float:
        """Return the place of a share in 0..1 from the left margin to the right one."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        """Return the place of a share in 0..1 from the bottom margin to the top one."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def grid(self, scale: Scale, n: int = 5) -> list[object]:
        """Draw horizontal lines with their values at the left."""
        body: list[object] = []
        for tick in scale.ticks(n):
            y = self.y(scale.share(tick))
            body.append(line(self.left, y, self.width - self.right, y, "grid"))
            body.append(text(f"{tick:g}", self.left - 6, y + 3.5, anchor="end"))
        return body


def nice_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers that cover low..high from inside."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, n)
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the decimal logarithms of round numbers in 10^low..10^high.

    They are decades, or more numbers of each decade where the range is short.
    """
    if high - low >= 2:
        steps: tuple[float, ...] = (1,)
    elif high - low >= 0.7:
        steps = (1, 2, 5)
    else:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = []
    for decade in range(math.floor(low), math.floor(high) + 1):
        for step in steps:
            tick = math.log10(step) + decade
            if low - 1e-9 <= tick <= high + 1e-9:
                ticks.append(tick)
    return ticks
