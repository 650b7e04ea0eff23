"""The operations that named policies share, each on one photo of 8 bits.

They have the meaning of Pillow's and torchvision's. Strengths are in the unit of each function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Photo = NDArray[np.uint8]  # (H, W, 3)
Fill = tuple[int, int, int]
PhotoOperation = Callable[[Photo, float, Fill], Photo]  # photo, strength, fill -> another photo

_LEVELS = np.arange(256, dtype=np.float64)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH


def identity(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Return the photo as it is."""
    del strength, fill
    return photo


def shear_x(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Shift each row by `strength` times its distance from the top."""
    return _warped(photo, [[1, strength, strength / 2], [0, 1, 0]], fill)


def shear_y(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Shift each column by `strength` times its distance from the left."""
    return _warped(photo, [[1, 0, 0], [strength, 1, strength / 2]], fill)


def translate_x(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Shift to the right by whole pixels."""
    return _warped(photo, [[1, 0, -int(strength)], [0, 1, 0]], fill)


def translate_y(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Shift down by whole pixels."""
    return _warped(photo, [[1, 0, 0], [0, 1, -int(strength)]], fill)


def rotate(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Turn by degrees about the center, against the clock."""
    height, width = photo.shape[:2]
    turn = np.deg2rad(strength)
    cos = float(np.cos(turn))
    sin = float(np.sin(turn))
    x = (width - 1) / 2
    y = (height - 1) / 2
    from_output = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    return _warped(photo, from_output, fill)


def brightness(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Multiply every value by 1 + strength."""
    del fill
    return _looked_up(photo, _LEVELS * (1 + strength))


def color(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Move away from the gray photo by `strength`; -1 is the gray photo."""
    del fill
    gray = cv2.cvtColor(_gray(photo), cv2.COLOR_GRAY2RGB)
    return _blended(photo, gray, strength)


def contrast(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Move every value away from the mean of the gray photo by `strength`."""
    del fill
    mean = cv2.mean(_gray(photo))[0]
    return _looked_up(photo, mean + (_LEVELS - mean) * (1 + strength))


def sharpness(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Move away from the smoothed photo by `strength`; the border of one pixel stays."""
    del fill
    smooth = photo.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(photo, -1, _SMOOTH)[1:-1, 1:-1]
    return _blended(photo, smooth, strength)


def posterize(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Keep the highest bits of every value, as many as `strength`."""
    del fill
    kept = 256 - 2 ** (8 - int(strength))
    return np.bitwise_and(photo, np.uint8(kept))


def solarize(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Invert the values from `strength` on."""
    del fill
    return _looked_up(photo, np.where(strength > _LEVELS, _LEVELS, 255 - _LEVELS))


def auto_contrast(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Stretch each channel to the values from 0 to 255."""
    del strength, fill
    table = np.empty((1, 256, 3))
    for channel, counts in enumerate(_histograms(photo)):
        present = np.flatnonzero(counts)
        low = present[0]
        high = present[-1]
        scale = 255 / (high - low) if high > low else 1.0
        table[0, :, channel] = (_LEVELS - (low if high > low else 0)) * scale
    return _looked_up(photo, table)


def equalize(photo: Photo, strength: float, fill: Fill) -> Photo:
    """Level the histogram of each channel, by Pillow's rule."""
    del strength, fill
    table = np.empty((1, 256, 3))
    for channel, counts in enumerate(_histograms(photo)):
        last = counts[np.flatnonzero(counts)[-1]]
        step = (counts.sum() - last) // 255
        table[0, :, channel] = _LEVELS
        if step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table[0, :, channel] = (before + step // 2) // step
    return _looked_up(photo, table)


OPERATIONS: dict[str, PhotoOperation] = {
    "identity": identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
}


def _warped(photo: Photo, from_output: Sequence[Sequence[float]], fill: Fill) -> Photo:
    """Return the photo whose pixel (x, y) is that of the photo at `from_output` times (x, y, 1)."""
    height, width = photo.shape[:2]
    warped: Any = cv2.warpAffine(
        photo,
        np.array(from_output, np.float64),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    return warped


def _looked_up(photo: Photo, values: NDArray[np.float64]) -> Photo:
    """Replace every value by that of a table, (256,) or (1, 256, 3), cut to 0 to 255."""
    table = np.clip(values, 0, 255).astype(np.uint8)
    result: Any = cv2.LUT(photo, table)
    return result


def _blended(photo: Photo, other: Photo, strength: float) -> Photo:
    result: Any = cv2.addWeighted(photo, 1 + strength, other, -strength, 0)
    return result


def _gray(photo: Photo) -> NDArray[np.uint8]:
    gray: Any = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    return gray


def _histograms(photo: Photo) -> list[NDArray[np.int64]]:
    """Return how often each channel has each value, three times (256,)."""
    histograms = []
    for channel in range(3):
        counts = cv2.calcHist([photo], [channel], None, [256], [0, 256])
        histograms.append(counts[:, 0].astype(np.int64))
    return histograms
