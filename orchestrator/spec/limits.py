"""`search.limits`: what a search may cost."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import StringConstraints, model_validator

from data_prep.section import Positive, Section

_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


_TIME = r"^(0\.[0-9]*[1-9]|[1-9][0-9]*(\.[0-9]+)?) (second|minute|hour|day)s?$"


TimeText = Annotated[str, StringConstraints(pattern=_TIME)]


def seconds(text: str) -> float:
    """Convert '90 minutes' to seconds."""
    if not re.match(_TIME, text):
        raise ValueError(f"a time must read like '90 minutes' or '2 hours', found {text!r}")
    number, unit = text.split()
    return float(number) * _SECONDS[unit.removesuffix("s")]


class Limits(Section):
    """Begins no more trials, whichever limit is reached first; those that run come to their end."""

    wall: TimeText | None = None
    """Time since the search began, such as `2 hours`."""
    gpu_hours: Positive | None = None
    """Sum of trial time times GPUs per trial."""
    target: float | None = None  # of val macro F1
    """Val macro F1 that is enough."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.wall is None and self.gpu_hours is None and self.target is None:
            raise ValueError("one of wall, gpu_hours, target was required, found none")
        return self
