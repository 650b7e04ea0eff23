"""What of a pretrained network trains when, and which average of its weights is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.section_base import BARE_NAME, Count, Fraction, Section


class Ema(Section):
    """An exponential moving average of all weights, updated after every step.

    It is scored and saved in place of the weights themselves. BatchNorm's statistics are averaged alike.
    """

    decay: Fraction = 0.999
    """Share of the average that stays at a step."""
    warmup: bool = True
    """Begin with a smaller share, (1 + step) / (10 + step), so that a short training forgets its start."""


class Soup(Section):
    """A greedy soup (Wortsman et al. 2022): the mean of the weights of a training's best epochs.

    Epochs are added from the best on; one stays if the val score of the mean does not fall.
    """

    epochs: Annotated[int, Field(ge=2, le=20)] = 5
    """How many of the best epochs are tried; so many weights are kept during the training."""


class HeadFirst(Section):
    """The head alone, then everything (LP-FT, Kumar et al. 2022)."""

    name: Literal["head_first"] = "head_first"
    epochs: Count = 1
    """Epochs of the head alone; the backbone is in eval mode then."""


class Gradual(Section):
    """The head alone, then one more stage of the backbone from the last to the first (Howard and Ruder 2018)."""

    name: Literal["gradual"] = "gradual"
    every: Count = 1
    """Epochs between two stages. Stages are timm's; those that still rest are in eval mode."""


class Upper(Section):
    """The head and the upper stages of the backbone; the stages below them stay as they were pretrained.

    They are in eval mode and have no backward pass, so that a step costs less.
    """

    name: Literal["upper"] = "upper"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the backbone's stages that train, from the last one on; rounded up. Stages are timm's."""


Unfreeze = Annotated[Annotated[HeadFirst | Gradual | Upper, Field(discriminator="name")], BARE_NAME]
