"""A cheap identity of the data roots: names, sizes and times of the files, and the tables' bytes."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.config import Data, TestTable
from data_prep.errors import DataError


def fingerprint(data: Data, base: Path) -> str:
    """Return 64 hex digits that change when a file below a root's `images/` or a table changes.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.

    Raises:
        DataError: a root or a table is missing.
    """
    sha = hashlib.sha256()
    for side, section in sides(data):
        root = base / section.root
        if not (root / "images").is_dir():
            raise DataError(f"data.{side}.root", f"photos below {root / 'images'} were required, found no such folder")
        for line in sorted(_walk(root / "images", "")):
            sha.update(f"{side}|{line}\n".encode("utf-8", "surrogateescape"))
        if table := getattr(section, "table", None):
            try:
                sha.update((root / table).read_bytes())
            except OSError as error:
                raise DataError(f"data.{side}.table", f"{root / table} cannot be read: {error.strerror}") from None
    return sha.hexdigest()


def sides(data: Data) -> list[tuple[str, object]]:
    """Return the sections of a spec that have a data root, by the name of their key."""
    found: list[tuple[str, object]] = [("source", data.source)]
    if isinstance(data.test, TestTable):
        found.append(("test", data.test))
    return found


def _walk(folder: Path | str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                facts = entry.stat(follow_symlinks=False)
                yield f"{prefix}{entry.name}|{facts.st_size}|{facts.st_mtime_ns}"
