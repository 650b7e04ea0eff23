"""Where a store is: a folder, or a bucket with a folder of this machine as its cache."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from orchestrator.store.artifacts import Store

if TYPE_CHECKING:
    from orchestrator.store.bucket.artifacts import BucketStore

STORE_VARIABLE = "ORCHESTRATOR_STORE"
CACHE_VARIABLE = "ORCHESTRATOR_CACHE"
CACHES = "buckets"
"""The folder of all caches; what follows it in a path is the same on every machine."""
MARK = ".bucket"
"""A file of a cache with the URL of its bucket."""


def is_url(place: str | Path) -> bool:
    """Return True for a bucket."""
    return isinstance(place, str) and "://" in place


def default_place() -> str | Path:
    """Return the store that a command uses when none is named."""
    name = os.environ.get(STORE_VARIABLE) or "runs-store"
    return name if is_url(name) else Path(name)


def open_to_read(place: str | Path) -> Store:
    """Return a store whose runs are about to be read: what a bucket has of them comes first.

    Raises:
        UserError: the bucket does not answer, or refuses; each way has its sentence.
    """
    store = open_store(place)
    url = url_of(store.root)
    if url is not None:
        from orchestrator.store.bucket.client import require_bucket  # noqa: PLC0415

        require_bucket(url)
        _open_bucket(url).runs.pull_all()
    return store


def open_store(place: str | Path) -> Store:
    """Return the store at a folder or URL; the cache of a bucket stands for the bucket.

    Raises:
        UserError: the URL is not of a bucket, or the library for buckets is missing.
    """
    if is_url(place):
        return _open_bucket(str(place))
    root = Path(place).absolute()
    url = url_of(root)
    return Store(root) if url is None else _open_bucket(url)


@cache
def _open_bucket(url: str) -> BucketStore:
    from orchestrator.store.bucket.artifacts import BucketStore  # noqa: PLC0415

    root = _cache_of(url)
    root.mkdir(parents=True, exist_ok=True)
    mark = root / MARK
    if url_of(root) != url:
        mark.write_text(url, encoding="utf-8")
    return BucketStore(root, url)


def _cache_of(url: str) -> Path:
    """Return the folder that caches a bucket. Two providers may have buckets of one name."""
    from data_prep.roots.bucket_client import endpoint  # noqa: PLC0415
    from orchestrator.store.bucket.client import require_url  # noqa: PLC0415

    parts = urlsplit(require_url(url))
    name = f"{parts.scheme}-{parts.netloc}{quote(parts.path, safe='').replace('%2F', '+')}"
    if address := endpoint(url):
        name += f"-{hashlib.sha256(address.encode()).hexdigest()[:6]}"
    home = os.environ.get(CACHE_VARIABLE) or "~/.cache/robust-vote"
    return Path(home).expanduser().absolute() / CACHES / name


def url_of(root: Path) -> str | None:
    """Return the URL of the bucket that a folder caches; None for a store of its own."""
    if root.parent.name != CACHES:
        return None
    try:
        return (root / MARK).read_text(encoding="utf-8")
    except OSError:
        return None


def bucket_store(run: Path) -> BucketStore | None:
    """Return the bucket that a run's folder belongs to; None where its store is a folder."""
    url = url_of(run.parent.parent)
    return None if url is None else _open_bucket(url)
