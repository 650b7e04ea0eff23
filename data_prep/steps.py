"""What identifies a preparation: the steps, their versions and their weights. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from data_prep.config import CropFace, Prep, RemoveBackground
from data_prep.section import identity
from data_prep.weights import hashes, known

ENCODING = "jpeg q95 4:4:4"
VERSIONS = {"remove_background": 1, "crop_face": 1, "center_crop": 1, "keep_aspect": 1, "resize": 1}
"""Raise one by hand when its step gives other pixels; everything prepared with it is then prepared again."""


def steps_identity(prep: Prep) -> list[Any]:
    """Return JSON that is equal exactly when two preparations give equal samples."""
    found: list[Any] = [ENCODING]
    for step in prep.steps:
        weights = (
            step.model if isinstance(step, RemoveBackground) else step.detector if isinstance(step, CropFace) else None
        )
        found.append(
            {
                "step": identity(step),
                "version": VERSIONS[step.name],
                "weights": hashes(weights) if weights in known() else weights,
            }
        )
    return found
