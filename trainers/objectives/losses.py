"""Losses of one branch against mixed targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.own_parts import function_of
from trainers.settings.loss import (
    BalancedSoftmax,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    OneLoss,
    OwnLoss,
    SoftF1,
)

_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Targets:
    """Targets of a mixed batch: a sample has several parts, each of one class; a plain one has one.

    Each row of `weight` sums to one. A part without a label has weight 0.
    """

    codes: Tensor  # (B, P) int64
    weight: Tensor  # (B, P) float

    def to(self, device: str) -> Targets:
        """Move to a device."""
        return Targets(self.codes.to(device), self.weight.to(device))

    def part(self, rows: slice) -> Targets:
        """Return some samples."""
        return Targets(self.codes[rows], self.weight[rows])

    def over_labelled(self) -> Targets:
        """Scale the weights so that a batch's mean loss is the mean over its labelled samples.

        The weights of a batch without a label stay 0, and so does its loss.
        """
        labelled = self.weight.sum().clamp_min(_LEAST_WEIGHT)
        return Targets(self.codes, self.weight * (len(self.weight) / labelled))

    def mixed(self, partner: Tensor, weight: Tensor) -> Targets:
        """Mix each sample with its partner, keeping a share `weight` (B,) of its own parts."""
        share = weight[:, None]
        return Targets(
            torch.cat([self.codes, self.codes[partner]], 1),
            torch.cat([self.weight * share, self.weight[partner] * (1 - share)], 1),
        )


PerSample = Callable[[Tensor, Tensor], Tensor]  # logits (B, k), classes (B,) -> (B,)
BranchLoss = Callable[[Tensor, Targets], Tensor]  # logits (B, k), targets -> scalar


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Focal loss per sample, -(1 - p)^gamma log p (Lin et al. 2017, eq. 4), (B,)."""
    log_p = torch.log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)
    rest = 1.0 - log_p.exp()
    if gamma < 1:  # the power has no slope at a certain answer's zero
        rest = rest.clamp_min(torch.finfo(rest.dtype).eps)
    return -(rest**gamma) * log_p


def soft_f1(logits: Tensor, targets: Targets) -> Tensor:
    """One minus the macro F1 of a batch's probabilities, over the classes in it: a scalar.

    Counts are replaced by sums of probabilities: 2 sum(p y) / (sum(p) + sum(y)) per class, the soft
    Dice coefficient of Milletari et al. 2016 without its squares. An answer counts as much as its
    sample is labelled; a batch without a label has the loss 0.
    """
    p = torch.softmax(logits, 1)
    weight = targets.weight.to(p.dtype)
    y = torch.zeros_like(p).scatter_add_(1, targets.codes, weight)
    answers = (p * weight.sum(1, keepdim=True)).sum(0)
    f1 = 2 * (p * y).sum(0) / (answers + y.sum(0)).clamp_min(1e-8)
    is_present = y.sum(0) > 0
    if not is_present.any():
        return 0.0 * p.sum()
    return 1.0 - f1[is_present].mean()


def branch_loss(
    config: OneLoss, class_weights: Tensor | None, log_shares: Tensor | None = None
) -> BranchLoss:
    """Return the loss of one branch: (logits (B, k), targets) -> scalar.

    Args:
        config: the spec's loss section, or one part of a mix.
        class_weights: (k,) or None; a sample counts as much as its class weighs.
        log_shares: (k,) of the classes, for the losses that shift logits by them.
    """
    if isinstance(config, SoftF1):
        return soft_f1
    return mean_over_samples(_per_sample(config, log_shares), class_weights)


def mean_over_samples(per_sample: PerSample, class_weights: Tensor | None) -> BranchLoss:
    """Return the mean over samples of a loss that is linear in the parts of a target."""

    def loss(logits: Tensor, targets: Targets) -> Tensor:
        total = torch.zeros(len(logits), device=logits.device)
        for codes, weight in zip(targets.codes.unbind(1), targets.weight.unbind(1), strict=True):
            part = per_sample(logits, codes) * weight
            if class_weights is not None:
                part = part * class_weights[codes]
            total = total + part
        return total.mean()

    return loss


def weighted_sum(parts: Sequence[tuple[float, BranchLoss]]) -> BranchLoss:
    """Return the sum of losses, each times its weight."""

    def loss(logits: Tensor, targets: Targets) -> Tensor:
        terms = [weight * part(logits, targets) for weight, part in parts]
        return torch.stack(terms).sum()

    return loss


def shifted_cross_entropy(logits: Tensor, target: Tensor, shift: Tensor) -> Tensor:
    """Cross entropy per sample of logits plus a shift (k,) of their classes, (B,)."""
    return F.cross_entropy(logits + shift, target, reduction="none")


def _per_sample(config: OneLoss, log_shares: Tensor | None) -> PerSample:
    if isinstance(config, OwnLoss):
        return partial(function_of(config, None, None), **config.settings)
    if isinstance(config, Focal):
        return partial(focal, gamma=config.gamma)
    if isinstance(config, LogitAdjustment | BalancedSoftmax):
        if log_shares is None:
            raise ValueError(f"loss {config.name!r}: log_shares were required, found none")
        tau = config.tau if isinstance(config, LogitAdjustment) else 1.0
        return partial(shifted_cross_entropy, shift=tau * log_shares)
    smoothing = config.smoothing if isinstance(config, LabelSmoothing) else 0.0
    return partial(F.cross_entropy, reduction="none", label_smoothing=smoothing)


def alpha_of(config: OneLoss, labels: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor | None:
    """Return the loss's alpha per class of a branch, (k,), or None if it has none.

    Args:
        config: the spec's loss section.
        labels: of the branch; a joint class has the product of its labels' numbers.
        sizes: label name -> number of classes.
    """
    alpha = config.alpha if isinstance(config, Focal) else None
    if alpha is None:
        return None
    if not isinstance(alpha, dict):
        return torch.full((math.prod(sizes[name] for name in labels),), float(alpha))
    joint = torch.ones(1)
    for name in labels:
        per_class = torch.tensor(alpha.get(name, [1.0] * sizes[name]))
        joint = torch.outer(joint, per_class).flatten()
    return joint


def total_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    losses: Mapping[str, BranchLoss],
    weights: Mapping[str, float],
) -> Tensor:
    """Sum the branches' losses, each by its weight (1 where none is given)."""
    weighted = []
    for name, values in logits.items():
        loss = losses[name](values.float(), targets[name])
        weighted.append(weights.get(name, 1.0) * loss)
    return torch.stack(weighted).sum()
