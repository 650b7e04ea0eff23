"""`search.limits`: what a search may cost, and the score that ends it."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import StringConstraints, model_validator

from data_prep.section_base import Positive, Section

_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_TIME = r"^(0\.[0-9]*[1-9]|[1-9][0-9]*(\.[0-9]+)?) (second|minute|hour|day)s?$"
TimeText = Annotated[str, StringConstraints(pattern=_TIME)]


def seconds(text: str) -> float:
    """Return the seconds of a time such as '90 minutes'.

    Raises:
        ValueError: the text has another form.
    """
    if not re.match(_TIME, text):
        raise ValueError(f"a time such as '90 minutes' or '2 hours' was required, found {text!r}")
    number, unit = text.split()
    return float(number) * _SECONDS[unit.removesuffix("s")]


class Limits(Section):
    """No more trials start after the first limit that is reached; running ones continue."""

    wall: TimeText | None = None
    """Time since the search began, such as `2 hours`."""
    gpu_hours: Positive | None = None
    """Time of ended and running trials, times the GPUs of a trial, in hours."""
    target: float | None = None
    """Validation score that is enough; the score is that of the spec."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.wall is None and self.gpu_hours is None and self.target is None:
            raise ValueError("at least one of wall, gpu_hours, target was required, found none")
        return self
