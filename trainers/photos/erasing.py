"""Random erasing on one photo (Zhong et al. 2020)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from trainers.photos.operations import Photo
from trainers.settings.policies import Erasing

_TRIES = 100  # the paper tries until a box fits
_IMAGENET_MEAN = (124, 116, 104)
_COLORS = {"mean": _IMAGENET_MEAN, "black": (0, 0, 0), "white": (255, 255, 255)}


@dataclass(frozen=True)
class Box:
    """A part of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


def erase(settings: Erasing, photo: Photo, rng: random.Random) -> None:
    """Paint over a box of the photo, with probability `p`; the photo is changed."""
    if rng.random() >= settings.p:
        return
    box = draw_box(settings, photo.shape[0], photo.shape[1], rng)
    if box is None:
        return
    part = photo[box.top : box.top + box.height, box.left : box.left + box.width]
    if settings.fill == "random":
        noise = np.frombuffer(rng.randbytes(part.size), np.uint8)
        part[:] = noise.reshape(part.shape)
    else:
        part[:] = _COLORS[settings.fill]


def draw_box(settings: Erasing, height: int, width: int, rng: random.Random) -> Box | None:
    """Draw a box inside a photo (algorithm 1); None where none of 100 fits."""
    for _ in range(_TRIES):
        area = rng.uniform(*settings.area) * height * width
        aspect = rng.uniform(*settings.aspect)
        tall = round((area * aspect) ** 0.5)
        wide = round((area / aspect) ** 0.5)
        top = int(rng.random() * height)
        left = int(rng.random() * width)
        if tall and wide and top + tall <= height and left + wide <= width:
            return Box(top, left, tall, wide)
    return None
