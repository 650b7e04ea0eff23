"""From a photo's bytes to a prepared sample: one path for training, validation, test, `predict`."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.catalog.images import (
    MAX_BYTES,
    MAX_PIXELS,
    PhotoError,
    Pixels,
    decode,
    encode,
    opaque,
)
from data_prep.errors import require_machine
from data_prep.prep_config import CenterCrop, CropFace, KeepAspect, Prep, RemoveBackground, Resize
from data_prep.preparation import background_removal, faces
from data_prep.preparation import step_films as sheet
from data_prep.preparation.shards import ShardRow
from data_prep.roots import places
from data_prep.roots.places import Read

OK = "ok"
_NETWORK_SIDE = 320  # of the photo that the background models see, in pixels
_STRIP_SIDE = 4096
"""Longer side of a strip that is padded to a square: one of 16,000 x 1 pixels took 1.8 GB."""
_STRIP_RATIO = 4  # of the sides; photos are not that long
_FACE_SHARE = 4  # a face fills at least a quarter of the photo's shorter side, it is assumed


class Dropped(Exception):  # noqa: N818 - an outcome, not a fault
    """A step's policy leaves this sample out."""


@dataclass(frozen=True)
class Prepared:
    """A sample as it stands in a shard."""

    image: bytes
    face_box: list[float] | None  # x0, y0, x1, y1 as shares of the photo at the crop's step
    face_confidence: float | None
    n_faces: int | None
    mask_area: float | None
    steps: list[str]  # the outcome of every step, "ok" or what it did instead

    @property
    def outcome(self) -> str:
        """What did not go as usual, joined by "; ", or "ok"."""
        return "; ".join(text for text in self.steps if text != OK) or OK


@dataclass
class _Notes:
    """What the steps say about one photo."""

    always: bool
    face_box: list[float] | None = None
    face_confidence: float | None = None
    n_faces: int | None = None
    mask_area: float | None = None
    outcome: str = OK  # of the step that runs


class Preparation:
    """The steps of a spec with their models loaded, ready for photo after photo."""

    def __init__(self, prep: Prep, *, threads: int = 1, gpu: bool = False) -> None:
        """Load what the steps need.

        Args:
            prep: the spec's section.
            threads: of every library inside, so that workers do not fight for cores.
            gpu: run the networks on CUDA.
        """
        import cv2  # noqa: PLC0415 - seconds, and only those who prepare need it

        cv2.setNumThreads(threads)
        self.prep = prep
        self.warnings: list[str] = []  # what the user should know, once
        self.seconds: dict[str, float] = defaultdict(float)  # spent so far, by step
        self._near = decode_near(prep)
        means = _Means(threads, gpu, self.warnings)
        self._run = [(step.name, _BUILDERS[step.name](step, means)) for step in prep.steps]

    def __call__(
        self, photo: bytes, *, always: bool = False, watch: Callable[[Pixels], None] | None = None
    ) -> Prepared:
        """Prepare one photo.

        Args:
            photo: the file's bytes.
            always: answer even if a step's policy drops the sample (test photos and `predict`).
            watch: gets the decoded photo, and what every step makes of it.

        Raises:
            PhotoError: the photo cannot be decoded.
            Dropped: a step's policy leaves it out.
        """
        notes = _Notes(always)
        outcomes = []
        began = time.perf_counter()
        pixels: Pixels = decode(photo, near=self._near)
        began = self._clock("decode", began)
        for name, step in self._run:
            if watch:
                watch(pixels)
            notes.outcome = OK
            pixels = step(pixels, notes)
            outcomes.append(notes.outcome)
            began = self._clock(name, began)
        if watch:
            watch(pixels)
        image = encode(pixels)
        self._clock("encode", began)
        return Prepared(
            image, notes.face_box, notes.face_confidence, notes.n_faces, notes.mask_area, outcomes
        )

    def _clock(self, name: str, began: float) -> float:
        """Add the seconds since `began` to a step; return the time now."""
        now = time.perf_counter()
        self.seconds[name] += now - began
        return now


def decode_near(prep: Prep) -> int | None:
    """Return how small a large JPEG may be decoded without a loss that the steps would show.

    Returns:
        The shorter side in pixels; None if the steps count in the photo's own pixels.
    """
    size = prep.size * 2
    for step in prep.steps:
        if isinstance(step, CenterCrop) and step.size is not None:
            return None
    if any(isinstance(step, CropFace) for step in prep.steps):
        size *= _FACE_SHARE
    return max(_NETWORK_SIDE, size)


Row = tuple[str, str, str]
"""sample_id, path or URL, and sha256 of a photo."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one photo: a row of a shard, or the reason why there is none."""

    sample: str
    row: ShardRow | None
    reason: str | None
    film: sheet.Film | None = None  # of a photo that is worth a look
    is_transient: bool = False  # the reason does not follow from the bytes, a retry may succeed


def prepare_row(
    row: Row,
    preparation: Callable[..., Prepared],
    *,
    show: bool = False,
    read: Read | None = None,
) -> Outcome:
    """Read a photo of the catalog and prepare it; whatever is wrong with the photo is its outcome.

    Args:
        row: the photo; without a sha256 it is accepted as it is.
        preparation: a `Preparation`.
        show: keep small pictures of every step, as an ordinary example.
        read: returns the photo's content, where it was asked for in advance.

    Raises:
        MachineError: it could not be read, and that says nothing about the photo.
    """
    sample, path, sha256 = row
    frames: list[Pixels] = []
    try:
        content = places.read(path, MAX_BYTES) if read is None else read()
    except OSError as error:
        require_machine(error, path, _images(sample, path))
        reason = f"unreadable: {error.strerror or error}"
        return Outcome(sample, None, reason, is_transient=True)
    if content.size_bytes > MAX_BYTES and not sha256:
        return Outcome(sample, None, f"too large: more than {MAX_BYTES} bytes")
    photo = content.data
    if sha256 and hashlib.sha256(photo).hexdigest() != sha256:
        return Outcome(sample, None, "changed since the catalog was made", is_transient=True)
    try:
        prepared = preparation(photo, always=sample.startswith("test/"), watch=frames.append)
    except (PhotoError, Dropped) as error:
        return Outcome(sample, None, str(error))
    except Exception as error:  # noqa: BLE001 - one photo must not cost the shard
        # it may have lacked memory
        return Outcome(sample, None, f"{type(error).__name__}: {error}", is_transient=True)
    shard_row: ShardRow = {
        "sample_id": sample,
        "sha256": sha256,
        "image": prepared.image,
        "face_box": prepared.face_box,
        "face_confidence": prepared.face_confidence,
        "n_faces": prepared.n_faces,
        "mask_area": prepared.mask_area,
        "outcome": prepared.outcome,
        "steps": prepared.steps,
    }
    kind, worth = sheet.kind_of(prepared.mask_area, prepared.face_confidence, show=show)
    film = sheet.film(sample, kind, worth, frames) if kind else None
    return Outcome(sample, shard_row, None, film)


def _images(sample: str, path: str) -> str:
    """Return the folder of all photos: a sample's id ends with the path below it."""
    below = "/" + sample.partition("/")[2]
    return path.removesuffix(below) if path.endswith(below) else str(Path(path).parent)


@dataclass(frozen=True)
class _Means:
    """What a step may use, and where it puts what the user should know."""

    threads: int
    gpu: bool
    warnings: list[str]


_Run = Callable[[Pixels, _Notes], Pixels]


def _remove_background(step: RemoveBackground, means: _Means) -> _Run:
    session = background_removal.open_session(step.model, means.threads, gpu=means.gpu)
    reason = background_removal.missing_gpu(session) if means.gpu else None
    if reason:
        means.warnings.append(f"remove_background asked for CUDA and runs on the CPU: {reason}")

    def run(pixels: Pixels, notes: _Notes) -> Pixels:
        photo = opaque(pixels)
        mask = background_removal.person_mask(session, photo)
        if mask is None:
            notes.outcome = "background kept: empty mask"
            notes.mask_area = 0.0
            return pixels
        notes.mask_area = float(mask.mean() / 255.0)
        if step.fill == "transparent":
            return background_removal.cut_out(photo, mask)
        return background_removal.lay_over(photo, mask, list(step.fill))

    return run


def _crop_face(step: CropFace, means: _Means) -> _Run:
    import torch  # noqa: PLC0415 - the detector's library

    torch.set_num_threads(means.threads)
    if means.gpu and not torch.cuda.is_available():
        means.warnings.append(
            f"crop_face asked for CUDA and runs on the CPU: torch {torch.__version__} finds no "
            "usable CUDA device"
        )
    detector = faces.open_detector(step.detector)

    def run(pixels: Pixels, notes: _Notes) -> Pixels:
        with torch.inference_mode():
            face = faces.main_face(detector, step.detector, opaque(pixels), step.search_size)
        if face is None:
            notes.face_confidence = 0.0
            notes.n_faces = 0
            if step.on_missing == "drop" and not notes.always:
                raise Dropped("no face")
            if step.on_missing == "keep":
                notes.outcome = "no face: whole photo"
                return pixels
            notes.outcome = "no face: center"
            return center(pixels, None)
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = face.box
        notes.face_box = [x0 / width, y0 / height, x1 / width, y1 / height]
        notes.face_confidence = face.confidence
        notes.n_faces = face.n_found
        return around(pixels, face.box, step.margin)

    return run


def around(pixels: Pixels, box: tuple[int, int, int, int], margin: float) -> Pixels:
    """Cut a square around a box, clipped at the border.

    It is wider than the box by `margin` of the box's longer side on every side.
    """
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) * (0.5 + margin)
    height, width = pixels.shape[:2]
    side = int(min(2 * half, width, height))
    left = int(min(max((x0 + x1) / 2 - side / 2, 0), width - side))
    top = int(min(max((y0 + y1) / 2 - side / 2, 0), height - side))
    return pixels[top : top + side, left : left + side]


def center(pixels: Pixels, size: int | None) -> Pixels:
    """Cut the central square of a size, at most the largest one."""
    height, width = pixels.shape[:2]
    side = min(size or min(height, width), height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _center_crop(step: CenterCrop, means: _Means) -> _Run:
    del means
    return lambda pixels, notes: center(pixels, step.size)  # noqa: ARG005


def _keep_aspect(step: KeepAspect, means: _Means) -> _Run:
    del means

    def run(pixels: Pixels, notes: _Notes) -> Pixels:
        del notes
        height, width = pixels.shape[:2]
        side = max(height, width)
        if side**2 > MAX_PIXELS and side > _STRIP_RATIO * min(height, width):
            pixels = _shrunk(pixels, _STRIP_SIDE)
            height, width = pixels.shape[:2]
            side = _STRIP_SIDE
        canvas = np.zeros((side, side, pixels.shape[2]), np.uint8)  # alpha is padded transparent
        canvas[..., :3] = step.fill
        top = (side - height) // 2
        left = (side - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        return canvas

    return run


def _shrunk(pixels: Pixels, side: int) -> Pixels:
    """Shrink a photo so that its longer side has a number of pixels."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    photo = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(photo.resize(size, Image.Resampling.BILINEAR))


def _resize(step: Resize, means: _Means) -> _Run:
    del means

    def run(pixels: Pixels, notes: _Notes) -> Pixels:
        del notes
        if pixels.shape[:2] == (step.size, step.size):
            return pixels
        # Pillow's bilinear filter widens with the scale, so a smaller photo has no aliases, and it
        # weighs by alpha
        photo = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(photo.resize((step.size, step.size), Image.Resampling.BILINEAR))

    return run


_BUILDERS: dict[str, Callable[[Any, _Means], _Run]] = {
    "remove_background": _remove_background,
    "crop_face": _crop_face,
    "center_crop": _center_crop,
    "keep_aspect": _keep_aspect,
    "resize": _resize,
}
