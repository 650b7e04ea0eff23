"""`hypotheses`: claims such as `a > b on accuracy` and `a = b within 0.01`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.spec.score import DEFAULT, parse_score

_NAME = r"([^\s>=<]+)"
_CLAIM = re.compile(
    rf"^\s*{_NAME}\s*([>=])\s*{_NAME}(?:\s+within\s+(\S+))?(?:\s+on\s+(\S.*?))?\s*$"
)
_FORMS = "'half > none', 'half > none on accuracy' or 'half = none within 0.01'"


@dataclass(frozen=True)
class Claim:
    """`better` is claimed to score higher than `worse`; with a margin, to score nearly the same."""

    better: str
    worse: str
    metric: str = DEFAULT  # a score, as `score` of the spec writes it
    margin: float | None = None


def parse(text: str, default: str = DEFAULT) -> Claim:
    """Read 'a > b', 'a > b on accuracy', 'a = b within 0.01' or 'a = b within 0.01 on accuracy'.

    Args:
        text: of the spec.
        default: the score of a claim that names none.

    Raises:
        ValueError: it reads otherwise, or names an unknown score.
    """
    if text.count(">") + text.count("=") > 1:
        raise ValueError(
            "a claim compares two arms: 'a > b' says that a scores higher than b; found more than "
            f"one comparison in {text!r}; write one claim for each pair, as {_FORMS}"
        )
    match = _CLAIM.match(text)
    if match is None:
        raise ValueError(f"a claim reads like {_FORMS}, found {text!r}")
    better, sign, worse, within, named = match.groups()
    try:
        metric = parse_score(named or default).text
    except ValueError as error:
        raise ValueError(f"{error} in {text!r}") from None
    return Claim(better, worse, metric, _margin(sign, within, text))


def _margin(sign: str, within: str | None, text: str) -> float | None:
    """Return the margin of 'a = b within 0.01'; None for 'a > b'."""
    if sign == ">":
        if within is not None:
            raise ValueError(f"a margin needs '=': write 'a = b within {within}', found {text!r}")
        return None
    try:
        margin = float(within or "")
    except ValueError:
        margin = 0.0
    if not 0 < margin < 1:
        raise ValueError(
            "'=' needs a margin above 0 and below 1, as in 'a = b within 0.01', "
            f"found {within!r} in {text!r}"
        )
    return margin
