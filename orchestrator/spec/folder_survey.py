"""What lies in a folder that somebody wants a spec for: its tables and its photos.

Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.catalog.photo_paths import EXTENSIONS, resolve
from data_prep.catalog.user_tables import SUFFIXES, open_table
from data_prep.errors import DataError
from data_prep.photo_files import is_passed_over
from orchestrator.base.errors import SpecError

_PROBED = 200  # names of a table that are looked for
_MISSING = frozenset({"", "nan", "NaN"})
_SUBMISSION = re.compile(r"submission|submit", re.IGNORECASE)
_TEST = re.compile(r"test|eval|holdout", re.IGNORECASE)
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation")
_TESTS = ("test", "testing")


@dataclass(frozen=True)
class Column:
    """A column of a table without the cells that mean nothing."""

    name: str
    cells: list[str]  # "" where a cell is missing

    @property
    def values(self) -> list[str]:
        """The cells that are there."""
        return [cell for cell in self.cells if cell]

    @property
    def n_missing(self) -> int:
        """Number of missing cells."""
        return len(self.cells) - len(self.values)


@dataclass(frozen=True)
class FoundTable:
    """A table of the folder, and the photos that one of its columns names."""

    path: Path
    columns: dict[str, Column]
    photo_column: str = ""
    images: str = ""
    share: float = 0.0  # of its names that are photos or folders of photos
    are_folders: bool = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())).cells)


def read_tables(folder: Path) -> list[FoundTable]:
    """Read the tables of a folder and find the photos that they name.

    Raises:
        SpecError: there are tables and none can be read.
    """
    tables = []
    faults = []
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")
        if not path.is_file() or is_hidden or path.suffix.lower() not in SUFFIXES:
            continue
        if path.suffix.lower() == ".txt":
            continue  # a note more often than a table
        try:
            read = open_table(path, "init").columns
        except DataError as error:
            faults.append(error.text)
            continue
        columns = {name: Column(name, _texts(cells)) for name, cells in read.items()}
        tables.append(_with_photos(FoundTable(path, columns), folder))
    if faults and not tables:
        raise SpecError("; ".join(faults))
    return tables


def _texts(cells: Iterable[object]) -> list[str]:
    texts = []
    for cell in cells:
        text = "" if cell is None else str(cell)
        if isinstance(cell, bool):
            text = text.lower()
        texts.append("" if text.strip() in _MISSING else text)
    return texts


def photo_folders(folder: Path) -> list[str]:
    """Return the folders below a root, itself included, that may hold its photos, likely ones first."""
    names = [".", *sorted(path.name for path in folder.iterdir() if _is_folder(path))]
    first = ("images", "train", "training", "photos", "data")
    return sorted(names, key=lambda name: (name not in first, name))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not is_passed_over(path.name, is_folder=True)


def _with_photos(table: FoundTable, folder: Path) -> FoundTable:
    """Find the column and the folder that fit best."""
    best = table
    for images in photo_folders(folder):
        for name, column in table.columns.items():
            names = list(dict.fromkeys(column.values))[:_PROBED]
            if len(names) < min(2, table.n_rows):
                continue
            # a number is a name only where a file is called like it
            resolved = resolve(str(folder / images), names)
            known = [text for text in resolved.paths if (folder / images / text).exists()]
            share = len(known) / len(names) if names else 0.0
            if share > best.share:
                are_folders = bool(known) and (folder / images / known[0]).is_dir()
                best = FoundTable(table.path, table.columns, name, images, share, are_folders)
        if best.share == 1.0:
            break
    return best


def choose_train(tables: Sequence[FoundTable]) -> FoundTable | None:
    """Return the table of the labelled photos: no submission, no test table, most photos."""
    named = [table for table in tables if table.share and not _SUBMISSION.search(table.path.stem)]
    with_labels = [table for table in named if len(table.columns) > 1]

    def rank(table: FoundTable) -> tuple[bool, float, int]:
        return not _TEST.search(table.path.stem), table.share, table.n_rows

    return max(with_labels, key=rank, default=None)


def choose_submission(tables: Sequence[FoundTable], train: FoundTable) -> FoundTable | None:
    """Return the sample of a contest's submission, if its photos are there."""
    for table in tables:
        if table is not train and _SUBMISSION.search(table.path.stem) and table.share == 1.0:
            return table
    return None


@dataclass(frozen=True)
class ClassTree:
    """Folders of photos, one per class, and the photos' names in each."""

    images: str
    photos: dict[str, list[str]]
    test: str | None = None  # a folder of test photos beside it
    test_has_classes: bool = False
    has_others: bool = False  # photos in folders that are no class


def read_classes(folder: Path) -> ClassTree | None:
    """Find one folder of photos per class: below images/, below train/, or in the root itself.

    Photos of a class may lie in folders of their own, such as one per plant.
    """
    for is_deep in (False, True):
        for images in ("images", *_TRAIN, "."):
            place = folder / images
            if place.is_dir() and len(_class_photos(place, images, is_deep=is_deep)) > 1:
                return _class_tree(folder, images)
    return None


def _class_tree(folder: Path, images: str) -> ClassTree:
    photos = _class_photos(folder / images, images, is_deep=True)
    has_others = len(_photos_by_folder(folder / images, is_deep=True)) > len(photos)
    for name in (*_TESTS, *_VAL):
        beside = folder / name
        if images != "images" and beside.is_dir():
            classes = _photos_by_folder(beside, is_deep=True)
            has_classes = bool(classes) and set(classes) <= set(photos)
            if has_classes or _has_photos(beside):
                return ClassTree(images, photos, name, has_classes, has_others)
    return ClassTree(images, photos, has_others=has_others)


def _class_photos(place: Path, images: str, *, is_deep: bool) -> dict[str, list[str]]:
    photos = _photos_by_folder(place, is_deep=is_deep)
    if images == ".":
        for name in (*_VAL, *_TESTS, "images"):
            photos.pop(name, None)
    return photos


def _photos_by_folder(place: Path, *, is_deep: bool) -> dict[str, list[str]]:
    """Return the photos' paths below each folder: those in it, or also those in folders there."""
    photos = {}
    for path in sorted(place.iterdir()):
        if _is_folder(path):
            names = [entry.name for entry in path.iterdir() if is_photo(entry.name)]
            if is_deep:
                names = list(_photos_below(path, ""))
            if names:
                photos[path.name] = sorted(names)
    return photos


def _photos_below(folder: Path, prefix: str) -> Iterator[str]:
    for path in folder.iterdir():
        if _is_folder(path) and not path.is_symlink():
            yield from _photos_below(path, f"{prefix}{path.name}/")
        elif is_photo(path.name):
            yield f"{prefix}{path.name}"


def _has_photos(place: Path) -> bool:
    return any(is_photo(path.name) for path in place.iterdir())


def is_photo(name: str) -> bool:
    """Return True if a name is that of a photo."""
    is_file = not is_passed_over(name, is_folder=False)
    return is_file and name.lower().endswith(EXTENSIONS)


def count_photos(folder: Path) -> int:
    """Return the number of photos below a folder."""
    n_photos = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_passed_over(name, is_folder=True)]
        n_photos += sum(map(is_photo, files))
    return n_photos
