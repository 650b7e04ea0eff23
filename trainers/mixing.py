"""CutMix and MixUp on a batch: photos mixed, targets mixed exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import Augment, HalfCutMix, OfflineMixUp, OnlineMixUp, RandomCutMix
from trainers.data import Ints, Mixable, seed_of


@dataclass(frozen=True)
class MixedBatch:
    """Photos, the partner of each sample, and how much of a sample is its own."""

    x: Tensor  # (B, C, H, W), float where photos are blended
    partner: Tensor  # (B,) int64
    weight: Tensor  # (B,) float in [0, 1]


def half_cutmix(x: Tensor, partner: Tensor) -> MixedBatch:
    """Replace the right half of each photo by that of its partner.

    The weight is the share of columns that stay: one half, or (W - 1) / 2W of an odd width.

    Raises:
        ValueError: `partner` is not a permutation of the batch.
    """
    _check(x, partner)
    width = x.shape[3]
    middle = width // 2
    mixed = x.clone()
    mixed[:, :, :, middle:] = x[partner][:, :, :, middle:]
    return MixedBatch(mixed, partner, torch.full((len(x),), middle / width))


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
    """Blend each photo with its partner's (Zhang et al. 2018, eq. 1); a photo that is its own partner stays."""
    _check(x, partner)
    weight = torch.where(partner == torch.arange(len(x)), 1.0, lam)
    return MixedBatch(
        torch.lerp(x[partner].float(), x.float(), weight.view(-1, 1, 1, 1)), partner, weight
    )


def mix(
    x: Tensor, config: Augment, rng: np.random.Generator, fits: NDArray[np.bool_] | None = None
) -> MixedBatch | None:
    """Mix a batch as the spec says, CutMix and MixUp never both; None where it stays as it is.

    Args:
        x: (B, C, H, W), not modified.
        config: the spec's section.
        rng: of this epoch.
        fits: (B,) which samples online MixUp may mix; None for all.
    """
    cutmix: Any = config.cutmix
    if isinstance(cutmix, HalfCutMix | RandomCutMix) and rng.random() < cutmix.p:
        partner = torch.from_numpy(rng.permutation(len(x)))
        if isinstance(cutmix, HalfCutMix):
            return half_cutmix(x, partner)
        return random_cutmix(
            x,
            partner,
            float(rng.beta(cutmix.alpha, cutmix.alpha)),
            (float(rng.random()), float(rng.random())),
        )
    if isinstance(config.mixup, OnlineMixUp):
        order, chosen = (
            np.arange(len(x)),
            np.flatnonzero(fits) if fits is not None else np.arange(len(x)),
        )
        order[chosen] = rng.permutation(chosen)
        return mixup(
            x, torch.from_numpy(order), float(rng.beta(config.mixup.alpha, config.mixup.alpha))
        )
    return None


def offline_pairs(config: OfflineMixUp, rows: Ints, mixable: Mixable, *, seed: int) -> Ints:
    """Choose the parents of the extra samples: a pure function of its arguments.

    Every row that fits is a first parent `ratio` times (of a broken part, some are). Its partner is drawn among the
    rows that fit, have the same `within` and another group; a row without one is left out.

    Args:
        config: the spec's section.
        rows: the training part; no other row can become a parent.
        mixable: of all rows.
        seed: of the trial.

    Returns:
        (M, 2) row numbers.
    """
    rng = np.random.default_rng(seed_of(seed, "offline mixup"))
    fitting = np.sort(rows[mixable.fits[rows]])
    whole, part = divmod(config.ratio, 1.0)
    firsts = [rng.permutation(fitting) for _ in range(int(whole))]
    firsts.append(rng.permutation(fitting)[: round(part * len(fitting))])
    pairs = []
    for first in np.concatenate(firsts).tolist():
        others = fitting[
            (mixable.within[fitting] == mixable.within[first])
            & (mixable.group[fitting] != mixable.group[first])
        ]
        if len(others):
            pairs.append((first, int(rng.choice(others))))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _check(x: Tensor, partner: Tensor) -> None:
    if not torch.equal(partner.sort().values, torch.arange(len(x))):
        raise ValueError(
            f"a permutation of {len(x)} samples was required, found {partner.tolist()[:8]}"
        )
