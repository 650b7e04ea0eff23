"""Places of data: a path of this machine or the URL of a bucket, both as text."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_prep.roots.bucket_objects import (
    Content,
    ObjectFacts,
    folders_in,
    listing_of,
    read_object,
    size_of,
)

SCHEMES = ("s3", "gs", "az")
_PARALLEL = 8  # requests of one worker
_AHEAD = 16  # photos that were read and wait for their turn

Read = Callable[[], Content]


def is_url(place: str | Path) -> bool:
    """Return True for a place on a bucket."""
    return isinstance(place, str) and place.startswith(tuple(f"{name}://" for name in SCHEMES))


def require_root(root: str) -> str:
    """Return a data root without a slash at its end.

    Raises:
        ValueError: it is a URL, and not of a bucket, with keys in it, or with an empty part.
    """
    scheme, mark, rest = root.partition("://")
    if not mark:
        return root
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise ValueError(
            "a URL without keys was required, found some in it; keys belong into the environment "
            "(AWS_ACCESS_KEY_ID and so on)"
        )
    parts = rest.rstrip("/").split("/")
    if scheme not in SCHEMES or not {"", ".", ".."}.isdisjoint(parts):
        wanted = ", ".join(f"{name}://BUCKET/PREFIX" for name in SCHEMES)
        raise ValueError(f"a folder or {wanted} was required, found {root!r}")
    return root.rstrip("/")


def join(base: Path, root: str, *names: str) -> str:
    """Return the place of something below a data root, which a relative path counts from `base`."""
    if not is_url(root):
        return str(base.joinpath(root, *names))
    below = str(PurePosixPath(*names))
    return root if below == "." else f"{root}/{below}"


def real(place: str) -> str:
    """Return a place with its links followed; a bucket has none."""
    return place if is_url(place) else os.path.realpath(place)


def is_link(place: str) -> bool:
    """Return True for a symbolic link."""
    return not is_url(place) and Path(place).is_symlink()


def lies_there(place: str) -> bool:
    """Return True if there is something, be it a link to nothing."""
    if not is_url(place):
        return os.path.lexists(place)
    folder, _, name = place.rstrip("/").rpartition("/")
    listing, path = listing_of(folder)
    return name in listing.folders.get(path, {})


def is_folder(place: str) -> bool:
    """Return True for a folder; on a bucket, for a prefix that some object has."""
    if not is_url(place):
        return Path(place).is_dir()
    listing, path = listing_of(place.rstrip("/"))
    return bool(listing.folders.get(path))


def is_file(place: str) -> bool:
    """Return True for a file."""
    return size_of(place) is not None if is_url(place) else Path(place).is_file()


def folders_at(place: str) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    if is_url(place):
        return folders_in(place)
    return sorted(path.name for path in Path(place).iterdir() if path.is_dir())


def scan(folder: str) -> list[tuple[str, bool]]:
    """Return the names in a folder, and whether each is a folder; [] where there is none."""
    if is_url(folder):
        listing, path = listing_of(folder.rstrip("/"))
        return [(name, facts is None) for name, facts in listing.folders.get(path, {}).items()]
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder below a folder with the names of folders and files in it, as `os.walk`."""
    if not is_url(folder):
        yield from os.walk(folder)
        return
    folders: list[str] = []
    files: list[str] = []
    for name, is_inner in sorted(scan(folder)):
        (folders if is_inner else files).append(name)
    yield folder, folders, files
    for name in folders:
        yield from walk(f"{folder}/{name}")


def objects_below(folder: str) -> Iterator[tuple[str, ObjectFacts]]:
    """Yield the objects below a folder of a bucket by their paths in it."""
    listing, path = listing_of(folder)
    return listing.below(path)


def open_binary(place: str | Path) -> IO[bytes]:
    """Open a table to read; one of a bucket is fetched whole.

    Raises:
        OSError: there is none, or it cannot be read.
        MachineError: the bucket refuses.
    """
    if is_url(place):
        return io.BytesIO(read_object(str(place)).data)
    return Path(place).open("rb")


def read(place: str, limit_bytes: int) -> Content:
    """Read a photo.

    Raises:
        OSError: there is none, or it cannot be read.
        MachineError: the bucket refuses.
    """
    if is_url(place):
        return read_object(place, limit_bytes)
    with open(place, "rb") as handle:  # noqa: PTH123 - 100,000 Paths cost seconds
        data = handle.read(limit_bytes + 1)
    return Content(len(data), data if len(data) <= limit_bytes else b"")


def size_bytes(place: str) -> int:
    """Return the bytes of a file; of an object as its listing has them.

    Raises:
        OSError: there is none.
    """
    if not is_url(place):
        return Path(place).stat().st_size
    folder, _, name = place.rpartition("/")
    listing, path = listing_of(folder)
    facts = listing.folders.get(path, {}).get(name)
    if facts is None:
        raise FileNotFoundError(place)
    return facts.size_bytes


def read_ahead(places: Sequence[str], limit_bytes: int) -> Iterator[Read]:
    """Yield for each photo what returns its content; those of a bucket are requested in advance.

    A worker waits for the network once for many photos, and not once for each.
    """
    reads = [partial(read, place, limit_bytes) for place in places]
    if len(places) < 2 or not any(map(is_url, places)):
        yield from reads
        return
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="photos")
    try:
        waiting: deque[Future[Any]] = deque()
        for each in reads:
            waiting.append(pool.submit(each))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result
    finally:
        pool.shutdown(cancel_futures=True)
