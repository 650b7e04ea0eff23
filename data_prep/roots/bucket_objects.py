"""Objects of a bucket as files in folders: listed once, read whole.

A process that has made a request must not fork afterwards: the library's threads do not reach the
child.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

from data_prep.errors import MachineError
from data_prep.roots.bucket_client import (
    HURRY_S,
    PATIENCE_S,
    ClientRefused,
    has_no_bucket,
    open_client,
    refusal_sentence,
)

_LISTED_S = 600.0  # after which a folder is listed again
_CHUNK = 1000  # objects of one answer

T = TypeVar("T")


class Content(NamedTuple):
    """A file that was read."""

    size_bytes: int
    data: bytes  # empty where the file is larger than what was asked for


class _Address(NamedTuple):
    bucket: str  # s3://bucket
    name: str  # of the object, or of a folder


@dataclass(frozen=True)
class ObjectFacts:
    """An object as a listing shows it."""

    size_bytes: int
    version: str  # differs for another content


Folder = dict[str, ObjectFacts | None]
"""Name -> the object, None for a folder."""


@dataclass
class Listing:
    """All objects below a folder of a bucket."""

    made: float = field(default_factory=time.monotonic)
    folders: dict[str, Folder] = field(default_factory=dict)  # by path below the URL, "" for itself

    def add(self, path: str, facts: ObjectFacts) -> None:
        """Add an object by its path below the URL."""
        folder, _, name = path.rpartition("/")
        self._open(folder).setdefault(name, facts)

    def _open(self, path: str) -> Folder:
        """Return a folder; it and those above it are made where they are new."""
        folder = self.folders.get(path)
        if folder is None:
            folder = self.folders[path] = {}
            if path:
                above, _, name = path.rpartition("/")
                self._open(above)[name] = None  # also over an empty object that marks the folder
        return folder

    def below(self, path: str) -> Iterator[tuple[str, ObjectFacts]]:
        """Yield the objects of a folder and of those in it, by their paths below the folder."""
        folder = self.folders.get(path, {})
        for name, facts in folder.items():
            if facts is not None:
                yield name, facts
                continue
            inner = f"{path}/{name}" if path else name
            for rest, each in self.below(inner):
                yield f"{name}/{rest}", each


_listings: dict[str, Listing] = {}  # by URL


def listing_of(place: str) -> tuple[Listing, str]:
    """Return the listing that has a place, and the place's path in it; list it where none has.

    An old listing is made anew whole, because its other folders are looked at next.
    """
    now = time.monotonic()
    listed = place
    url = place
    while url.count("/") >= 2:  # s3://bucket
        listing = _listings.get(url)
        if listing is not None:
            if now - listing.made < _LISTED_S:
                return listing, place[len(url) + 1 :]
            listed = url
        url = url.rpartition("/")[0]
    listing = _list(listed)
    _listings[listed] = listing
    return listing, place[len(listed) + 1 :]


def forget_buckets() -> None:
    """Let the next look at a bucket list it again, with the keys that the environment has then."""
    _listings.clear()
    _client.cache_clear()


def _list(url: str) -> Listing:
    address = _address(url)
    client = _client(address.bucket, HURRY_S)
    prefix = f"{address.name}/" if address.name else ""

    def request() -> Listing:
        import obstore  # noqa: PLC0415

        listing = Listing()
        for some in obstore.list(client, prefix or None, chunk_size=_CHUNK):
            for meta in some:
                if _marks_folder(meta["path"], meta["size"]):
                    continue
                version = meta["e_tag"] or meta["last_modified"].isoformat()
                listing.add(meta["path"].removeprefix(prefix), ObjectFacts(meta["size"], version))
        return listing

    return _ask(url, request)


def _marks_folder(path: str, size_bytes: int) -> bool:
    """Return True for the empty object that consoles of buckets write for a new folder.

    The library leaves out the slash at the end of its name. An empty file without an extension is
    taken for one, too: it is no photo.
    """
    return size_bytes == 0 and "." not in path.rpartition("/")[2]


def folders_in(url: str) -> list[str]:
    """Return the names of the folders in a folder; the objects below them are not listed."""
    address = _address(url)
    client = _client(address.bucket, HURRY_S)
    prefix = f"{address.name}/" if address.name else None

    def request() -> Any:
        import obstore  # noqa: PLC0415

        return obstore.list_with_delimiter(client, prefix)

    answer = _ask(url, request)
    return sorted(path.rpartition("/")[2] for path in answer["common_prefixes"])


def size_of(url: str) -> int | None:
    """Return the bytes of an object; None if there is none."""
    address = _address(url)
    client = _client(address.bucket, HURRY_S)

    def request() -> int:
        import obstore  # noqa: PLC0415

        return int(obstore.head(client, address.name)["size"])

    try:
        return _ask(url, request)
    except FileNotFoundError:
        return None


def read_object(url: str, limit_bytes: int | None = None) -> Content:
    """Read an object whole; of one that is larger than a limit only its size is asked for.

    Raises:
        FileNotFoundError: there is no such object.
        MachineError: the bucket refuses, or does not answer for three minutes.
    """
    address = _address(url)
    client = _client(address.bucket, PATIENCE_S)

    def request() -> Content:
        import obstore  # noqa: PLC0415

        answer = obstore.get(client, address.name)
        size_bytes = int(answer.meta["size"])
        if limit_bytes is not None and size_bytes > limit_bytes:
            return Content(size_bytes, b"")
        return Content(size_bytes, bytes(answer.bytes()))

    return _ask(url, request)


def _address(url: str) -> _Address:
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    return _Address(f"{scheme}://{bucket}", name.strip("/"))


@cache
def _client(bucket: str, patience_s: float) -> Any:
    try:
        return open_client(bucket, patience_s)
    except ClientRefused as error:
        raise MachineError(str(error)) from None


def _ask(url: str, request: Callable[[], T]) -> T:
    """Make a request; turn what may go wrong into one sentence, or FileNotFoundError."""
    from obstore import exceptions  # noqa: PLC0415

    try:
        return request()
    except FileNotFoundError as error:
        if not has_no_bucket(str(error)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
        answer = str(error)
    except (exceptions.BaseError, OSError, ValueError) as error:  # ValueError: a name such as a//b
        answer = str(error)
    raise MachineError(refusal_sentence(url, answer, entry="the data root", rights="list and read"))
