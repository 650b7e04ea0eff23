"""Requests to a bucket, with one sentence for each way in which it may refuse.

A process that has made a request must not fork afterwards: the library's threads do not reach the
child, and both would hang. Whoever forks (a worker of trials) leaves requests to its children.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from data_prep.files import atomic_path
from data_prep.roots.bucket_client import (
    HURRY_S,
    PATIENCE_S,
    ClientRefused,
    has_no_bucket,
    open_client,
    refusal_sentence,
)
from data_prep.roots.places import SCHEMES
from orchestrator.base.errors import SpecError, UserError

_PARALLEL = 8  # requests
_PART_BYTES = 2**24  # of a download, in one request
_DOWNLOADS = 3  # of an object that is written anew meanwhile

T = TypeVar("T")


class BucketError(UserError):
    """The bucket could not be reached or refused a request; another try may succeed."""


class Lost(Exception):  # noqa: N818 - says what is the case
    """A conditional request found another version of the object."""


@dataclass(frozen=True)
class Stored:
    """An object as a listing shows it."""

    name: str
    size_bytes: int
    modified: float  # seconds since 1970, by the server's clock
    version: str  # differs for another content


@dataclass(frozen=True)
class Content:
    """An object that was read."""

    data: bytes
    modified: float
    version: Mapping[str, str]  # for a conditional write


class Bucket:
    """The objects below a URL such as s3://bucket/prefix."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        """Prepare for requests; none is made yet.

        Args:
            url: of the store.
            patience_s: how long a request is repeated while nothing answers.

        Raises:
            UserError: the library is missing, or makes no client of the URL.
            SpecError: the URL is not of a bucket.
        """
        self.url = url
        self._client = _client(url, patience_s)

    def read(self, name: str) -> Content | None:
        """Return an object; None if there is none."""
        import obstore  # noqa: PLC0415

        def request() -> Content:
            answer = obstore.get(self._client, name)
            meta = answer.meta
            version = _plain({"e_tag": meta["e_tag"], "version": meta["version"]})
            return Content(bytes(answer.bytes()), meta["last_modified"].timestamp(), version)

        try:
            return self._ask(request)
        except FileNotFoundError:
            return None

    def read_from(self, name: str, start: int) -> bytes:
        """Return the bytes of an object from a place on.

        Raises:
            FileNotFoundError: there is no such object.
        """
        import obstore  # noqa: PLC0415

        answer = self._ask(
            lambda: obstore.get(self._client, name, options={"range": {"offset": start}})
        )
        return bytes(self._ask(answer.bytes))

    def exists(self, name: str) -> bool:
        """Return True if there is such an object."""
        import obstore  # noqa: PLC0415

        try:
            self._ask(lambda: obstore.head(self._client, name))
        except FileNotFoundError:
            return False
        return True

    def download(self, name: str, place: Path, modified: float | None = None) -> None:
        """Write an object to a file, which is whole or absent.

        A large one comes in parts, because the time limit of a request is for its whole answer.

        Args:
            name: of the object.
            place: of the file.
            modified: the file's time.

        Raises:
            FileNotFoundError: there is no such object.
            BucketError: it cannot be read, or is written anew again and again.
        """
        import obstore  # noqa: PLC0415

        with atomic_path(place) as beside:
            for _ in range(_DOWNLOADS):
                answer = self._ask(lambda: obstore.get(self._client, name))
                with beside.open("wb") as file, suppress(Lost):
                    if answer.meta["size"] <= _PART_BYTES:
                        file.write(self._ask(answer.bytes))
                    else:
                        self._write_parts(file, answer.meta)
                    break
            else:
                raise BucketError(
                    f"{self.url}/{name}: one version was required, each of {_DOWNLOADS} downloads met "
                    "another one; try again"
                )
            if modified is not None:
                os.utime(beside, (modified, modified))

    def _write_parts(self, file: IO[bytes], facts: Any) -> None:
        """Write one version of an object to a file.

        Raises:
            Lost: there is another version now.
        """
        import obstore  # noqa: PLC0415

        for start in range(0, facts["size"], _PART_BYTES):
            stop = min(start + _PART_BYTES, facts["size"])
            options: Any = {"range": (start, stop), "if_match": facts["e_tag"]}
            answer = self._ask(partial(obstore.get, self._client, facts["path"], options=options))
            file.write(self._ask(answer.bytes))

    def upload(self, place: Path, name: str) -> str:
        """Write a file to an object, over an older one; return its version."""
        return self._put(name, place)["e_tag"] or ""

    def write(self, name: str, data: bytes) -> Mapping[str, str]:
        """Write an object, over an older one; return its version."""
        return _plain(self._put(name, data))

    def create(self, name: str, data: bytes) -> Mapping[str, str] | None:
        """Write a new object and return its version; None if there is one of this name already."""
        try:
            return _plain(self._put(name, data, mode="create"))
        except Lost:
            return None

    def replace(self, name: str, data: bytes, version: Mapping[str, str]) -> Mapping[str, str]:
        """Write an object over the version that was read; return the new version.

        Raises:
            Lost: somebody else has written or deleted it since.
        """
        try:
            return _plain(self._put(name, data, mode=dict(version)))
        except FileNotFoundError:
            raise Lost(name) from None

    def _put(self, name: str, content: Path | bytes, **how: Any) -> Any:
        import obstore  # noqa: PLC0415

        return self._ask(lambda: obstore.put(self._client, name, content, **how))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        import obstore  # noqa: PLC0415

        wanted = list(names)
        for start in range(0, len(wanted), 1000):
            some = wanted[start : start + 1000]
            try:
                self._ask(partial(obstore.delete, self._client, some))
            except FileNotFoundError:  # some providers leave the rest then
                list(in_parallel(self._delete_one, some))

    def _delete_one(self, name: str) -> None:
        import obstore  # noqa: PLC0415

        with suppress(FileNotFoundError):
            self._ask(lambda: obstore.delete(self._client, name))

    def objects(self, folder: str) -> list[Stored]:
        """Return all objects below a folder, in the order of their names.

        The empty objects that consoles write for folders are left out: the library takes the slash
        from the end of their names, so they would look like files.
        """
        import obstore  # noqa: PLC0415

        def request() -> list[Stored]:
            stored = []
            for some in obstore.list(self._client, f"{folder}/", chunk_size=1000):
                for meta in some:
                    time = meta["last_modified"].timestamp()
                    stored.append(Stored(meta["path"], meta["size"], time, meta["e_tag"] or ""))
            return _without_marks(folder, sorted(stored, key=lambda each: each.name))

        return self._ask(request)

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder."""
        import obstore  # noqa: PLC0415

        answer = self._ask(lambda: obstore.list_with_delimiter(self._client, f"{folder}/"))
        return sorted(path.rpartition("/")[2] for path in answer["common_prefixes"])

    def _ask(self, request: Callable[[], T]) -> T:
        """Make a request; turn what may go wrong into one sentence, FileNotFoundError and Lost."""
        from obstore import exceptions  # noqa: PLC0415

        try:
            return request()
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise Lost(str(error)[:200]) from None
        except FileNotFoundError as error:
            if not has_no_bucket(str(error)):
                raise
            self._refuse(str(error))
        except (exceptions.BaseError, OSError) as error:
            self._refuse(str(error))

    def _refuse(self, text: str) -> NoReturn:
        """Raise the sentence for an answer. The answer itself may hold a signed address."""
        sentence = refusal_sentence(self.url, text, entry="--store", rights="read and write")
        raise BucketError(sentence) from None


def in_parallel(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """Map a function over items with some requests at a time, in order."""
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="bucket") as pool:
        yield from pool.map(function, items)


def require_bucket(url: str) -> None:
    """Ask a bucket for a listing, without patience.

    Raises:
        BucketError: it does not answer, or refuses.
    """
    Bucket(url, HURRY_S).folders("runs")


def hurried(url: str) -> Bucket:
    """Return a bucket whose requests fail soon where nothing answers."""
    return Bucket(url, HURRY_S)


def require_url(url: str) -> str:
    """Return the URL of a store without a slash at its end.

    Raises:
        SpecError: it is not of a bucket, or it holds keys.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise SpecError(
            f"--store {parts.scheme}://...: a URL without keys was required, found some in it; keys "
            "belong into the environment (AWS_ACCESS_KEY_ID and so on)"
        )
    if parts.scheme not in SCHEMES or not parts.netloc:
        wanted = ", ".join(f"{scheme}://BUCKET/PREFIX" for scheme in SCHEMES)
        raise SpecError(f"--store {url}: a folder or {wanted} was required")
    if "#" in url:
        raise SpecError(
            f"--store {url}: a URL without '#' was required, found '#' in it, and what follows would "
            "be left out; choose another prefix"
        )
    if not {".", ".."}.isdisjoint(parts.path.split("/")):
        raise SpecError(
            f"--store {url}: names without `.` and `..` were required, found one; write out the prefix"
        )
    return url.rstrip("/")


def _without_marks(folder: str, stored: list[Stored]) -> list[Stored]:
    """Leave out an empty object that has the name of the folder, or of one with objects in it."""
    folders = {folder}
    for each in stored:
        above = each.name.rpartition("/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition("/")[0]
    return [each for each in stored if each.size_bytes or each.name not in folders]


def _plain(answer: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in answer.items() if value}


def _client(url: str, patience_s: float) -> Any:
    require_url(url)
    try:
        return open_client(url, patience_s)
    except ClientRefused as error:
        raise UserError(f"--store {error}") from None
