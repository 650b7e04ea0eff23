"""How weights are updated, and how the learning rate changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.section_base import BARE_NAME, Count, Fraction, Section
from trainers.settings.duration import DurationText


class _Optimizer(Section):
    lr: Annotated[float, Field(gt=0, le=1e6)] = 1e-4
    """Learning rate at the start."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Strength of the weight decay."""


class Adam(_Optimizer):
    """Adam with L2 regularisation."""

    name: Literal["adam"] = "adam"


class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"


class SGD(_Optimizer):
    """Stochastic gradient descent with Nesterov momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""


Optimizer = Annotated[Annotated[Adam | AdamW | SGD, Field(discriminator="name")], BARE_NAME]


class ReduceOnPlateau(Section):
    """Multiply the learning rate by `factor` after `patience` epochs without a better val score."""

    name: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    patience: Annotated[int, Field(ge=0)] = 5
    """Epochs without a better val score before a reduction."""
    factor: Fraction = 0.1
    """What the learning rate is multiplied by."""


class Cosine(Section):
    """Linear warm-up, then half a cosine to zero, per step."""

    name: Literal["cosine"] = "cosine"
    warmup: DurationText | None = None
    """Length of the linear warm-up, such as `1 epochs`; null for none."""


class StepDecay(Section):
    """Multiply the learning rate by `factor` every `every` epochs."""

    name: Literal["step"] = "step"
    every: Count = 10
    """Epochs between two reductions."""
    factor: Fraction = 0.1
    """What the learning rate is multiplied by."""


class Constant(Section):
    """A constant learning rate."""

    name: Literal["none"] = "none"


Schedule = Annotated[
    Annotated[ReduceOnPlateau | Cosine | StepDecay | Constant, Field(discriminator="name")],
    BARE_NAME,
]
