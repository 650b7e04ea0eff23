"""How weights are updated, and how the learning rate changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.section_base import BARE_NAME, Count, Fraction, Section, since
from trainers.settings.duration import DurationText


class _Optimizer(Section):
    lr: Annotated[float, Field(gt=0, le=1e6)] = 1e-4
    """Learning rate at the start."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Strength of the weight decay."""
    decay_norms: bool = since(default=True)
    """Decay also the weights of norms, and biases; false leaves them out."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = since(1.0)
    """What the learning rate of a layer is multiplied by per layer above it; 1 for one rate. Layers
    are timm's (`param_groups_layer_decay`); the head has the whole rate."""


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


class _WarmedUp(Section):
    warmup: DurationText | None = since(None)
    """Length of a linear warm-up, such as `1 epochs`; null for none."""


class ReduceOnPlateau(_WarmedUp):
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


class StepDecay(_WarmedUp):
    """Multiply the learning rate by `factor` every `every` epochs."""

    name: Literal["step"] = "step"
    every: Count = 10
    """Epochs between two reductions."""
    factor: Fraction = 0.1
    """What the learning rate is multiplied by."""


class Constant(_WarmedUp):
    """A constant learning rate."""

    name: Literal["none"] = "none"


class OneCycle(Section):
    """Half a cosine up to the optimizer's rate, then one down (Smith and Topin 2018), per step.

    It is torch's OneCycleLR without its cycle of the momentum.
    """

    name: Literal["one_cycle"] = "one_cycle"
    rise: Fraction = 0.3
    """Share of the training in which the learning rate rises."""
    first: Fraction = 0.04
    """Learning rate of the first step, as a part of the highest."""
    last: Fraction = 4e-6
    """Learning rate of the last step, as a part of the highest."""


Schedule = Annotated[
    Annotated[
        ReduceOnPlateau | Cosine | StepDecay | OneCycle | Constant, Field(discriminator="name")
    ],
    BARE_NAME,
]
