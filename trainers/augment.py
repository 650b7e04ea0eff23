"""Augmentation through albumentations: named policies, or a list of its operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.data import seed_of

Photo = NDArray[np.uint8]  # (H, W, 3)

POLICIES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "basic": [
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "Affine", "translate_percent": 0.06, "scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7},
    ],
    "strong": [
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "Affine", "translate_percent": 0.1, "scale": [0.8, 1.2], "rotate": [-20, 20], "p": 0.8},
        {"name": "ColorJitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05, "p": 0.8},
        {"name": "GaussianBlur", "p": 0.2},
        {"name": "CoarseDropout", "p": 0.3},
    ],
    "contest": [{"name": "HorizontalFlip", "p": 0.5}, {"name": "Erasing", "p": 0.5}],
}
"""`contest` is what the team had: flip and random erasing (Zhong et al. 2020)."""


def build(policy: str | list[dict[str, Any]]) -> Callable[[Photo, int], Photo] | None:
    """Return a function (photo, seed) -> photo, or None where nothing is to be done.

    Raises:
        ValueError: albumentations has no such operation, or it does not take these settings.
    """
    ops = POLICIES[policy] if isinstance(policy, str) else policy
    if not ops:
        return None
    import albumentations  # noqa: PLC0415 - takes a second

    steps = []
    for op in ops:
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in op.items() if name != "name"}
        kind = getattr(albumentations, str(op.get("name")), None)
        if kind is None:
            raise ValueError(f"train.augment.policy: albumentations has no operation {op.get('name')!r}")
        try:
            steps.append(kind(**settings))
        except (TypeError, ValueError) as error:
            raise ValueError(f"train.augment.policy: {op['name']} does not take {settings}: {error}") from None
    compose = albumentations.Compose(steps)

    def run(photo: Photo, seed: int) -> Photo:
        compose.set_random_seed(seed)
        out: Photo = compose(image=photo)["image"]
        return out

    return run


def sample_seed(seed: int, epoch: int, row: int) -> int:
    """Derive the seed of one sample, whoever loads it."""
    return seed_of(seed, "augment", epoch, row)
