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
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

from data_prep.files import atomic_path
from orchestrator.base.errors import SpecError, UserError

SCHEMES = ("s3", "gs", "az")
_PARALLEL = 8  # requests
_PART_BYTES = 2**24  # of a download, in one request
_DOWNLOADS = 3  # of an object that is written anew meanwhile
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_PATIENCE_S = 180.0
_HURRY_S = 5.0

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


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class _Refusal(NamedTuple):
    """What a bucket may answer, and the sentence for it."""

    words: tuple[str, ...]  # one of them is in the answer
    sentence: str


_REFUSALS = (
    _Refusal(
        ("RequestTimeTooSkewed",),
        "a clock that agrees with the bucket's was required, this machine's is many minutes off; "
        "set it (`timedatectl set-ntp true`)",
    ),
    _Refusal(
        _NO_BUCKET,
        "a bucket was required, there is none of this name; create it, or correct --store",
    ),
    _Refusal(
        ("QuotaExceeded", "StorageFull", "InsufficientStorage", "BucketQuota", "507 "),
        "room for another object was required, the bucket is full (its quota); free some space or "
        "raise the quota and submit again, what is finished is kept",
    ),
    _Refusal(
        ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 ", "401 "),
        "the right to read and write was required, the bucket denies it; check the keys in the "
        "environment (AWS_ACCESS_KEY_ID and so on) and the bucket's policy",
    ),
    _Refusal(
        ("169.254.169.254", "redential"),
        "keys of the bucket were required, found none; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or give this machine a role",
    ),
)


class Bucket:
    """The objects below a URL such as s3://bucket/prefix."""

    def __init__(self, url: str, patience_s: float = _PATIENCE_S) -> None:
        """Prepare for requests; none is made yet.

        Args:
            url: of the store.
            patience_s: how long a request is repeated while nothing answers.

        Raises:
            UserError: the library is missing.
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
            except FileNotFoundError:
                continue

    def objects(self, folder: str) -> list[Stored]:
        """Return all objects below a folder, in the order of their names."""
        import obstore  # noqa: PLC0415

        def request() -> list[Stored]:
            stored = []
            for some in obstore.list(self._client, f"{folder}/", chunk_size=1000):
                for meta in some:
                    time = meta["last_modified"].timestamp()
                    stored.append(Stored(meta["path"], meta["size"], time, meta["e_tag"] or ""))
            return sorted(stored, key=lambda each: each.name)

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
            if not any(word in str(error) for word in _NO_BUCKET):
                raise
            self._refuse(str(error))
        except (exceptions.BaseError, OSError) as error:
            self._refuse(str(error))

    def _refuse(self, text: str) -> NoReturn:
        """Raise the sentence for an answer. The answer itself may hold a signed address."""
        for refusal in _REFUSALS:
            if any(word in text for word in refusal.words):
                raise BucketError(f"{self.url}: {refusal.sentence}") from None
        if "error sending request" in text or "timed out" in text:
            where = endpoint() or "the provider's address"
            raise BucketError(
                f"{self.url}: a bucket was required at {where}, nothing answers there; check the "
                "network and AWS_ENDPOINT_URL"
            ) from None
        reason = text.partition("\n")[0].partition("Debug source")[0][:300]
        raise BucketError(f"{self.url}: the bucket refused a request: {reason}") from None


def in_parallel(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """Map a function over items with some requests at a time, in order."""
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="bucket") as pool:
        yield from pool.map(function, items)


def require_bucket(url: str) -> None:
    """Ask a bucket for a listing, without patience.

    Raises:
        BucketError: it does not answer, or refuses.
    """
    Bucket(url, _HURRY_S).folders("runs")


def hurried(url: str) -> Bucket:
    """Return a bucket whose requests fail soon where nothing answers."""
    return Bucket(url, _HURRY_S)


def endpoint() -> str | None:
    """Return the address that the environment names instead of the provider's."""
    for name in _ENDPOINTS:
        if os.environ.get(name):
            return os.environ[name]
    return None


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
    return url.rstrip("/")


def _plain(answer: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in answer.items() if value}


def _client(url: str, patience_s: float) -> Any:
    require_url(url)
    try:
        from obstore.store import from_url  # noqa: PLC0415
    except ImportError:
        raise UserError(
            f"--store {url}: the package obstore was required, found none; "
            "pip install 'robust-vote[bucket]'"
        ) from None
    return from_url(
        url,
        client_options={
            "allow_http": (endpoint() or "").startswith("http://"),
            "connect_timeout": "5s",
            "timeout": "120s",
        },
        retry_config={
            "max_retries": 2 if patience_s <= _HURRY_S else 1000,
            "retry_timeout": timedelta(seconds=patience_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=200),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )
