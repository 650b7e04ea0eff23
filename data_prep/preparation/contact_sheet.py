"""The contact sheet: small pictures of what every step made of a photo, for the photos worth looking at."""

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
_MASK_SHARES = (
    0.1,
    0.9,
)  # a person in a portrait fills more than a tenth and less than nine tenths of it
_SURE = 0.95  # of a face; below it is worth a look
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
    """Say what makes a photo worth looking at, and how bad it is; None where nothing does."""
    if face_confidence is not None and face_confidence < _SURE:
        return "face", face_confidence
    if mask_area is not None and not _MASK_SHARES[0] <= mask_area <= _MASK_SHARES[1]:
        return "mask", min(mask_area, 1.0 - mask_area)
    return ("ordinary" if show else None), 1.0


def film(sample: str, kind: str, worth: float, frames: Sequence[Pixels]) -> Film:
    """Reduce the frames of a photo."""
    return Film(sample, kind, round(worth, 4), [_small(pixels) for pixels in frames])


def _small(pixels: Pixels) -> str:
    image = Image.fromarray(np.ascontiguousarray(opaque(pixels)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def ordinary(samples: Iterable[str]) -> set[str]:
    """Choose a shard's ordinary examples, by their ids alone."""
    return set(
        sorted(
            samples,
            key=lambda sample: hashlib.sha256(sample.encode("utf-8", "surrogateescape")).digest(),
        )[: PER_SHARD["ordinary"]]
    )


def keep(films: Iterable[Film], limits: dict[str, int]) -> list[Film]:
    """Keep the worst films of every kind."""
    ordered = sorted(films, key=lambda film: (film.kind, film.worth, film.sample_id))
    return [
        film
        for kind, limit in limits.items()
        for film in [one for one in ordered if one.kind == kind][:limit]
    ]


def to_json(films: Iterable[Film]) -> list[dict[str, Any]]:
    """Return JSON values of films."""
    return [asdict(film) for film in films]


def from_json(values: Any) -> list[Film]:
    """Read films back; what is none is left out, a sheet is only for looking."""
    found = []
    for value in values if isinstance(values, list) else []:
        try:
            found.append(
                Film(
                    value["sample_id"],
                    value["kind"],
                    float(value["worth"]),
                    [str(one) for one in value["frames"]],
                )
            )
        except (KeyError, TypeError, ValueError):
            continue
    return found
