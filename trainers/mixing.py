"""CutMix and MixUp on a batch: photos mixed, targets mixed exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config import Augment, HalfCutMix, OnlineMixUp, RandomCutMix


@dataclass(frozen=True)
class MixedBatch:
    """Photos, the partner of each sample, and how much of a sample is its own."""

    x: Tensor  # (B, C, H, W) float
    partner: Tensor  # (B,) int64
    weight: Tensor  # (B,) float in [0, 1]


def unmixed(x: Tensor) -> MixedBatch:
    """Return the batch as it is."""
    return MixedBatch(x, torch.arange(len(x)), torch.ones(len(x)))


def half_cutmix(x: Tensor, partner: Tensor) -> MixedBatch:
    """Replace the right half of each photo by that of its partner; targets half and half.

    Raises:
        ValueError: `partner` is not a permutation of the batch.
    """
    _check(x, partner)
    mixed, middle = x.clone(), x.shape[3] // 2
    mixed[:, :, :, middle:] = x[partner][:, :, :, middle:]
    return MixedBatch(mixed, partner, torch.full((len(x),), 0.5))


def random_cutmix(x: Tensor, partner: Tensor, lam: float, at: tuple[float, float]) -> MixedBatch:
    """Replace a box of area 1 - lam by the partner's (Yun et al. 2019, eq. 1 and 2).

    Args:
        x: (B, C, H, W), not modified.
        partner: (B,) a permutation of the batch.
        lam: share of the own photo before the box is clipped.
        at: center of the box as shares of height and width.

    Returns:
        The mixed batch; its weight is the share that is really left.
    """
    _check(x, partner)
    height, width = x.shape[2:]
    half = np.sqrt(1.0 - lam) / 2
    top, bottom = (int(np.clip(round((at[0] + s * half) * height), 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(round((at[1] + s * half) * width), 0, width)) for s in (-1, 1))
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[partner][:, :, top:bottom, left:right]
    left_over = 1.0 - (bottom - top) * (right - left) / (height * width)
    return MixedBatch(mixed, partner, torch.full((len(x),), left_over))


def mixup(x: Tensor, partner: Tensor, lam: float) -> MixedBatch:
    """Blend each photo with its partner's (Zhang et al. 2018, eq. 1)."""
    _check(x, partner)
    return MixedBatch(lam * x + (1 - lam) * x[partner], partner, torch.full((len(x),), lam))


def mix(x: Tensor, config: Augment, rng: np.random.Generator) -> MixedBatch:
    """Mix a batch as the spec says; CutMix and MixUp never both."""
    cutmix: Any = config.cutmix
    if isinstance(cutmix, HalfCutMix | RandomCutMix) and rng.random() < cutmix.p:
        partner = torch.from_numpy(rng.permutation(len(x)))
        if isinstance(cutmix, HalfCutMix):
            return half_cutmix(x, partner)
        return random_cutmix(
            x, partner, float(rng.beta(cutmix.alpha, cutmix.alpha)), (float(rng.random()), float(rng.random()))
        )
    if isinstance(config.mixup, OnlineMixUp):
        partner = torch.from_numpy(rng.permutation(len(x)))
        return mixup(x, partner, float(rng.beta(config.mixup.alpha, config.mixup.alpha)))
    return unmixed(x)


def _check(x: Tensor, partner: Tensor) -> None:
    if not torch.equal(partner.sort().values, torch.arange(len(x))):
        raise ValueError(f"a permutation of {len(x)} samples was required, found {partner.tolist()[:8]}")
