"""The adapter of rembg: from a photo to the share of each pixel that belongs to the person."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.images import RGB
from data_prep.weights import WeightsError, fetch

LOCAL_MODELS = ("u2netp", "u2net")
"""Models whose weights are verified here. rembg's own default is a large non-commercial one, two send photos away."""


def open_session(model: str, threads: int) -> Any:
    """Load a background model on the CPU or GPU that onnxruntime has.

    Args:
        model: one of LOCAL_MODELS.
        threads: of onnxruntime; two sessions of two threads on two cores lose a quarter against two of one.

    Raises:
        WeightsError: the model is unknown or its file is missing.
    """
    if model not in LOCAL_MODELS:
        raise WeightsError(f"background model {model!r}: required one of {', '.join(LOCAL_MODELS)}")
    os.environ["U2NET_HOME"] = str(fetch(model).parent)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # rembg's new_session reads it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rembg import new_session  # noqa: PLC0415
    return new_session(model)


def person_mask(session: Any, photo: RGB) -> NDArray[np.uint8] | None:
    """Return the person's mask, (H, W) uint8 from 0 to 255; None where the model saw nothing or everything alike.

    A constant answer divides by zero inside rembg 2.0.86 and comes back as NaN or as noise.
    """
    from PIL import Image  # noqa: PLC0415
    from rembg import remove  # noqa: PLC0415

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        mask = np.asarray(remove(Image.fromarray(photo), session=session, only_mask=True))
    if mask.ndim != 2 or mask.max() == mask.min():
        return None
    return mask


def lay_over(photo: RGB, mask: NDArray[np.uint8], fill: list[int]) -> RGB:
    """Blend a photo into one color outside its mask."""
    alpha = mask.astype(np.float32)[..., None] / 255.0
    return (photo * alpha + np.asarray(fill, np.float32) * (1.0 - alpha) + 0.5).astype(np.uint8)
