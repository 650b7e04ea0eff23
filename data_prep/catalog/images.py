"""Photos as bytes and as arrays: checked before they are decoded, upright and RGB afterwards."""

from __future__ import annotations

import io
import os
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from data_prep.catalog.photo_paths import READS_HEIF

MAX_BYTES = 64 * 2**20
MEGAPIXELS_VARIABLE = "MAX_MEGAPIXELS"
_PILLOW_MEGAPIXELS = 178.0  # Pillow itself refuses more


def _max_pixels() -> int:
    text = os.environ.get(MEGAPIXELS_VARIABLE, "50")
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = 0.0
    if not 0 < megapixels <= _PILLOW_MEGAPIXELS:
        raise ValueError(
            f"{MEGAPIXELS_VARIABLE}: a number up to {_PILLOW_MEGAPIXELS:g} was required, "
            f"found {text!r}"
        )
    return int(megapixels * 1e6)


MAX_PIXELS = _max_pixels()
"""A 12,000 x 12,000 PNG of 410 kB decodes to 1.4 GB; the header is checked before any decoding.

The environment variable MAX_MEGAPIXELS changes it, for all workers.
"""
_OF_PILLOW = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FORMATS: tuple[str, ...] = (*_OF_PILLOW, "HEIF") if READS_HEIF else _OF_PILLOW
ALLOWED = "JPEG, PNG, WebP, BMP, GIF and TIFF"
"""Said in states of photos, so it is the same with and without a library for HEIC."""
JPEG_QUALITY = 95
_WHITES = (255, 1023, 4095, 65535)
"""White of 8, 10, 12 and 16 bits: cameras store 12 bits in 16, which would be nearly black."""

RGB = NDArray[np.uint8]  # (H, W, 3)
Pixels = NDArray[np.uint8]  # (H, W, 3), or (H, W, 4) with alpha


class PhotoError(ValueError):
    """A photo that cannot be used; the text is the reason that the catalog states."""


def decode(photo: bytes, *, fill: tuple[int, int, int] = (0, 0, 0), near: int | None = None) -> RGB:
    """Decode a photo upright (EXIF orientation applied) into RGB.

    Args:
        photo: the file's bytes.
        fill: what transparent pixels are laid over.
        near: a JPEG may be decoded at half, a quarter or an eighth of its size, if both sides stay above this.

    Returns:
        (H, W, 3) uint8.

    Raises:
        PhotoError: empty, too large, no image, of a format that is not allowed, truncated or broken.
    """
    with _opened(photo) as image:
        if near is not None and image.format == "JPEG":
            image.draft("RGB", (near, near))
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(np.asarray(_to_rgb(upright, fill)))
        except OSError as error:
            is_cut = "truncated" in str(error)
            raise PhotoError("truncated" if is_cut else f"broken: {error}") from None
        except (
            ValueError,
            SyntaxError,
            IndexError,
            TypeError,
            MemoryError,
            OverflowError,
            RuntimeError,
            EOFError,
        ) as error:
            raise PhotoError(f"broken: {error}") from None


def header_size(photo: bytes) -> tuple[int, int]:
    """Return the width and height that the header of a HEIC photo states; nothing is decoded.

    Raises:
        OSError: it is no such photo, or it is cut.
    """
    _register_heif()
    with Image.open(io.BytesIO(photo), formats=("HEIF",)) as image:
        return image.width, image.height


@lru_cache(maxsize=1)
def _register_heif() -> None:
    """Let Pillow open HEIC, upright as libheif turns it."""
    from pillow_heif import register_heif_opener  # noqa: PLC0415 - few data sets have any

    register_heif_opener(thumbnails=False)


def encode(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) uint8 as JPEG, and what has alpha as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    if pixels.shape[2] == 4:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def opaque(pixels: Pixels) -> RGB:
    """Lay what has alpha over black."""
    if pixels.shape[2] == 3:
        return pixels
    return np.asarray(_to_rgb(Image.fromarray(pixels), (0, 0, 0)))


def _opened(photo: bytes) -> ImageFile.ImageFile:
    if not photo:
        raise PhotoError("empty file")
    if len(photo) > MAX_BYTES:
        raise PhotoError(f"too large: more than {MAX_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            # our own limit stands below; Pillow's warning would only be printed
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if READS_HEIF and photo[4:8] == b"ftyp":
                _register_heif()
                image = Image.open(io.BytesIO(photo), formats=("HEIF",))
            else:
                image = Image.open(io.BytesIO(photo), formats=_OF_PILLOW)
    except Image.DecompressionBombError as error:
        raise PhotoError(f"too large: {error}") from None
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError):
        raise PhotoError(f"not an image ({ALLOWED})") from None
    if image.width * image.height > MAX_PIXELS:
        raise PhotoError(
            f"too large: {image.width}x{image.height}, at most {MAX_PIXELS / 1e6:g} megapixels; "
            f"the environment variable {MEGAPIXELS_VARIABLE} changes that"
        )
    return image


def _to_rgb(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":  # as in 16-bit PNGs and TIFFs
        array = np.asarray(image, dtype=np.float64)
        brightest = array.max(initial=0)
        top = next(float(limit) for limit in _WHITES if brightest <= limit or limit == _WHITES[-1])
        image = Image.fromarray((array * (255.0 / top)).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        canvas = Image.new("RGBA", over.size, (*fill, 255))
        return Image.alpha_composite(canvas, over).convert("RGB")
    return image.convert("RGB")
