"""Lengths of training, in epochs or steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import StringConstraints

_DURATION = r"^[1-9][0-9]* (epochs?|steps?)$"
DurationText = Annotated[str, StringConstraints(pattern=_DURATION)]


@dataclass(frozen=True)
class Duration:
    """A length of training, in epochs or in steps."""

    n: int
    unit: Literal["epochs", "steps"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read '10 epochs' or '500 steps'."""
        if not re.match(_DURATION, text):
            raise ValueError(
                f"a duration must read like '10 epochs' or '500 steps', found {text!r}"
            )
        number, unit = text.split()
        return cls(int(number), "epochs" if unit.startswith("epoch") else "steps")

    def steps(self, steps_per_epoch: int) -> int:
        """Convert to optimizer updates."""
        return self.n * steps_per_epoch if self.unit == "epochs" else self.n

    def epochs(self, steps_per_epoch: int) -> int:
        """Convert to epochs, rounded up: an epoch that has begun is evaluated too."""
        return self.n if self.unit == "epochs" else -(-self.n // steps_per_epoch)
