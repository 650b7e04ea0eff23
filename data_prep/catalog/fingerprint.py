"""A cheap identity of the data roots: names, sizes and times of the files, and the tables' bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.catalog.photo_listing import images_of, require_images, sides, table_of
from data_prep.config import Data
from data_prep.errors import DataError
from data_prep.photo_files import is_passed_over


def fingerprint(data: Data, base: Path) -> str:
    """Return 64 hex digits that change when a file below a root's `images/` or a table changes.

    The place of the roots is no part of it. No photo is opened: 20,000 files take 0.2 s.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.

    Raises:
        DataError: a root or a table is missing.
    """
    sha = hashlib.sha256()
    for side, section in sides(data):
        require_images(section, base, side)
        root = base / section.root
        for line in sorted(
            _walk(images_of(section, base), "", is_root=Path(section.images) == Path())
        ):
            # no name has a NUL, so two lines cannot run together
            sha.update(f"{side}\0{line}\0".encode("utf-8", "surrogateescape"))
        name = table_of(section)
        if name is not None:
            try:
                table = (root / name).read_bytes()
            except OSError as error:
                raise DataError(
                    f"data.{side}.table", f"{root / name} cannot be read: {error.strerror}"
                ) from None
            sha.update(f"{side}\0table\0{hashlib.sha256(table).hexdigest()}\0".encode())
    return sha.hexdigest()


def _walk(folder: Path | str, prefix: str, *, is_root: bool = False) -> Iterator[str]:
    """Yield a line per file; notes and hidden files that lie in a root itself are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            # a linked folder is one line, so that loops end
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_root and is_passed_over(entry.name, is_folder=is_folder):
                continue
            if is_folder:
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
                continue
            try:
                facts = entry.stat()
            except OSError:  # a link to nothing
                facts = entry.stat(follow_symlinks=False)
            yield f"{prefix}{entry.name}\0{facts.st_size}\0{facts.st_mtime_ns}"
