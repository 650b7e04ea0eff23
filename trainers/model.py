"""Backbone and head as one module that takes uint8 photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.weights import hub
from data_prep.weights.cache import require
from data_prep.weights.registry import WeightsError, known
from trainers.finetuning.own_weights import load_own_weights
from trainers.heads import Branches, build_head
from trainers.library_names import known_backbones
from trainers.own_parts import OwnPartFailed, call
from trainers.photos.views import PLAIN_VIEW, TestView, views_of
from trainers.settings.model import Model
from trainers.settings.own_parts import OwnPart

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class WeightsUnavailable(RuntimeError):  # noqa: N818 - says what is the case
    """Pretrained weights are required and not on this machine, or not the known ones."""


class Classifier(nn.Module):
    """uint8 photos -> logits per branch. The first operation normalizes, nobody can forget it."""

    scale: Tensor
    shift: Tensor
    head: Branches
    precision: str = "fp32"  # of its training
    views: tuple[TestView, ...] = (PLAIN_VIEW,)  # whose mean probability is the answer
    code: str = ""  # of a user's backbone: what decides its features besides its weights
    resting: Sequence[nn.Module] = ()  # parts of the backbone that do not train yet

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
        center = torch.tensor(mean) * 255.0
        spread = torch.tensor(std) * 255.0
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
        """Switch the mode; what does not train stays in eval mode, its BatchNorm statistics too."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        for module in self.resting:
            module.training = False
        return self

    def _normalized(self, x: Tensor) -> Tensor:
        # one pass over rows of (W * 3) numbers: several times as fast as broadcasting (1, 3, 1, 1)
        # over channels last
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
        ValueError: timm has no such model, it cannot be built for this size, or weights of the user's
            own do not fit it.
    """
    wants_weights = model.pretrained if pretrained is None else pretrained
    own_weights = model.weights if pretrained is None else None
    is_from_hub = wants_weights and own_weights is None
    if isinstance(model.backbone, OwnPart):
        backbone = _own_backbone(model.backbone, size=size, wants_weights=is_from_hub)
        mean = getattr(backbone, "mean", _IMAGENET_MEAN)
        std = getattr(backbone, "std", _IMAGENET_STD)
    else:
        if model.backbone.split(".")[0] not in known_backbones():
            # timm would take hf-hub:NAME from the net and local-dir:PATH from anywhere on this disk
            raise ValueError(
                f"train.model.backbone: a model of timm was required, found {model.backbone!r}"
            )
        backbone = _backbone(model.backbone, size=size, wants_weights=is_from_hub)
        mean = backbone.pretrained_cfg["mean"]
        std = backbone.pretrained_cfg["std"]
    if own_weights is not None:
        try:
            load_own_weights(backbone, Path(own_weights), model.weights_sha256)
        except ValueError as error:
            raise ValueError(f"train.model.weights: {error}") from None
    n_features = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    head = build_head(model.head, n_features, label_sizes)
    classifier = Classifier(
        backbone, head, tuple(mean), tuple(std), frozen=model.freeze is not None
    )
    classifier.views = views_of(model.views)
    if isinstance(model.backbone, OwnPart):
        classifier.code = model.backbone.model_dump_json()
    return classifier


def _own_backbone(part: OwnPart, *, size: int | None, wants_weights: bool) -> Any:
    """Build a user's backbone, and refuse one that does not say how many features it gives."""
    backbone = call(part, size=size, pretrained=wants_weights)
    n_features = getattr(backbone, "num_features", None)
    if not isinstance(backbone, nn.Module) or not isinstance(n_features, int):
        raise OwnPartFailed(
            f"{part.use}: a torch.nn.Module with the number of its features as num_features was "
            f"required, found {type(backbone).__name__} with num_features {n_features!r}"
        )
    return backbone


def _backbone(name: str, *, size: int | None, wants_weights: bool) -> Any:
    """Build a backbone of timm, with weights of this machine if they are wanted."""
    from data_prep.timm_without_wandb import timm  # noqa: PLC0415

    file = None
    is_ours = name in known()  # else timm's hub knows it
    if wants_weights:
        try:
            file = require(name) if is_ours else hub.require(name)
        except WeightsError as error:
            raise WeightsUnavailable(str(error)) from None
    settings: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if size and config is not None and config.fixed_input_size:
        settings["img_size"] = size
    if file is not None and not is_ours:
        try:
            return hub.create(name, file, **settings)
        except WeightsError as error:
            raise WeightsUnavailable(str(error)) from None
    try:
        backbone = timm.create_model(name, num_classes=0, **settings)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"train.model.backbone: {error}") from None
    if file is not None:
        _load_by_order(backbone, file)
    return backbone


def _load_by_order(backbone: nn.Module, path: Path) -> None:
    """Load a checkpoint whose names differ and whose order is the same; check every shape."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    expected = backbone.state_dict()
    values = []
    for name, value in checkpoint.items():
        if not name.startswith(("classifier", "_fc", "fc")):
            values.append(value)
    if len(values) < len(expected):
        raise WeightsUnavailable(
            f"{path}: {len(expected)} tensors were required, found {len(values)}"
        )
    renamed = {}
    for (name, tensor), value in zip(expected.items(), values, strict=False):
        if tensor.shape != value.shape:
            raise WeightsUnavailable(
                f"{path}: {name} of shape {tuple(tensor.shape)} was required, "
                f"found {tuple(value.shape)}"
            )
        renamed[name] = value
    backbone.load_state_dict(renamed, strict=True)
