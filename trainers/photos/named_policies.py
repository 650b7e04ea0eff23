"""RandAugment, TrivialAugment and AugMix on one photo: pure functions of photo, generator, settings.

The ranges are those of the papers' code as torchvision has them (its module `autoaugment`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from trainers.photos.operations import OPERATIONS, Fill, Photo
from trainers.settings.policies import AugMix, NamedPolicy, RandAugment, TrivialAugment

_MAGNITUDES = 30  # the largest of RandAugment and TrivialAugment; the least is 0
_SEVERITIES = 9  # the largest of AugMix; the least is 0
PhotoPolicy = Callable[[Photo, random.Random], Photo]


@dataclass(frozen=True)
class Strength:
    """How strong an operation is at level 0 and at level 1."""

    weakest: float = 0.0
    strongest: float = 0.0
    is_signed: bool = False  # either direction, by chance
    is_share: bool = False  # of the photo's side; else in the unit of the operation
    is_whole: bool = False

    def at_level(self, level: float, side: int) -> float:
        """Return the strength at a level from 0 to 1 on a photo with a side of so many pixels."""
        strength = self.weakest + level * (self.strongest - self.weakest)
        if self.is_whole:
            return round(strength)
        return strength * side if self.is_share else strength


Space = Mapping[str, Strength]  # operation -> its strengths

_COLORS = ("brightness", "color", "contrast", "sharpness")
_RAND_AUGMENT: Space = {
    "identity": Strength(),
    **dict.fromkeys(("shear_x", "shear_y"), Strength(0, 0.3, is_signed=True)),
    **dict.fromkeys(
        ("translate_x", "translate_y"), Strength(0, 150 / 331, is_signed=True, is_share=True)
    ),
    "rotate": Strength(0, 30, is_signed=True),
    **dict.fromkeys(_COLORS, Strength(0, 0.9, is_signed=True)),
    "posterize": Strength(8, 4, is_whole=True),
    "solarize": Strength(255, 0),
    "auto_contrast": Strength(),
    "equalize": Strength(),
}
_WIDE: Space = {
    "identity": Strength(),
    **dict.fromkeys(("shear_x", "shear_y"), Strength(0, 0.99, is_signed=True)),
    **dict.fromkeys(("translate_x", "translate_y"), Strength(0, 32, is_signed=True)),
    "rotate": Strength(0, 135, is_signed=True),
    **dict.fromkeys(_COLORS, Strength(0, 0.99, is_signed=True)),
    "posterize": Strength(8, 2, is_whole=True),
    "solarize": Strength(255, 0),
    "auto_contrast": Strength(),
    "equalize": Strength(),
}
_AUG_MIX: Space = {
    **dict.fromkeys(("shear_x", "shear_y"), Strength(0, 0.3, is_signed=True)),
    **dict.fromkeys(
        ("translate_x", "translate_y"), Strength(0, 1 / 3, is_signed=True, is_share=True)
    ),
    "rotate": Strength(0, 30, is_signed=True),
    "posterize": Strength(4, 0, is_whole=True),
    "solarize": Strength(255, 0),
    "auto_contrast": Strength(),
    "equalize": Strength(),
}
_AUG_MIX_ALL: Space = {**_AUG_MIX, **dict.fromkeys(_COLORS, Strength(0, 0.9, is_signed=True))}


def photo_policy(settings: NamedPolicy) -> PhotoPolicy:
    """Return (photo, generator) -> another photo, or the same where nothing was drawn."""
    if isinstance(settings, RandAugment):
        return partial(_rand_augment, settings)
    if isinstance(settings, TrivialAugment):
        return partial(_trivial_augment, settings)
    return partial(_aug_mix, settings)


def space_of(settings: NamedPolicy) -> Space:
    """Return the operations of a policy and their strengths."""
    if isinstance(settings, AugMix):
        return _AUG_MIX_ALL if settings.all_operations else _AUG_MIX
    if isinstance(settings, TrivialAugment) and settings.space == "wide":
        return _WIDE
    return _RAND_AUGMENT


def _rand_augment(settings: RandAugment, photo: Photo, rng: random.Random) -> Photo:
    photo = _flipped(settings, photo, rng)
    for _ in range(settings.n):
        photo = _changed(settings, photo, rng, settings.magnitude / _MAGNITUDES)
    return photo


def _trivial_augment(settings: TrivialAugment, photo: Photo, rng: random.Random) -> Photo:
    photo = _flipped(settings, photo, rng)
    level = _drawn(rng, _MAGNITUDES + 1) / _MAGNITUDES
    return _changed(settings, photo, rng, level)


def _aug_mix(settings: AugMix, photo: Photo, rng: random.Random) -> Photo:
    """Blend the photo with chains (algorithm of section 3 of the paper)."""
    photo = _flipped(settings, photo, rng)
    share = rng.betavariate(settings.alpha, settings.alpha)  # of the chains
    draws = [rng.gammavariate(settings.alpha, 1.0) for _ in range(settings.width)]
    total = photo.astype(np.float32) * np.float32(1 - share)
    for draw in draws:
        chained = photo
        depth = settings.depth or 1 + _drawn(rng, 3)
        for _ in range(depth):
            level = _drawn(rng, settings.severity) / _SEVERITIES
            chained = _changed(settings, chained, rng, level)
        total = cv2.scaleAdd(chained.astype(np.float32), share * draw / sum(draws), total)
    return np.asarray(cv2.convertScaleAbs(total), np.uint8)  # rounds to the nearest


def _flipped(settings: NamedPolicy, photo: Photo, rng: random.Random) -> Photo:
    if rng.random() < settings.flip:
        return np.asarray(cv2.flip(photo, 1), np.uint8)
    return photo


def _changed(settings: NamedPolicy, photo: Photo, rng: random.Random, level: float) -> Photo:
    """Apply an operation of the policy that is drawn."""
    space = space_of(settings)
    name = tuple(space)[_drawn(rng, len(space))]
    side = photo.shape[0] if name == "translate_y" else photo.shape[1]
    strength = space[name].at_level(level, side)
    if space[name].is_signed and rng.random() < 0.5:
        strength = -strength
    red, green, blue = settings.fill
    fill: Fill = (red, green, blue)
    return OPERATIONS[name](photo, strength, fill)


def _drawn(rng: random.Random, n: int) -> int:
    """Draw one of n numbers from 0."""
    return int(rng.random() * n)
