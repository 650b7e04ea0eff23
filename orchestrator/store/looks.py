"""The ledger of looks: what was asked of which predictions or labels, across a store's runs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.json_types import Json
from orchestrator.store.store_address import url_of

FILE = "looks.jsonl"


@dataclass(frozen=True)
class Look:
    """One look at a claim or at test labels."""

    key: str  # what was asked, of which data
    state: str  # hash of the predictions that were looked at
    number: int  # 1 for the first look at this key
    facts: Json  # run, claim: for a reader of the file


def count_look(store: Path, key: str, state: str, facts: Json) -> Look:
    """Return the number of a look; write it down unless these predictions were seen before.

    Two runs may call it at the same time: the file is locked, and a record is one flushed line.

    Args:
        store: folder of the store.
        key: of the question, such as `evaluation.sequential_testing.claim_key`.
        state: of the predictions, such as `evaluation.sequential_testing.predictions_key`.
        facts: run, claim and so on, written beside.
    """
    url = url_of(store)
    if url is not None:
        return _count_in_bucket(url, key, state, facts)
    store.mkdir(parents=True, exist_ok=True)
    with (store / FILE).open("a+b") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        look, line = _next(handle.read(), key, state, facts)
        if line:
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        return look


def _next(raw: bytes, key: str, state: str, facts: Json) -> tuple[Look, bytes]:
    """Return a look, and the bytes to append for it; none where it was counted before."""
    looks = _parse(raw, key)
    for look in looks:
        if look.state == state:
            return look, b""
    look = Look(key, state, len(looks) + 1, facts)
    record = {"key": key, "state": state, "time": time.time(), **facts}
    start = b"" if not raw or raw.endswith(b"\n") else b"\n"
    return look, start + json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _count_in_bucket(url: str, key: str, state: str, facts: Json) -> Look:
    """Count a look in a bucket: read, and write unless somebody else has written meanwhile."""
    from orchestrator.store.bucket.client import Bucket, Lost  # noqa: PLC0415

    bucket = Bucket(url)
    while True:
        content = bucket.read(FILE)
        raw = b"" if content is None else content.data
        look, line = _next(raw, key, state, facts)
        if not line:
            return look
        if content is None:
            if bucket.create(FILE, line) is not None:
                return look
            continue
        try:
            bucket.replace(FILE, raw + line, content.version)
        except Lost:
            continue
        return look


def read_looks(store: Path, key: str) -> list[Look]:
    """Return all looks at one key in their order."""
    url = url_of(store)
    if url is not None:
        from orchestrator.store.bucket.client import Bucket  # noqa: PLC0415

        content = Bucket(url).read(FILE)
        return [] if content is None else _parse(content.data, key)
    path = store / FILE
    return _parse(path.read_bytes(), key) if path.is_file() else []


def _parse(raw: bytes, key: str) -> list[Look]:
    """Read the looks at a key; a line that was cut off by a crash is left out."""
    looks: list[Look] = []
    for line in raw.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("key") == key:
            facts = {k: v for k, v in record.items() if k not in {"key", "state"}}
            looks.append(Look(key, str(record.get("state")), len(looks) + 1, facts))
    return looks
