"""Backbone and head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.section_base import BARE_NAME, Positive, Section, how, since
from trainers.settings.own_parts import OwnOr, OwnPart


class SingleHead(Section):
    """Model A: one linear layer over the joint classes, or over some labels (`labels: [age]`)."""

    name: Literal["single"] = "single"
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    """The labels that the head answers; null for the joint class of all."""


Width = Annotated[int, Field(ge=1, le=8192)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]


class _Ordered(Section):
    decode: Literal["mode", "median", "expectation"] = "mode"
    """The answer: the likeliest class, or the one that holds the median or the expected value."""


class Corn(_Ordered):
    """Per border, whether the label lies above it, given that it lies above the one before.

    CORN (Shi et al. 2021): a class is never likelier above a higher border than above a lower one.
    """

    name: Literal["corn"] = "corn"


class Distribution(_Ordered):
    """A Gaussian over the label's number is learned, on cells between the borders (Gao et al. 2017)."""

    name: Literal["distribution"] = "distribution"
    sigma: Positive = 3.0
    """Standard deviation of the Gaussian, in the unit of the number."""
    cells: Annotated[int, Field(ge=1, le=256)] = 16
    """Cells of each class; its probability is their sum."""


class Softmax(_Ordered):
    """The branch and its loss as without an order; only `decode` uses it."""

    name: Literal["softmax"] = "softmax"


Ordered = Corn | Distribution | Softmax


class _Branches(Section):
    joint: Literal["free", "existing"] = "free"
    """The joint classes: any combination of labels, or only those that the training part has."""
    ordered: dict[str, Annotated[Annotated[Ordered, Field(discriminator="name")], BARE_NAME]] = (
        since({})
    )
    """Label with `bins` -> how its order is learned: `corn`, `distribution` or `softmax`."""


class ShallowHead(_Branches):
    """Model B: one linear layer per label."""

    name: Literal["shallow"] = "shallow"


class DeepHead(_Branches):
    """Model C: per label, features -> hidden, BatchNorm, activation, Dropout -> classes."""

    name: Literal["deep"] = "deep"
    hidden: Width = 512
    """Width of the hidden layer of each branch."""
    activation: Activation = "relu"
    """Activation of the hidden layer."""
    dropout: Dropout = 0.5
    """Share of the hidden values that are dropped in training."""


class FrozenDeepHead(_Branches):
    """Model A+C: the frozen feature map of a trained variant, a projection, then deep branches."""

    name: Literal["frozen_deep"] = "frozen_deep"
    source: str = Field(alias="from")
    """The variant whose trained feature map is kept."""
    projection: Width = 512
    """Width of the projection that all branches share."""
    hidden: Width = 256
    """Width of the hidden layer of each branch."""
    activation: Activation = "relu"
    """Activation of the hidden layer."""
    dropout: Dropout = 0.5
    """Share of the hidden values that are dropped in training."""


_NamedHead = Annotated[
    Annotated[SingleHead | ShallowHead | DeepHead | FrozenDeepHead, Field(discriminator="name")],
    BARE_NAME,
]
Head = Annotated[OwnPart | _NamedHead, OwnOr(_NamedHead)]
Backbone = Annotated[str | OwnPart, OwnOr(str)]


class Frozen(Section):
    """The backbone stays as it is, in eval mode; features are computed once per photo and view."""

    views: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of augmented versions of a training photo; epoch e sees version (e - 1) mod views."""


WeightsFile = Annotated[str, Field(pattern=r"\.safetensors$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Views(Section):
    """Views of a photo that are answered besides the photo itself; the answer is their mean."""

    flip: bool = True
    """Answer each view mirrored, too."""
    margins: list[Annotated[float, Field(gt=0, le=0.3)]] = []
    """Answer the photo without its margin, too: a share of each side, cut off at both ends. Each cuts
    another number of whole pixels of the prepared photo, at least one."""


def cut_pixels(margin: float, side: int) -> int:
    """Return how many pixels a margin cuts off at each end of a side."""
    return round(margin * side)


class Model(Section):
    """A timm backbone and a head."""

    backbone: Backbone = "tf_efficientnet_lite0"
    """Name of a model of timm, or code of one's own: `{use: "my_parts.py:function"}`."""
    pretrained: bool = True
    """Begin with ImageNet weights; false begins with random ones."""
    weights: WeightsFile | None = how(None, exclude_if=lambda value: value is None)
    """A file of weights for the backbone that the training begins with, `.safetensors` alone; a
    relative path counts from the spec's own folder. A `weights.safetensors` of a run fits too."""
    weights_sha256: Sha256 | None = since(None)
    """The sha256 of that file. It is computed when the spec is read; one that is given is required."""
    head: Head = SingleHead()
    """What turns features into classes."""
    frozen: Frozen | None = None
    """Leave the backbone as it is and keep its features; null trains all of it."""

    views: Views | None = since(None)
    """Views of a photo that a finished training answers, held-out and test photos alike; null
    answers the photo alone."""

    @property
    def timm_name(self) -> str | None:
        """The model of timm; None where the backbone is code of the user."""
        return self.backbone if isinstance(self.backbone, str) else None

    @property
    def backbone_text(self) -> str:
        """The backbone as a reader calls it."""
        return self.backbone if isinstance(self.backbone, str) else self.backbone.use

    @property
    def freeze(self) -> Frozen | None:
        """How the backbone is frozen; head frozen_deep always freezes it."""
        return self.frozen or (Frozen() if isinstance(self.head, FrozenDeepHead) else None)

    @model_validator(mode="after")
    def _one_origin_of_weights(self) -> Self:
        if self.weights is not None and isinstance(self.head, FrozenDeepHead):
            raise ValueError(
                f"head frozen_deep takes its backbone from variant {self.head.source!r}, found also "
                f"weights {self.weights!r}; remove one of the two (weights: null in the variant)"
            )
        return self
