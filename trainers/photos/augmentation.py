"""Augmentation: policies by name, or a list of albumentations' operations; then random erasing.

A flip alone, a policy of a paper and erasing need no albumentations.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.library_names import Operation
from trainers.own_parts import function_of, naming_lines
from trainers.preflight.augmentation_policies import build_operation, fault_of
from trainers.settings.augment import Policy
from trainers.settings.own_parts import OwnPart
from trainers.settings.policies import Erasing, NamedPolicy

# read when albumentations is imported, by whomever: it would ask the internet for its version
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Photos = NDArray[np.uint8]  # (B, H, W, 3)
Seeds = NDArray[np.uint64]  # (B,)
Augmentation = Callable[[Photos, Seeds], Photos]
_OF_ERASING = np.uint64(0xD1B54A32D192ED03)  # so that a box depends on no draw of the policy

_FLIP: Operation = {"name": "HorizontalFlip", "p": 0.5}
POLICIES: dict[str, list[Operation]] = {
    "none": [],
    "basic": [
        _FLIP,
        {
            "name": "Affine",
            "translate_percent": 0.06,
            "scale": [0.9, 1.1],
            "rotate": [-10, 10],
            "p": 0.7,
        },
    ],
    "strong": [
        _FLIP,
        {
            "name": "Affine",
            "translate_percent": 0.1,
            "scale": [0.8, 1.2],
            "rotate": [-20, 20],
            "p": 0.8,
        },
        {
            "name": "ColorJitter",
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
            "hue": 0.05,
            "p": 0.8,
        },
        {"name": "GaussianBlur", "p": 0.2},
        {"name": "CoarseDropout", "p": 0.3},
    ],
    "contest": [_FLIP, {"name": "Erasing", "p": 0.5}],
}
"""`contest` is what the contest's team had: flip and random erasing (Zhong et al. 2020)."""


def build(policy: Policy, erasing: Erasing | None = None) -> Augmentation | None:
    """Return a function (photos, seeds) -> photos that may write over them; None for no change.

    What happens to a photo depends on the photo and its seed alone, not on its batch or thread.

    Args:
        policy: of the spec.
        erasing: what is painted over after the policy.

    Raises:
        ValueError: albumentations has no such operation, or it does not take these settings.
    """
    changed = _policy(policy)
    if erasing is None:
        return changed
    erased = _photo_by_photo(_erasing(erasing))
    if changed is None:
        return erased
    first = changed

    def both(photos: Photos, seeds: Seeds) -> Photos:
        return erased(first(photos, seeds), seeds ^ _OF_ERASING)

    return both


def is_composed(policy: Policy, erasing: Erasing | None = None) -> bool:
    """Return True if photos go through Python one by one, which costs as much as the arithmetic."""
    if erasing is not None or not isinstance(policy, str | list):
        return True
    operations = _operations(policy)
    return len(operations) > 1 or any(each["name"] != "HorizontalFlip" for each in operations)


def _operations(policy: str | list[Operation]) -> list[Operation]:
    return POLICIES[policy] if isinstance(policy, str) else policy


def _policy(policy: Policy) -> Augmentation | None:
    """Return what a policy does to photos, None for nothing."""
    if isinstance(policy, OwnPart):
        return _photo_by_photo(_own(policy))
    if not isinstance(policy, str | list):
        return _photo_by_photo(_named(policy))
    operations = _operations(policy)
    if not operations:
        return None
    if not is_composed(policy):
        return _flip(float(operations[0].get("p", 0.5)))
    _Composed(operations)  # an error comes here and not in a thread
    per_thread = threading.local()

    def augment(photos: Photos, seeds: Seeds) -> Photos:
        if not hasattr(per_thread, "composed"):
            per_thread.composed = _Composed(operations)
        for index, seed in enumerate(seeds.tolist()):
            photos[index] = per_thread.composed(photos[index], seed)
        return photos

    return augment


def _photo_by_photo(change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]) -> Augmentation:
    def augment(photos: Photos, seeds: Seeds) -> Photos:
        for index, seed in enumerate(seeds.tolist()):
            photos[index] = change(photos[index], seed)
        return photos

    return augment


def _named(settings: NamedPolicy) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    from trainers.photos.named_policies import photo_policy  # noqa: PLC0415 - imports OpenCV

    change = photo_policy(settings)

    def changed(photo: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        return change(photo, random.Random(seed))  # noqa: S311 - no secret

    return changed


def _own(part: OwnPart) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    """Return what a user's function does to a photo; it gets a generator of the photo's seed."""
    function = function_of(part, None, None)  # an error comes here and not in a thread

    def changed(photo: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        with naming_lines():
            rng = np.random.default_rng(seed)
            result = np.asarray(function(photo.copy(), rng, **part.settings))
        fault = fault_of(result, photo)
        if fault is not None:
            raise ValueError(f"train.augment.policy: {part.use} {fault}")
        return result

    return changed


def _erasing(settings: Erasing) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    from trainers.photos.erasing import erase  # noqa: PLC0415 - imports OpenCV

    def erased(photo: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        erase(settings, photo, random.Random(seed))  # noqa: S311 - no secret
        return photo

    return erased


def sample_seeds(seed: int, epoch: int, rows: NDArray[np.int64]) -> Seeds:
    """Derive a seed per sample from (seed, epoch, row), whoever loads it and with which others.

    The finalizer of SplitMix64 (Steele et al. 2014, fig. 18) over row * golden ratio + key.
    """
    from trainers.data import seed_of  # noqa: PLC0415 - imports torch, which augmenting needs not

    key = np.uint64(seed_of(seed, "augment", epoch) << 32)
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _flip(p: float) -> Augmentation:
    import cv2  # noqa: PLC0415 - twenty times as fast as an index that runs backwards

    def flip(photos: Photos, seeds: Seeds) -> Photos:
        uniform = (seeds >> np.uint64(11)).astype(np.float64) * 2.0**-53
        for index in np.flatnonzero(uniform < p):
            photos[index] = cv2.flip(photos[index], 1)
        return photos

    return flip


class _Composed:
    """albumentations' Compose over one pair of generators that is seeded anew for each photo.

    Its own set_random_seed makes two generators per operation, which costs as much as a small
    operation.
    """

    def __init__(self, operations: list[Operation]) -> None:
        import albumentations  # noqa: PLC0415 - takes a second

        try:
            steps = [build_operation(operation) for operation in operations]
        except ValueError as error:
            raise ValueError(f"train.augment.policy: {error}") from None
        self._bits = np.random.PCG64(0)
        self._python = random.Random(0)  # noqa: S311 - no secret
        self._compose = albumentations.Compose(steps)
        self._compose.set_random_state(np.random.Generator(self._bits), self._python)

    def __call__(self, photo: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        state: Any = {"state": seed << 64 | seed, "inc": 1}
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": state,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._python.seed(seed)
        augmented: NDArray[np.uint8] = self._compose(image=photo)["image"]
        fault = fault_of(augmented, photo)
        if fault is not None:  # writing it into the batch would cast it in silence
            raise ValueError(f"train.augment.policy: an operation {fault}")
        return augmented
