"""Losses of one branch against mixed targets."""

from __future__ import annotations

import math
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
    """Targets of a mixed batch: a sample is several parts, each of one class. A plain sample has one part."""

    codes: Tensor  # (B, P) int64
    weight: Tensor  # (B, P) float, each row sums to one

    def to(self, device: str) -> Targets:
        """Move to a device."""
        return Targets(self.codes.to(device), self.weight.to(device))

    def part(self, rows: slice) -> Targets:
        """Return some samples."""
        return Targets(self.codes[rows], self.weight[rows])

    def mixed(self, partner: Tensor, weight: Tensor) -> Targets:
        """Mix each sample with its partner, keeping the share `weight` (B,) of its own: twice as many parts."""
        own = weight[:, None]
        return Targets(
            torch.cat([self.codes, self.codes[partner]], 1),
            torch.cat([self.weight * own, self.weight[partner] * (1 - own)], 1),
        )


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss per sample, -(1 - p)^gamma log p (Lin et al. 2017, eq. 4), (B,)."""
    log_p = torch.log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)
    rest = 1.0 - log_p.exp()
    if gamma < 1:  # the power has no slope at a certain answer's zero
        rest = rest.clamp_min(torch.finfo(rest.dtype).eps)
    return -(rest**gamma) * log_p


def soft_f1(logits: Tensor, targets: Targets) -> Tensor:
    """One minus the macro F1 of a batch's probabilities, over the classes in it: a scalar.

    Counts are replaced by sums of probabilities: 2 sum(p y) / (sum(p) + sum(y)) per class, the soft Dice coefficient
    of Milletari et al. 2016 without its squares.
    """
    p = torch.softmax(logits, 1)
    y = torch.zeros_like(p).scatter_add_(1, targets.codes, targets.weight.to(p.dtype))
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
        total = torch.zeros(len(logits), device=logits.device)
        for codes, weight in zip(targets.codes.unbind(1), targets.weight.unbind(1), strict=True):
            part = per_sample(logits, codes) * weight
            total = total + (part if class_weights is None else part * class_weights[codes])
        return total.mean()

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


def alpha_of(config: Any, labels: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor | None:
    """Return the focal loss's alpha for each class of a branch, (k,), or None where there is none.

    Args:
        config: the spec's loss section.
        labels: of the branch; a joint class has the product of its labels' numbers.
        sizes: label name -> number of classes.
    """
    alpha = getattr(config, "alpha", None)
    if alpha is None:
        return None
    if not isinstance(alpha, dict):
        return torch.full((math.prod(sizes[name] for name in labels),), float(alpha))
    joint = torch.ones(1)
    for name in labels:
        own = alpha.get(name, [1.0] * sizes[name])
        joint = torch.outer(joint, torch.tensor(own)).flatten()
    return joint


def total_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    losses: Mapping[str, Callable[[Tensor, Targets], Tensor]],
    weights: Mapping[str, float],
) -> Tensor:
    """Sum the branches' losses, each by its weight (1 where none is given)."""
    return torch.stack(
        [
            weights.get(name, 1.0) * losses[name](logits[name].float(), targets[name])
            for name in logits
        ]
    ).sum()
