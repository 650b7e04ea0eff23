"""The contact sheet: small pictures of what every step made of a photo, for photos worth a look."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_prep.catalog.images import Pixels, opaque

SIDE = 96  # longest side of a frame in pixels
_QUALITY = 75
_MIN_MASK_SHARE = 0.1  # a person in a portrait fills between a tenth and nine tenths of it
_MAX_MASK_SHARE = 0.9
_SURE = 0.95  # confidence of a face; below it is worth a look
PER_SHARD = {"ordinary": 2, "mask": 4, "face": 4}
PER_REPORT = {"ordinary": 6, "mask": 12, "face": 12}


@dataclass(frozen=True)
class Film:
    """One photo on its way: before, and after every step."""

    sample_id: str
    kind: str  # ordinary | mask | face
    worth: float  # the smaller, the worse
    frames: list[str]  # JPEG, base64


def kind_of(
    mask_area: float | None, face_confidence: float | None, *, show: bool
) -> tuple[str | None, float]:
    """Return why a photo is worth a look (None if it is not), and how bad it is (smaller: worse).

    Args:
        mask_area: share of the photo that the background remover kept.
        face_confidence: of the detector.
        show: take the photo as an ordinary example.
    """
    if face_confidence is not None and face_confidence < _SURE:
        return "face", face_confidence
    if mask_area is not None and not _MIN_MASK_SHARE <= mask_area <= _MAX_MASK_SHARE:
        return "mask", min(mask_area, 1.0 - mask_area)
    return ("ordinary" if show else None), 1.0


def film(sample: str, kind: str, worth: float, frames: Sequence[Pixels]) -> Film:
    """Reduce the frames of a photo."""
    return Film(sample, kind, round(worth, 4), [small_jpeg(pixels) for pixels in frames])


def small_jpeg(pixels: Pixels) -> str:
    """Return a photo (H, W, 3), reduced, as base64 of a JPEG."""
    image = Image.fromarray(np.ascontiguousarray(opaque(pixels)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def ordinary(samples: Iterable[str]) -> set[str]:
    """Choose a shard's ordinary examples, by their ids alone."""
    return set(sorted(samples, key=_digest)[: PER_SHARD["ordinary"]])


def _digest(sample: str) -> bytes:
    return hashlib.sha256(sample.encode("utf-8", "surrogateescape")).digest()


def keep(films: Iterable[Film], limits: dict[str, int]) -> list[Film]:
    """Keep the worst films of every kind."""
    ordered = sorted(films, key=lambda film: (film.worth, film.sample_id))
    kept: list[Film] = []
    for kind, limit in limits.items():
        of_kind = [film for film in ordered if film.kind == kind]
        kept += of_kind[:limit]
    return kept


def to_json(films: Iterable[Film]) -> list[dict[str, Any]]:
    """Return JSON values of films."""
    return [asdict(film) for film in films]


def from_json(values: Any) -> list[Film]:
    """Read films back; a broken one is left out, because a sheet is only for looking."""
    films = []
    for value in values if isinstance(values, list) else []:
        try:
            frames = [str(frame) for frame in value["frames"]]
            films.append(Film(value["sample_id"], value["kind"], float(value["worth"]), frames))
        except (KeyError, TypeError, ValueError):
            continue
    return films
