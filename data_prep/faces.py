"""The adapter of DeepFace: from a photo to the box of its main face."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.images import RGB
from data_prep.weights import cache_dir, fetch, known


@dataclass(frozen=True)
class Face:
    """A face in pixels of the photo (x0, y0, x1, y1) and the detector's confidence, 0 to 1."""

    box: tuple[int, int, int, int]
    confidence: float


def open_detector(backend: str) -> Any:
    """Import DeepFace and warm up one of its detectors.

    Importing it silences all warnings of the process, sets variables and makes a folder in the user's home; the
    first is undone here and the last is moved next to the weights.
    """
    if backend in known():
        fetch(backend)
    home = cache_dir() / "deepface"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DEEPFACE_HOME", str(home if home.is_dir() else Path(tempfile.gettempdir())))
    with warnings.catch_warnings():
        from deepface import DeepFace  # noqa: PLC0415
    return DeepFace


def main_face(deepface: Any, backend: str, photo: RGB) -> Face | None:
    """Return the largest central face of a photo, or None.

    Photos are handed over as BGR arrays: DeepFace would fetch a text that looks like an address.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = deepface.extract_faces(
            photo[..., ::-1].copy(),
            detector_backend=backend,
            align=False,
            enforce_detection=False,
            normalize_face=False,
        )
    height, width = photo.shape[:2]
    faces = []
    for item in found:
        area, confidence = item["facial_area"], float(item["confidence"] or 0.0)
        if confidence <= 0:  # the whole photo with confidence 0 is DeepFace's word for "no face"
            continue
        box = (int(area["x"]), int(area["y"]), int(area["x"] + area["w"]), int(area["y"] + area["h"]))
        faces.append(Face(box, min(confidence, 1.0)))
    return max(faces, key=lambda face: _prominence(face, width, height), default=None)


def _prominence(face: Face, width: int, height: int) -> float:
    x0, y0, x1, y1 = face.box
    off = abs((x0 + x1) / 2 / width - 0.5) + abs((y0 + y1) / 2 / height - 0.5)
    return (x1 - x0) * (y1 - y0) * (1.0 - off)
