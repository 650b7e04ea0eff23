"""Optimizers and learning-rate schedules. A schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainers.settings.duration import Duration
from trainers.settings.optimization import (
    SGD,
    AdamW,
    Cosine,
    Optimizer,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
)


def make_optimizer(config: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
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
    if isinstance(config, ReduceOnPlateau):
        return float(base * config.factor**cuts)
    if isinstance(config, StepDecay):
        return float(base * config.factor ** (step // steps_per_epoch // config.every))
    if isinstance(config, Cosine):
        warmup = 0
        if config.warmup:
            warmup = Duration.parse(config.warmup).steps(steps_per_epoch)
        if step < warmup:
            return float(base * (step + 1) / warmup)
        progress = (step - warmup) / max(1, n_steps - warmup)
        return float(base * 0.5 * (1 + math.cos(math.pi * progress)))
    return float(base)
