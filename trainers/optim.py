"""Optimizers and learning-rate schedules. A schedule is a pure function wherever it can be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainers.config import SGD, AdamW, Cosine, Duration, ReduceOnPlateau, StepDecay


def make_optimizer(config: Any, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer that the spec names, in its form that passes once over the parameters."""
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
    """Counts epochs without a better score; the only schedule that has a state."""

    def __init__(self) -> None:
        self.best, self.waited, self.cuts = -math.inf, 0, 0

    def see(self, score: float, patience: int) -> None:
        """Take in the score of an epoch (larger is better)."""
        if score > self.best:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
            if self.waited > patience:
                self.cuts, self.waited = self.cuts + 1, 0


def lr_at(
    config: Any, base: float, *, step: int, steps_per_epoch: int, n_steps: int, cuts: int
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
        warmup = Duration.parse(config.warmup).steps(steps_per_epoch) if config.warmup else 0
        if step < warmup:
            return float(base * (step + 1) / warmup)
        progress = (step - warmup) / max(1, n_steps - warmup)
        return float(base * 0.5 * (1 + math.cos(math.pi * progress)))
    return float(base)
