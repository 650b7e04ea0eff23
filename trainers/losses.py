"""Losses of one branch against mixed targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.config import CrossEntropy, Focal, LabelSmoothing, SoftF1

PerSample = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Targets:
    """Targets of a mixed batch: each sample is `weight` parts of `first` and the rest of `second`."""

    first: Tensor  # (B,) int64
    second: Tensor  # (B,) int64
    weight: Tensor  # (B,) float, 1 where nothing was mixed


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss per sample, -(1 - p)^gamma log p (Lin et al. 2017, eq. 4), (B,)."""
    log_p = torch.log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)
    return -((1.0 - log_p.exp()) ** gamma) * log_p


def soft_f1(logits: Tensor, targets: Targets) -> Tensor:
    """One minus the macro F1 of a batch's probabilities, over the classes in it: a scalar."""
    p = torch.softmax(logits, 1)
    k = logits.shape[1]
    weight = targets.weight[:, None]
    y = weight * F.one_hot(targets.first, k) + (1 - weight) * F.one_hot(targets.second, k)
    hit, present = (p * y).sum(0), y.sum(0) > 0
    f1 = 2 * hit / (p.sum(0) + y.sum(0)).clamp_min(1e-8)
    return 1.0 - f1[present].mean()


def branch_loss(config: Any, class_weights: Tensor | None) -> Callable[[Tensor, Targets], Tensor]:
    """Return the loss of one branch: (logits (B, k), targets) -> scalar.

    Args:
        config: the spec's loss section.
        class_weights: (k,) or None; a sample counts as much as its class weighs.
    """
    if isinstance(config, SoftF1):
        return soft_f1
    per_sample = _per_sample(config)

    def loss(logits: Tensor, targets: Targets) -> Tensor:
        a, b = per_sample(logits, targets.first), per_sample(logits, targets.second)
        if class_weights is not None:
            a, b = a * class_weights[targets.first], b * class_weights[targets.second]
        return (targets.weight * a + (1 - targets.weight) * b).mean()

    return loss


def _per_sample(config: Any) -> PerSample:
    if isinstance(config, Focal):
        return lambda logits, target: focal(logits, target, config.gamma)
    if isinstance(config, LabelSmoothing):
        return lambda logits, target: F.cross_entropy(
            logits, target, reduction="none", label_smoothing=config.smoothing
        )
    if isinstance(config, CrossEntropy):
        return lambda logits, target: F.cross_entropy(logits, target, reduction="none")
    raise ValueError(f"unknown loss {config}")


def total_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    losses: Mapping[str, Callable[[Tensor, Targets], Tensor]],
    weights: Mapping[str, float],
) -> Tensor:
    """Sum the branches' losses, each by its weight (1 where none is given)."""
    return torch.stack(
        [weights.get(name, 1.0) * losses[name](logits[name].float(), targets[name]) for name in logits]
    ).sum()
