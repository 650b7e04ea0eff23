"""Files that are whole or absent, and the hash of one."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(place: Path) -> Iterator[Path]:
    """Yield a path beside `place` to write to; afterwards flush it to the disk and rename it.

    A reader sees the old file or the new one, never a part. After an error nothing is left.
    The yielded path keeps the suffix of `place`, because libraries choose a format by it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.stem}.{uuid.uuid4().hex[:8]}{place.suffix}")
    try:
        yield beside
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def write_text(place: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(place) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(place: Path, value: Any) -> None:
    """Write a JSON file atomically, indented by one space.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(place, text + "\n")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
