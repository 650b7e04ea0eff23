"""Layers and stages of a backbone, as timm orders them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

HEAD = "head of ours"
"""Stands for the head, which lies above the backbone, among the names of `layer_numbers`."""


def layer_numbers(backbone: Any, names: Iterable[str], *, coarse: bool = False) -> dict[str, int]:
    """Return the number of the layer, from 0 at the photo, that each name belongs to.

    The head's number is that of timm's classifier: a final norm or convolution shares it.

    Args:
        backbone: of timm, without its classifier.
        names: of parameters or modules of the backbone.
        coarse: number stages and not layers.

    Returns:
        Also the number of `HEAD`, which is the highest.
    """
    from timm.models._manipulate import group_with_matcher  # noqa: PLC0415
    from timm.optim._param_groups import auto_group_layers  # noqa: PLC0415

    names = list(names)
    if not hasattr(backbone, "group_matcher"):
        numbers = auto_group_layers(backbone)
        highest = max(numbers.values()) + 1
        return {name: numbers.get(name, highest) for name in names} | {HEAD: highest}
    classifier = backbone.pretrained_cfg.get("classifier") or "classifier"
    if not isinstance(classifier, str):  # a distilled network has two
        classifier = classifier[0]
    stand_in = f"{classifier}.weight"
    named = [(name, None) for name in (*names, stand_in)]
    numbers = group_with_matcher(named, backbone.group_matcher(coarse=coarse), reverse=True)
    return {name: numbers[name] for name in names} | {HEAD: numbers[stand_in]}


def is_norm_or_bias(name: str, parameter: nn.Parameter) -> bool:
    """Return True for what timm leaves without weight decay: vectors and scalars."""
    return parameter.ndim <= 1 or name.endswith(".bias")
