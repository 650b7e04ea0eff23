"""CutMix and MixUp on a batch: photos mixed, targets mixed by the exact share of each photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.data import Ints, Mixable, seed_of
from trainers.settings.augment import Augment, HalfCutMix, OfflineMixUp, OnlineMixUp, RandomCutMix


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
    _check_permutation(x, partner)
    width = x.shape[3]
    middle = width // 2
    mixed = x.clone()
    mixed[:, :, :, middle:] = x[partner][:, :, :, middle:]
    return MixedBatch(mixed, partner, torch.full((len(x),), middle / width))


def random_cutmix(
    x: Tensor, partner: Tensor, lam: float, center: tuple[float, float]
) -> MixedBatch:
    """Replace a box of area 1 - lam by the partner's (Yun et al. 2019, eq. 1 and 2).

    Args:
        x: (B, C, H, W), not modified.
        partner: (B,) a permutation of the batch.
        lam: share of a photo that stays before the box is clipped.
        center: of the box, as shares of height and width.

    Returns:
        The mixed batch; its weight is the share that stays after clipping.
    """
    _check_permutation(x, partner)
    height, width = x.shape[2:]
    rows = _clipped(center[0], np.sqrt(1.0 - lam), height)
    columns = _clipped(center[1], np.sqrt(1.0 - lam), width)
    mixed = x.clone()
    mixed[:, :, rows, columns] = x[partner][:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return MixedBatch(mixed, partner, torch.full((len(x),), 1.0 - area / (height * width)))


def _clipped(center: float, side: float, n_pixels: int) -> slice:
    """Return the pixels of an interval that is given as shares of `n_pixels`."""
    start = int(np.clip(round((center - side / 2) * n_pixels), 0, n_pixels))
    stop = int(np.clip(round((center + side / 2) * n_pixels), 0, n_pixels))
    return slice(start, stop)


def mixup(x: Tensor, partner: Tensor, lam: float) -> MixedBatch:
    """Blend each photo with its partner's (Zhang et al. 2018, eq. 1).

    A photo that is its own partner stays as it is.
    """
    _check_permutation(x, partner)
    weight = torch.where(partner == torch.arange(len(x)), 1.0, lam)
    blended = torch.lerp(x[partner].float(), x.float(), weight.view(-1, 1, 1, 1))
    return MixedBatch(blended, partner, weight)


def mix(
    x: Tensor, config: Augment, rng: np.random.Generator, fits: NDArray[np.bool_] | None = None
) -> MixedBatch | None:
    """Mix a batch as the spec says, CutMix and MixUp never both; None where it stays as it is.

    Args:
        x: (B, C, H, W), not modified.
        config: the spec's section.
        rng: of this epoch.
        fits: (B,) True for the samples that online MixUp may mix; None for all.
    """
    cutmix = config.cutmix
    if isinstance(cutmix, HalfCutMix | RandomCutMix) and rng.random() < cutmix.p:
        partner = torch.from_numpy(rng.permutation(len(x)))
        if isinstance(cutmix, HalfCutMix):
            return half_cutmix(x, partner)
        lam = float(rng.beta(cutmix.alpha, cutmix.alpha))
        center = (float(rng.random()), float(rng.random()))
        return random_cutmix(x, partner, lam, center)
    if isinstance(config.mixup, OnlineMixUp):
        partners = np.arange(len(x))
        mixable = np.arange(len(x)) if fits is None else np.flatnonzero(fits)
        partners[mixable] = rng.permutation(mixable)
        lam = float(rng.beta(config.mixup.alpha, config.mixup.alpha))
        return mixup(x, torch.from_numpy(partners), lam)
    return None


def offline_pairs(config: OfflineMixUp, rows: Ints, mixable: Mixable, *, seed: int) -> Ints:
    """Choose the parents of the extra samples: a pure function of its arguments.

    Every row that fits is a first parent `ratio` times (of the fraction of `ratio`, some rows are).
    Its partner is drawn among the rows that fit, have the same `within` and another group. A row
    without a partner is left out.

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
    n_rounds, fraction = divmod(config.ratio, 1.0)
    firsts = [rng.permutation(fitting) for _ in range(int(n_rounds))]
    firsts.append(rng.permutation(fitting)[: round(fraction * len(fitting))])
    pairs = []
    for first in np.concatenate(firsts).tolist():
        is_partner = (mixable.within[fitting] == mixable.within[first]) & (
            mixable.group[fitting] != mixable.group[first]
        )
        if is_partner.any():
            pairs.append((first, int(rng.choice(fitting[is_partner]))))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _check_permutation(x: Tensor, partner: Tensor) -> None:
    if not torch.equal(partner.sort().values, torch.arange(len(x))):
        raise ValueError(
            f"a permutation of {len(x)} samples was required, found {partner.tolist()[:8]}"
        )
