"""`hypotheses`: claims such as `a > b on accuracy`."""

from __future__ import annotations

import re
from dataclasses import dataclass

METRICS = ("macro_f1", "accuracy")
_CLAIM = re.compile(r"^\s*(\S+)\s*>\s*(\S+)(?:\s+on\s+(\S+))?\s*$")


@dataclass(frozen=True)
class Claim:
    """`better` is claimed to score higher than `worse`."""

    better: str
    worse: str
    metric: str = "macro_f1"


def parse(text: str) -> Claim:
    """Read 'a > b' or 'a > b on accuracy'.

    Raises:
        ValueError: it reads otherwise, or names an unknown metric.
    """
    match = _CLAIM.match(text)
    if match is None:
        raise ValueError(
            f"a claim reads like 'half > none' or 'half > none on accuracy', found {text!r}"
        )
    better, worse, metric = match[1], match[2], match[3] or "macro_f1"
    if metric not in METRICS:
        raise ValueError(
            f"a metric out of {', '.join(METRICS)} was required, found {metric!r} in {text!r}"
        )
    return Claim(better, worse, metric)
