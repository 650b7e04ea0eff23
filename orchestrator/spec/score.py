"""`score`: the one number that a run maximizes and promises."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

DEFAULT = "macro_f1"
MEAN = "mean of labels"
_WORDS = {
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}
METRICS = tuple(_WORDS)
_FORMS = f"{', '.join(METRICS)}, one of them 'of LABEL', or '{MEAN}'"


@dataclass(frozen=True)
class Score:
    """A metric of the joint class, of one label, or its mean over all labels."""

    metric: str = DEFAULT
    label: str | None = None
    is_mean: bool = False

    @property
    def text(self) -> str:
        """The score as a spec writes it."""
        if self.is_mean:
            return MEAN
        return self.metric if self.label is None else f"{self.metric} of {self.label}"

    @property
    def title(self) -> str:
        """The score in words."""
        words = _WORDS[self.metric]
        if self.is_mean:
            return f"mean {words} of the labels"
        return words if self.label is None else f"{words} of {self.label}"

    def labels_among(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the labels whose scores are averaged; none where the joint class is scored."""
        if self.is_mean:
            return tuple(names)
        return () if self.label is None else (self.label,)

    def require_label(self, names: Collection[str], where: str) -> None:
        """Check that a label that the score names exists.

        Raises:
            ValueError: it does not; the text begins with `where`.
        """
        if self.label is not None and self.label not in names:
            raise ValueError(
                f"{where}: one of the labels {', '.join(names)} was required, "
                f"found {self.label!r} in {self.text!r}"
            )


MACRO_F1 = Score()


def parse_score(text: str) -> Score:
    """Read 'macro_f1', 'accuracy of mask', 'mean of labels' and the like.

    Raises:
        ValueError: it reads otherwise.
    """
    words = text.split()
    if words == MEAN.split():
        return Score(is_mean=True)
    if len(words) in (1, 3) and words[0] in METRICS and words[1:2] in ([], ["of"]):
        return Score(words[0], words[2] if len(words) == 3 else None)
    raise ValueError(f"a score out of {_FORMS} was required, found {text!r}")


def score_title(text: str) -> str:
    """Return a score in words; a text that is no score stands for itself."""
    try:
        return parse_score(text).title
    except ValueError:
        return text


def _normal(text: str) -> str:
    return parse_score(text).text


ScoreText = Annotated[str, AfterValidator(_normal)]
"""A score as a spec writes it."""
