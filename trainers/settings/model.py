"""Backbone and head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.section_base import BARE_NAME, Section, since
from trainers.settings.own_parts import OwnOr, OwnPart


class SingleHead(Section):
    """Model A: one linear layer over the joint classes, or over some labels (`labels: [age]`)."""

    name: Literal["single"] = "single"
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    """The labels that the head answers; null for the joint class of all."""


Width = Annotated[int, Field(ge=1, le=8192)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]


class _Branches(Section):
    joint: Literal["free", "existing"] = "free"
    """The joint classes: any combination of labels, or only those that the training part has."""


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


class Views(Section):
    """Views of a photo that are answered besides the photo itself; the answer is their mean."""

    flip: bool = True
    """Answer each view mirrored, too."""
    margins: list[Annotated[float, Field(gt=0, le=0.3)]] = []
    """Answer the photo without its margin, too: a share of each side, cut off at both ends."""


class Model(Section):
    """A timm backbone and a head."""

    backbone: Backbone = "tf_efficientnet_lite0"
    """Name of a model of timm, or code of one's own: `{use: "my_parts.py:function"}`."""
    pretrained: bool = True
    """Begin with ImageNet weights; false begins with random ones."""
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
