"""What identifies a preparation: steps, their versions, their weights. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from data_prep.prep_config import CropFace, Prep, RemoveBackground, Step
from data_prep.section_base import identity
from data_prep.weights.cache import hashes

ENCODING = "jpeg q95 4:4:4"
DECODING = "large JPEGs at a power of two"
VERSIONS = {"remove_background": 3, "crop_face": 2, "center_crop": 1, "keep_aspect": 1, "resize": 1}
"""Raise one by hand when its step gives other pixels; everything is then prepared again."""


def steps_identity(prep: Prep) -> list[Any]:
    """Return JSON that is equal exactly when two preparations give equal samples."""
    parts: list[Any] = [DECODING, ENCODING]
    for step in prep.steps:
        entry: dict[str, Any] = {"step": identity(step), "version": VERSIONS[step.name]}
        name = weights_of(step)
        if name is not None:
            # a name only until they are fetched; nothing runs before
            entry["weights"] = hashes(name) or name
        parts.append(entry)
    return parts


def weights_of(step: Step) -> str | None:
    """Return the name of the weights that a step needs."""
    if isinstance(step, RemoveBackground):
        return step.model
    if isinstance(step, CropFace):
        return step.detector
    return None
