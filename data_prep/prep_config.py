"""The `prep` section of a spec."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.section_base import BARE_NAME, Section, how

Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]

BackgroundModel = Literal[
    "u2netp",
    "u2net",
    "u2net_human_seg",
    "isnet-general-use",
    "isnet-anime",
    "silueta",
    "birefnet-general",
    "birefnet-general-lite",
    "birefnet-portrait",
    "birefnet-dis",
    "birefnet-hrsod",
    "birefnet-cod",
    "birefnet-massive",
    "bria-rmbg",
]
"""The sessions of rembg that run here and answer with one mask.

Left out: those that send the photo to a remote service, `sam` (needs points), `u2net_cloth_seg`
(three masks), `birefnet-general-fp16` (needs onnx) and `*_custom` (any file).
"""

Detector = Literal[
    "fastmtcnn",
    "opencv",
    "yunet",
    "centerface",
    "ssd",
    "retinaface",
    "mtcnn",
    "mediapipe",
    "dlib",
    "yolov8n",
    "yolov8m",
    "yolov8l",
    "yolov11n",
    "yolov11s",
    "yolov11m",
    "yolov11l",
    "yolov12n",
    "yolov12s",
    "yolov12m",
    "yolov12l",
]
"""The face detectors of DeepFace."""


class RemoveBackground(Section):
    """Replace everything but the person by one colour, or by nothing (rembg).

    A transparent sample is stored as PNG with its alpha; training lays it over black.
    """

    name: Literal["remove_background"] = "remove_background"
    model: BackgroundModel = "u2netp"
    """Session of rembg; `u2netp` is the small one."""
    fill: Colour | Literal["transparent"] = [0, 0, 0]
    """Colour [R, G, B] of what is removed, or `transparent`."""


class CropFace(Section):
    """Crop to the largest central face (DeepFace), widened by `margin` of its size on every side.

    The detector sees the photo reduced to `search_size` pixels at its longest side. It sees the
    whole photo only where it finds nothing on that scale.
    """

    name: Literal["crop_face"] = "crop_face"
    detector: Detector = "fastmtcnn"
    """Face detector of DeepFace."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.25
    """Border around the face on every side, as a share of its longer side."""
    on_missing: Literal["center", "keep", "drop"] = "center"
    """Where no face is found: crop the centre, keep the whole photo, or drop it."""
    search_size: Annotated[int, Field(ge=64, le=4096)] = 256
    """Longest side in pixels of the photo that the detector sees first."""


class CenterCrop(Section):
    """Cut the largest central square, or a central `size` x `size` square."""

    name: Literal["center_crop"] = "center_crop"
    size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side of the square in pixels; null takes the largest square."""


class KeepAspect(Section):
    """Pad to a square with one colour, so that a later resize keeps the shape of what it shows."""

    name: Literal["keep_aspect"] = "keep_aspect"
    fill: Colour = [0, 0, 0]
    """Colour [R, G, B] of the border."""


class Resize(Section):
    """Resize to `size` x `size` pixels, antialiased."""

    name: Literal["resize"] = "resize"
    size: Annotated[int, Field(ge=8, le=2048)]
    """Side of the sample in pixels."""


Step = Annotated[
    Annotated[
        RemoveBackground | CropFace | CenterCrop | KeepAspect | Resize, Field(discriminator="name")
    ],
    BARE_NAME,
]


class Prep(Section):
    """The steps that turn a photo into a training sample, in the user's order."""

    steps: Annotated[list[Step], Field(min_length=1)] = [Resize(size=128)]
    """Steps in order; the last is `resize`."""
    max_lost: Annotated[float, Field(gt=0, le=1)] = how(0.5)
    """Share of the photos; above it the run stops."""

    @model_validator(mode="after")
    def _ends_square(self) -> Self:
        if not isinstance(self.steps[-1], Resize):
            last = self.steps[-1].name
            raise ValueError(f"the last step must be resize, for samples of one size; found {last}")  # noqa: TRY004
        return self

    @property
    def size(self) -> int:
        """Side of a prepared sample in pixels."""
        last = self.steps[-1]
        assert isinstance(last, Resize)  # noqa: S101 - holds by validation
        return last.size
