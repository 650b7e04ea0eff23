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
    """The main face of a photo."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels
    confidence: float  # of the detector, 0 to 1
    n_found: int = 1  # faces in the photo


def open_detector(backend: str) -> Any:
    """Import DeepFace's detection and warm up one of its detectors.

    `from deepface import DeepFace` would take twice as long for databases and face recognition
    that nobody needs here, silence all warnings and make a folder in the user's home.

    Returns:
        The module with `extract_faces`.

    Raises:
        WeightsError: the detector's weights or its package are missing.
    """
    require(backend)
    deepface_home().mkdir(parents=True, exist_ok=True)
    os.environ["DEEPFACE_HOME"] = str(deepface_home())
    with warnings.catch_warnings():
        from deepface.modules import detection, modeling  # noqa: PLC0415

        try:
            modeling.build_model("face_detector", backend)
        except (ImportError, ValueError) as error:
            package = "ultralytics" if backend.startswith("yolo") else _PACKAGES.get(backend)
            command = f"python -m orchestrator weights {backend} --allow-download"
            if package:
                command = f"pip install {package}"
            reason = str(error).splitlines()[0]
            raise WeightsError(f"face detector {backend}: {reason}; run `{command}`") from None
    return detection


def main_face(
    detection: Any, backend: str, photo: RGB, search_size: int | None = None
) -> Face | None:
    """Return the largest central face of a photo, or None.

    Args:
        detection: what `open_detector` returned.
        backend: the detector's name.
        photo: (H, W, 3); DeepFace gets it as a BGR array, because it fetches texts that look like
            an address.
        search_size: longest side in pixels of the photo that the detector sees first. It costs as
            much as it has pixels, and a face that is too small there is too small to learn from.
            If it finds none, it sees the whole photo.
    """
    import cv2  # noqa: PLC0415

    height, width = photo.shape[:2]
    scale = 1.0
    if search_size:
        scale = min(1.0, search_size / max(height, width))
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        face = _main_face(detection, backend, small)
        if face is not None:
            return _enlarged(face, width / size[0], height / size[1])
    return _main_face(detection, backend, photo)


def _enlarged(face: Face, x: float, y: float) -> Face:
    x0, y0, x1, y1 = face.box
    box = (round(x0 * x), round(y0 * y), round(x1 * x), round(y1 * y))
    return Face(box, face.confidence, face.n_found)


def _main_face(detection: Any, backend: str, photo: RGB) -> Face | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items = detection.extract_faces(
            photo[..., ::-1].copy(),
            detector_backend=backend,
            align=False,
            enforce_detection=False,
            normalize_face=False,
        )
    height, width = photo.shape[:2]
    faces = []
    for item in items:
        area = item["facial_area"]
        confidence = float(item["confidence"] or 0.0)
        if confidence <= 0:  # the whole photo with confidence 0 means "no face"
            continue
        left = int(area["x"])
        top = int(area["y"])
        box = (left, top, int(area["x"] + area["w"]), int(area["y"] + area["h"]))
        faces.append(Face(box, min(confidence, 1.0), len(items)))
    return max(faces, key=lambda face: _prominence(face, width, height), default=None)


def _prominence(face: Face, width: int, height: int) -> float:
    """Return the area of a face, less the farther it is from the photo's center."""
    x0, y0, x1, y1 = face.box
    x_offset = abs((x0 + x1) / 2 / width - 0.5)
    y_offset = abs((y0 + y1) / 2 / height - 0.5)
    return (x1 - x0) * (y1 - y0) * (1.0 - (x_offset + y_offset))
