"""Backbone and head as one module that eats uint8 photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.weights.cache import require
from data_prep.weights.registry import WeightsError, known
from trainers import hub
from trainers.backbones import known_backbones
from trainers.config import Model
from trainers.heads import HEADS, Branches


class WeightsUnavailable(RuntimeError):  # noqa: N818 - says what is the case
    """Pretrained weights are wanted and not on this machine, or not what they should be."""


class Classifier(nn.Module):
    """uint8 photos -> logits per branch. Normalization is the first operation, so it can never be forgotten."""

    scale: Tensor
    shift: Tensor
    head: Branches

    def __init__(
        self,
        backbone: nn.Module,
        head: Branches,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = frozen
        center, spread = torch.tensor(mean) * 255.0, torch.tensor(std) * 255.0
        self.register_buffer("scale", 1.0 / spread, persistent=False)
        self.register_buffer("shift", -center / spread, persistent=False)
        self.backbone.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map photos (B, 3, H, W), 0 to 255 in any dtype, to {branch: (B, k) logits}."""
        logits: dict[str, Tensor] = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Map photos to the features before the head, (B, F)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.backbone(self._normalized(x))
        return features

    def train(self, mode: bool = True) -> Classifier:
        """Switch the mode; a frozen backbone stays in eval mode, the statistics of its BatchNorm included."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _normalized(self, x: Tensor) -> Tensor:
        # one pass over rows of (W * 3) numbers: several times as fast as broadcasting (1, 3, 1, 1) over channels last
        n, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * height, width * 3).float()
        rows = torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
        return rows.view(n, height, width, 3).permute(0, 3, 1, 2)


def build(
    model: Model,
    label_sizes: Mapping[str, int],
    *,
    size: int | None = None,
    pretrained: bool | None = None,
) -> Classifier:
    """Build a classifier.

    Args:
        model: the spec's section.
        label_sizes: label name -> number of classes; their order gives the joint class.
        size: of the photos, in pixels; transformers are built for one size.
        pretrained: overrides the section, for a model whose weights are about to be loaded.

    Raises:
        WeightsUnavailable: pretrained weights are not on this machine; none are downloaded here.
        ValueError: timm has no such model, or it cannot be built for this size.
    """
    if model.backbone.split(".")[0] not in known_backbones():
        # timm would take hf-hub:NAME from the net and local-dir:PATH from anywhere on this disk
        raise ValueError(
            f"train.model.backbone: a model of timm was required, found {model.backbone!r}"
        )
    import timm  # noqa: PLC0415

    wanted = model.pretrained if pretrained is None else pretrained
    from_registry = wanted and model.backbone in known()
    try:
        file = (require if from_registry else hub.require)(model.backbone) if wanted else None
    except WeightsError as error:
        raise WeightsUnavailable(str(error)) from None
    facts = timm.get_pretrained_cfg(model.backbone, allow_unregistered=True)
    sized = {"img_size": size} if size and facts is not None and facts.fixed_input_size else {}
    given = {"pretrained_cfg_overlay": {"file": str(file)}} if file and not from_registry else {}
    try:
        backbone = timm.create_model(
            model.backbone, pretrained=bool(given), num_classes=0, **given, **sized
        )
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"train.model.backbone: {error}") from None
    if file and from_registry:
        _load_by_order(backbone, file)
    config: dict[str, Any] = backbone.pretrained_cfg
    n_features = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    head = HEADS[model.head.name](model.head, n_features, label_sizes)
    return Classifier(
        backbone, head, tuple(config["mean"]), tuple(config["std"]), frozen=model.freeze is not None
    )


def _load_by_order(backbone: nn.Module, path: Path) -> None:
    """Load a checkpoint whose names differ and whose order is the same, checking every shape."""
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = backbone.state_dict()
    values = [
        value for name, value in theirs.items() if not name.startswith(("classifier", "_fc", "fc"))
    ]
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
