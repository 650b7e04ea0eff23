"""From a photo's bytes to a prepared sample: the one path for training, validation, test and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_prep import background, faces
from data_prep.config import CenterCrop, CropFace, KeepAspect, Prep, RemoveBackground, Resize
from data_prep.images import RGB, decode, encode


class Dropped(Exception):  # noqa: N818 - an outcome, not a fault
    """A step's policy leaves this sample out."""


@dataclass(frozen=True)
class Prepared:
    """A sample as it stands in a shard."""

    image: bytes
    face_box: list[float] | None  # x0, y0, x1, y1 as shares of the photo at the step that looked
    face_confidence: float | None
    mask_area: float | None
    outcome: str


@dataclass
class _Notes:
    """What the steps found on the way through one photo."""

    always: bool
    face_box: list[float] | None = None
    face_confidence: float | None = None
    mask_area: float | None = None
    outcomes: list[str] = field(default_factory=list)


class Preparation:
    """The steps of a spec with their models loaded, ready for photo after photo."""

    def __init__(self, prep: Prep, *, threads: int = 1) -> None:
        """Load what the steps need.

        Args:
            prep: the spec's section.
            threads: of every library inside, so that workers beside each other do not fight for cores.
        """
        self.prep = prep
        self._run = [_BUILDERS[step.name](step, threads) for step in prep.steps]

    def __call__(self, photo: bytes, *, always: bool = False) -> Prepared:
        """Prepare one photo.

        Args:
            photo: the file's bytes.
            always: answer even where a step's policy would drop the sample (test photos and `predict`).

        Raises:
            PhotoError: the photo cannot be decoded.
            Dropped: a step's policy leaves it out.
        """
        notes = _Notes(always)
        pixels = decode(photo)
        for step in self._run:
            pixels = step(pixels, notes)
        return Prepared(
            encode(pixels), notes.face_box, notes.face_confidence, notes.mask_area, "; ".join(notes.outcomes) or "ok"
        )


_Run = Callable[[RGB, _Notes], RGB]


def _remove_background(step: RemoveBackground, threads: int) -> _Run:
    session = background.open_session(step.model, threads)

    def run(pixels: RGB, notes: _Notes) -> RGB:
        mask = background.person_mask(session, pixels)
        if mask is None:
            notes.outcomes.append("background kept: empty mask")
            notes.mask_area = 0.0
            return pixels
        notes.mask_area = float(mask.mean() / 255.0)
        return background.lay_over(pixels, mask, step.fill)

    return run


def _crop_face(step: CropFace, threads: int) -> _Run:
    import torch  # noqa: PLC0415 - the detector's library

    torch.set_num_threads(threads)
    detector = faces.open_detector(step.detector)

    def run(pixels: RGB, notes: _Notes) -> RGB:
        face = faces.main_face(detector, step.detector, pixels)
        if face is None:
            notes.face_confidence = 0.0
            if step.on_missing == "drop" and not notes.always:
                raise Dropped("no face")
            notes.outcomes.append("no face: whole photo" if step.on_missing == "keep" else "no face: center")
            return pixels if step.on_missing == "keep" else center(pixels, None)
        height, width = pixels.shape[:2]
        notes.face_box = [face.box[0] / width, face.box[1] / height, face.box[2] / width, face.box[3] / height]
        notes.face_confidence = face.confidence
        return around(pixels, face.box, step.margin)

    return run


def around(pixels: RGB, box: tuple[int, int, int, int], margin: float) -> RGB:
    """Cut a square around a box, widened by `margin` of its longer side on every side, clipped at the border."""
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) * (0.5 + margin)
    height, width = pixels.shape[:2]
    side = int(min(2 * half, width, height))
    left = int(min(max((x0 + x1) / 2 - side / 2, 0), width - side))
    top = int(min(max((y0 + y1) / 2 - side / 2, 0), height - side))
    return pixels[top : top + side, left : left + side]


def center(pixels: RGB, size: int | None) -> RGB:
    """Cut the central square of a size, at most the largest one."""
    height, width = pixels.shape[:2]
    side = min(size or min(height, width), height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _center_crop(step: CenterCrop, threads: int) -> _Run:
    del threads
    return lambda pixels, notes: center(pixels, step.size)  # noqa: ARG005


def _keep_aspect(step: KeepAspect, threads: int) -> _Run:
    del threads

    def run(pixels: RGB, notes: _Notes) -> RGB:
        del notes
        height, width = pixels.shape[:2]
        side = max(height, width)
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = step.fill
        top, left = (side - height) // 2, (side - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        return canvas

    return run


def _resize(step: Resize, threads: int) -> _Run:
    del threads

    def run(pixels: RGB, notes: _Notes) -> RGB:
        del notes
        if pixels.shape[:2] == (step.size, step.size):
            return pixels
        # Pillow's bilinear filter widens with the scale, so it does not alias when it shrinks
        small = Image.fromarray(np.ascontiguousarray(pixels)).resize((step.size, step.size), Image.Resampling.BILINEAR)
        return np.asarray(small)

    return run


_BUILDERS: dict[str, Callable[[Any, int], _Run]] = {
    "remove_background": _remove_background,
    "crop_face": _crop_face,
    "center_crop": _center_crop,
    "keep_aspect": _keep_aspect,
    "resize": _resize,
}
