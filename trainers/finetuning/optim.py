"""Optimizers and learning-rate schedules. A schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainers.finetuning.layers import HEAD, is_norm_or_bias, layer_numbers
from trainers.model import Classifier
from trainers.settings.duration import Duration
from trainers.settings.optimization import (
    SGD,
    AdamW,
    Cosine,
    OneCycle,
    Optimizer,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
)

_SCALE = "lr_scale"
"""What a group of parameters multiplies the learning rate by; timm's name for it."""


def make_optimizer(
    config: Optimizer, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Build the optimizer of the spec, in its form that passes once over the parameters."""
    if isinstance(config, SGD):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if isinstance(config, AdamW) else torch.optim.Adam
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def trained_parameters(
    config: Optimizer, model: Classifier
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return the parameters that train, in groups where these have rates or decays of their own.

    Args:
        config: the spec's optimizer.
        model: the parameters of a frozen backbone are left out.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if config.layer_decay == 1 and config.decay_norms:
        return list(named.values())
    scales = dict.fromkeys(named, 1.0)
    if config.layer_decay < 1:
        scales |= layer_scales(model, config.layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        decay = config.weight_decay
        if not config.decay_norms and is_norm_or_bias(name, parameter):
            decay = 0.0
        scale = scales[name]
        group = {"params": [], "weight_decay": decay, _SCALE: scale}
        groups.setdefault((scale, decay), group)["params"].append(parameter)
    return list(groups.values())


def layer_scales(model: Classifier, decay: float) -> dict[str, float]:
    """Return what each parameter of the backbone multiplies the learning rate by.

    As timm's `param_groups_layer_decay` (Clark et al. 2020; Bao et al. 2022): `decay` to the number
    of layers above.
    """
    numbers = layer_numbers(model.backbone, (name for name, _ in model.backbone.named_parameters()))
    highest = numbers.pop(HEAD)
    return {f"backbone.{name}": decay ** (highest - number) for name, number in numbers.items()}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its part of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_SCALE, 1.0)


class Plateau:
    """Counts epochs without a better score; the only part of a schedule that has a state."""

    def __init__(self) -> None:
        self.best = -math.inf
        self.waited = 0  # epochs
        self.cuts = 0  # of the learning rate

    def update(self, score: float, patience: int) -> None:
        """Take in the score of an epoch (larger is better)."""
        if score > self.best:
            self.best = score
            self.waited = 0
            return
        self.waited += 1
        if self.waited > patience:
            self.cuts += 1
            self.waited = 0


def lr_at(
    config: Schedule, base: float, *, step: int, steps_per_epoch: int, n_steps: int, cuts: int
) -> float:
    """Return the learning rate of a step (from 0).

    Args:
        config: the spec's schedule.
        base: the optimizer's learning rate.
        step: optimizer updates done so far.
        steps_per_epoch: updates in one epoch.
        n_steps: updates in the whole training.
        cuts: how often a plateau was cut.
    """
    if isinstance(config, OneCycle):
        return base * _one_cycle(config, step, n_steps)
    warmup = 0
    if config.warmup:
        warmup = Duration.parse(config.warmup).steps(steps_per_epoch)
    if step < warmup:
        return float(base * (step + 1) / warmup)
    if isinstance(config, ReduceOnPlateau):
        return float(base * config.factor**cuts)
    if isinstance(config, StepDecay):
        return float(base * config.factor ** (step // steps_per_epoch // config.every))
    if isinstance(config, Cosine):
        progress = (step - warmup) / max(1, n_steps - warmup)
        return float(base * 0.5 * (1 + math.cos(math.pi * progress)))
    return float(base)


def _one_cycle(config: OneCycle, step: int, n_steps: int) -> float:
    """Return the part of the highest learning rate, as torch's OneCycleLR has it."""
    highest_at = config.rise * n_steps - 1  # a step, perhaps between two
    last_at = n_steps - 1
    if step <= highest_at and highest_at > 0:
        return _half_cosine(config.first, 1.0, step / highest_at)
    if last_at <= highest_at:
        return 1.0
    return _half_cosine(1.0, config.last, min(1.0, (step - highest_at) / (last_at - highest_at)))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
