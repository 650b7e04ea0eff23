"""The adapter of rembg: from a photo to the share of each pixel that belongs to the person."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.catalog.images import RGB, Pixels
from data_prep.preparation.onnx_rewrite import U2NETS, lean
from data_prep.weights.cache import cache_dir, require

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


def open_session(model: str, threads: int, *, gpu: bool = False) -> Any:
    """Load a background model on the CPU, or on the GPU if asked.

    Args:
        model: a session of rembg, out of `config.BackgroundModel`.
        threads: of onnxruntime; two sessions of two threads on two cores are a quarter slower than
            two of one.
        gpu: ask for CUDA; `missing_gpu` tells whether it is used.

    Raises:
        WeightsError: its file is missing, or is not the known one.
    """
    file = require(model)
    os.environ["U2NET_HOME"] = str(cache_dir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnxruntime  # noqa: PLC0415

        new_session = rembg_sessions()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = threads
        providers = [_CUDA, _CPU] if gpu else [_CPU]
        session = new_session(model, sess_opts=options, providers=providers)
        if model in U2NETS and _CUDA not in session.inner_session.get_providers():
            session.inner_session = onnxruntime.InferenceSession(
                lean(file), options, providers=[_CPU]
            )
        return session


def rembg_sessions() -> Callable[..., Any]:
    """Import rembg's sessions alone and return its `new_session`.

    `import rembg` also imports `rembg.bg`, whose alpha matting compiles numba code: 80 to 110 s on
    a fresh machine, and nothing here uses it. The package stands empty in `sys.modules` while its
    sessions are imported. Whoever imports rembg later gets all of it.
    """
    if "rembg" in sys.modules:
        from rembg import new_session  # noqa: PLC0415

        return new_session
    spec = importlib.util.find_spec("rembg")
    if spec is None:
        raise ImportError("rembg was required, it is not installed; run `make setup`")
    sys.modules["rembg"] = importlib.util.module_from_spec(spec)
    try:
        from rembg.session_factory import new_session  # noqa: PLC0415
    finally:
        del sys.modules["rembg"]
    return new_session


def missing_gpu(session: Any) -> str | None:
    """Return why a session that asked for CUDA runs on the CPU; None if it runs on CUDA."""
    if _CUDA in session.inner_session.get_providers():
        return None
    import onnxruntime  # noqa: PLC0415

    version = onnxruntime.__version__
    if _CUDA not in onnxruntime.get_available_providers():
        return (
            f"this onnxruntime ({version}) is built without CUDA; "
            "install rembg[gpu] instead of [cpu]"
        )
    return (
        f"onnxruntime {version} could not load CUDA; its driver, CUDA and cuDNN must fit that "
        "version"
    )


def person_mask(session: Any, photo: RGB) -> NDArray[np.uint8] | None:
    """Return the person's mask, (H, W) uint8 from 0 to 255; None if the model tells nothing apart.

    The session is called directly, because `rembg.remove` adds a cutout that nobody needs. A
    constant answer divides by zero inside rembg 2.0.86 and comes back as NaN or as noise.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        mask = np.asarray(session.predict(Image.fromarray(photo))[0])
    if mask.shape != photo.shape[:2] or mask.max() == mask.min():
        return None
    return mask


def lay_over(photo: RGB, mask: NDArray[np.uint8], fill: list[int]) -> RGB:
    """Blend a photo into one colour outside its mask."""
    height, width = photo.shape[:2]
    canvas = Image.new("RGB", (width, height), (fill[0], fill[1], fill[2]))
    return np.asarray(Image.composite(Image.fromarray(photo), canvas, Image.fromarray(mask)))


def cut_out(photo: RGB, mask: NDArray[np.uint8]) -> Pixels:
    """Return the photo with its mask as a fourth channel."""
    return np.dstack([photo, mask])
