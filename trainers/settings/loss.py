"""What a training minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.section_base import BARE_NAME, Positive, Section


class _Loss(Section):
    weights: dict[str, Positive] = {}
    """Label -> weight of its branch; labels left out have weight 1."""


class Focal(_Loss):
    """Focal loss, -alpha (1 - p)^gamma log p (Lin et al. 2017, eq. 5).

    `alpha` is one number, or per label one number for each of its classes; a joint class has the
    product of its labels' numbers.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """How much less an easy sample counts; 0 is cross entropy."""
    alpha: Positive | dict[str, Annotated[list[Positive], Field(min_length=2)]] | None = None
    """Weight of the loss: a number, or per label a number for each class; null for 1."""


class CrossEntropy(_Loss):
    """Cross entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"


class LabelSmoothing(_Loss):
    """Cross entropy against smoothed targets (Szegedy et al. 2016)."""

    name: Literal["label_smoothing"] = "label_smoothing"
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes."""


class SoftF1(_Loss):
    """One minus the macro F1 of the batch's probabilities."""

    name: Literal["f1"] = "f1"


Loss = Annotated[
    Annotated[Focal | CrossEntropy | LabelSmoothing | SoftF1, Field(discriminator="name")],
    BARE_NAME,
]
