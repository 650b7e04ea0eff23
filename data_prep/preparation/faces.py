"""The adapter of DeepFace: from a photo to the box of its main face."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

from data_prep.catalog.images import RGB
from data_prep.weights.cache import deepface_home, require
from data_prep.weights.registry import WeightsError

_PACKAGES = {
    "mtcnn": "mtcnn",
    "retinaface": "retina-face",
    "mediapipe": "mediapipe",
    "dlib": "dlib",
}


@dataclass(frozen=True)
class Face:
    """A face in pixels of the photo (x0, y0, x1, y1), the detector's confidence, 0 to 1, and how many it found."""

    box: tuple[int, int, int, int]
    confidence: float
    n_found: int = 1


def open_detector(backend: str) -> Any:
    """Import DeepFace and warm up one of its detectors.

    Importing it silences all warnings of the process, sets variables and makes a folder in the user's home; the
    first is undone here and the last is moved next to the weights.

    Raises:
        WeightsError: the detector's weights or its package are missing.
    """
    require(backend)
    deepface_home().mkdir(parents=True, exist_ok=True)
    os.environ["DEEPFACE_HOME"] = str(deepface_home())
    with warnings.catch_warnings():
        from deepface import DeepFace  # noqa: PLC0415
        from deepface.modules import modeling  # noqa: PLC0415

        try:
            modeling.build_model("face_detector", backend)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(backend, "ultralytics" if backend.startswith("yolo") else None)
            remedy = (
                f"pip install {package}" if package else f"python -m orchestrator weights {backend}"
            )
            raise WeightsError(
                f"face detector {backend}: {str(error).splitlines()[0]}; run `{remedy}`"
            ) from None
    return DeepFace


def main_face(
    deepface: Any, backend: str, photo: RGB, search_size: int | None = None
) -> Face | None:
    """Return the largest central face of a photo, or None.

    Args:
        deepface: what `open_detector` returned.
        backend: the detector's name.
        photo: (H, W, 3); handed over as a BGR array, DeepFace would fetch a text that looks like an address.
        search_size: longest side in pixels of what the detector sees first. Its pyramid costs as much as it has
            pixels, and a face that is too small there is too small to learn from; where none is found, it sees the
            whole photo.
    """
    import cv2  # noqa: PLC0415

    height, width = photo.shape[:2]
    scale = min(1.0, search_size / max(height, width)) if search_size else 1.0
    if scale < 1.0:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        if (face := _main(deepface, backend, small)) is not None:
            x, y = width / size[0], height / size[1]
            x0, y0, x1, y1 = face.box
            return Face(
                (round(x0 * x), round(y0 * y), round(x1 * x), round(y1 * y)),
                face.confidence,
                face.n_found,
            )
    return _main(deepface, backend, photo)


def _main(deepface: Any, backend: str, photo: RGB) -> Face | None:
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
        box = (
            int(area["x"]),
            int(area["y"]),
            int(area["x"] + area["w"]),
            int(area["y"] + area["h"]),
        )
        faces.append(Face(box, min(confidence, 1.0), len(found)))
    return max(faces, key=lambda face: _prominence(face, width, height), default=None)


def _prominence(face: Face, width: int, height: int) -> float:
    x0, y0, x1, y1 = face.box
    off = abs((x0 + x1) / 2 / width - 0.5) + abs((y0 + y1) / 2 / height - 0.5)
    return (x1 - x0) * (y1 - y0) * (1.0 - off)
