"""Data roots: their tables, and the photos that a layout names, before any photo is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.catalog.photo_paths import EXTENSIONS, composed, refusal, resolve
from data_prep.catalog.user_tables import Columns, UserTable, open_table
from data_prep.config import ClassFolders, Data, ProfileFolders, Table, TestTable
from data_prep.errors import DataError, MachineError, some
from data_prep.photo_files import entries, photos_in, photos_under, shown
from data_prep.roots import places

Source = ProfileFolders | ClassFolders | Table

MISSING_FILE = "the file is missing"
"""The status of a row of a table whose photo is not there."""
_MAX_MISSING = 0.1
"""The share of rows without a file above which the names are read wrongly, or a folder is gone."""


@dataclass(frozen=True)
class Listing:
    """Photos as columns: POSIX paths below `images/`, why some must not be opened, a table's cells."""

    relatives: list[str]
    refusals: list[str | None]
    columns: Columns
    notes: list[str] = field(default_factory=list)  # what a user should know of how it was read

    @property
    def n_missing(self) -> int:
        """Number of rows whose file is missing."""
        return self.refusals.count(MISSING_FILE)

    def where(self, wanted: Callable[[int], bool]) -> Listing:
        """Return the photos whose position fits."""
        kept = [index for index in range(len(self.relatives)) if wanted(index)]
        return replace(
            self,
            relatives=_take(self.relatives, kept),
            refusals=_take(self.refusals, kept),
            columns=_take_rows(self.columns, kept),
        )


def list_source(source: Source, base: Path) -> Listing:
    """List the labelled photos in the layout's order.

    A path that leads out of the root is listed with its reason, and is never opened. So is a row of
    a table whose file is missing, as long as nine rows of ten have theirs. Layouts of folders
    also list other files, and folders in place of photos: they may hold photos.

    Raises:
        DataError: a table, column, folder or photo is missing, or a photo is listed twice.
    """
    images = images_of(source, base)
    require_images(source, base, "source")
    if isinstance(source, ClassFolders):
        listing = _class_folders(images)
    else:
        path = places.join(base, source.root, source.table)
        table = open_table(path, "data.source.table")
        if isinstance(source, Table):
            _require_column(source.path, table.columns, "data.source.path", path)
            listing = _photos_of_table(images, source.path, table, path)
        else:
            _require_column("path", table.columns, "data.source.table", path)
            listing = _profile_folders(images, "path", table)
    _refuse_twins(listing, "data.source", images)
    return listing


def list_test(test: TestTable, base: Path) -> Listing:
    """List the test photos in the table's order, with its id and group columns only.

    Raises:
        DataError: the table or a photo is missing, or an id is there twice.
    """
    images = images_of(test, base)
    require_images(test, base, "test")
    if test.layout != "table":
        listing = _photos_below(images) if test.layout == "folder" else _class_folders(images)
        listing = listing.where(lambda index: listing.refusals[index] is None)
        no_groups = [None] * len(listing.relatives)
        columns = {**listing.columns, "ImageID": list(listing.relatives), "group": no_groups}
        return replace(listing, columns=columns)
    table = _open_test(test, base)
    path = places.join(base, test.root, test.table)
    listing = _photos_of_table(images, test.id, table, path, is_test=True)
    _refuse_twins(listing, "data.test.table", images)
    columns = table.columns
    groups = columns[test.group] if test.group else [None] * len(listing.relatives)
    return replace(listing, columns={"ImageID": columns[test.id], "group": groups})


def table_of(section: Source | TestTable) -> str | None:
    """Return the name of a section's table, None where its layout needs none."""
    if isinstance(section, ClassFolders) or (
        isinstance(section, TestTable) and section.layout != "table"
    ):
        return None
    return section.table


def images_of(section: Source | TestTable, base: Path) -> str:
    """Return the absolute folder below which a section's photos lie, or its URL."""
    images = places.join(base, section.root, section.images)
    # links stay as they are: readers resolve and check them
    return images if places.is_url(images) else os.path.abspath(images)  # noqa: PTH100


def sides(data: Data) -> list[tuple[str, Source | TestTable]]:
    """Return the sections of a spec that have a data root, by the name of their key."""
    sections: list[tuple[str, Source | TestTable]] = [("source", data.source)]
    if isinstance(data.test, TestTable):
        sections.append(("test", data.test))
    return sections


def require_images(section: Source | TestTable, base: Path, side: str) -> None:
    """Raise unless the root and the folder of the photos are there.

    Raises:
        DataError: one of them is missing, or a bucket refuses.
    """
    root = places.join(base, section.root)
    if not places.is_url(root) and not places.is_folder(root):
        raise DataError(
            f"data.{side}.root",
            f"a folder was required, found nothing at {root}; roots are relative to {base}",
        )
    images = images_of(section, base)
    try:
        folders = None if places.is_folder(images) else places.folders_at(root)
    except MachineError as error:
        raise DataError(f"data.{side}.root", str(error)) from None
    if folders is not None:
        choices = ", ".join(folders[:5]) or "none"
        raise DataError(
            f"data.{side}.root",
            f"photos below {images} were required, found no such folder; name the folder below the "
            f"root in data.{side}.images ('.' for the root itself); folders there: {choices}",
        )


def _open_test(test: TestTable, base: Path) -> UserTable:
    path = places.join(base, test.root, test.table)
    wanted = {"id": test.id}
    if test.group is not None:
        wanted["group"] = test.group
    table = open_table(path, "data.test.table", list(wanted.values()))
    for entry, name in wanted.items():
        if name not in table.columns:
            raise DataError(
                f"data.test.{entry}",
                f"{path}: a column {name!r} was required, found none of that name",
            )
    return table


def _require_column(name: str, columns: Columns, where: str, path: str) -> None:
    if name not in columns:
        raise DataError(
            where, f"{path}: a column {name!r} was required, found {', '.join(columns)}"
        )


def _class_folders(images: str) -> Listing:
    relatives = []
    refusals: list[str | None] = []
    for name, is_folder in entries(images):
        if not is_folder:
            relatives.append(shown(name))
            refusals.append(refusal(name) or "refused: no folder of a class")
            continue
        for relative, problem in photos_under(images, name):
            relatives.append(relative)
            refusals.append(problem)
    if not relatives:
        raise DataError(
            "data.source.root",
            f"{images}/<class>/<photo> was required, found no photo ({', '.join(EXTENSIONS)})",
        )
    folders = [relative.partition("/")[0] for relative in relatives]
    return Listing(relatives, refusals, {"folder": folders})


def _photos_below(images: str) -> Listing:
    """List all photos below a folder, sorted, those in folders too."""
    relatives = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for name, is_folder in entries(f"{images}/{folder}"):
            relative = f"{folder}{name}"
            if is_folder and not places.is_link(f"{images}/{relative}"):
                folders.append(f"{relative}/")
            elif not is_folder and name.lower().endswith(EXTENSIONS):
                relatives.append(relative)
    readable = sorted(name for name in relatives if refusal(name) is None)
    if not readable:
        raise DataError("data.test.root", f"photos below {images} were required, found none")
    return Listing(readable, [None] * len(readable), {})


def _profile_folders(images: str, key: str, table: UserTable) -> Listing:
    relatives = []
    refusals = []
    rows = []
    lost = []
    names = ["" if value is None else str(value) for value in table.columns[key]]
    resolved = resolve(images, names)
    folders = resolved.paths
    listed: set[str] = set()
    for folder in folders:
        path = PurePosixPath(folder)
        listed.update(map(str, (path, *path.parents)))
    for row, folder in enumerate(folders):
        refused = refusal(folder)
        photos: list[tuple[str, str | None]] = [(folder, refused)]
        if not refused:
            photos = list(photos_in(images, folder, listed))
        if not photos:
            lost.append(repr(folder))
        for relative, problem in photos:
            relatives.append(relative)
            refusals.append(problem)
            rows.append(row)
    if lost:
        raise DataError(
            "data.source.table",
            f"a folder with photos below {images} was required for every row, {len(lost)} have "
            f"none: {some(lost)}. Restore the folders or take their rows out of the table",
        )
    notes = [*table.notes, *resolved.notes]
    return Listing(relatives, refusals, _take_rows(table.columns, rows), notes)


def _photos_of_table(
    images: str, key: str, table: UserTable, path: str, *, is_test: bool = False
) -> Listing:
    names = ["" if value is None else str(value) for value in table.columns[key]]
    resolved = resolve(images, names)
    refusals = list(map(refusal, resolved.paths))
    notes = [*table.notes, *resolved.notes]
    lost = set(resolved.lost)
    missing = [index for index, name in enumerate(names) if name in lost]
    if missing:
        text = _missing_rows(images, path, names, missing)
        if is_test or len(missing) > _MAX_MISSING * len(names):
            raise DataError(
                "data.test.table" if is_test else "data.source.table",
                f"{text}{_there(images)}. Restore the photos or take their rows out of the table",
            )
        notes.append(f"{text}; left out")
    for index in missing:
        refusals[index] = MISSING_FILE
    return Listing(resolved.paths, refusals, table.columns, notes)


def _missing_rows(images: str, path: str, names: Sequence[str], missing: Sequence[int]) -> str:
    """Say which rows of a table name no file; rows count as a spreadsheet shows them."""
    table = PurePosixPath(path)
    header = 0 if table.suffix.lower() == ".parquet" else 1
    first, *others = missing
    text = (
        f"row {first + header + 1} of {table.name} names {names[first]}, which is not in "
        f"{Path(images).name}/ ({len(missing)} of {len(names)}"
    )
    if others:
        named = [f"row {index + header + 1}: {names[index]}" for index in others]
        text += f"; also {some(named)}"
    return f"{text})"


def _there(images: str) -> str:
    """Name a file that is there, so that a reader sees what names should look like."""
    for place, _, files in places.walk(images):
        photos = sorted(name for name in files if name.lower().endswith(EXTENSIONS))
        if photos:
            below = os.path.relpath(f"{place}/{photos[0]}", images)
            return f"; a file there is {shown(below)!r}"
    return "; no photo is there"


def _refuse_twins(listing: Listing, where: str, images: str) -> None:
    """Refuse a photo that is listed twice, in the same letters or in others.

    Names that differ in case are two photos where the file system tells them apart. Of files that
    are never opened, equal names alone matter.
    """
    seen: dict[str, int] = {}
    again = []
    differ = []
    for row, (relative, problem) in enumerate(
        zip(listing.relatives, listing.refusals, strict=True)
    ):
        key = composed(relative).casefold() if problem is None else relative
        first = seen.setdefault(key, row)
        other = listing.relatives[first]
        if first == row or not _is_one_file(images, other, relative):
            continue
        name = repr(other) if other == relative else f"{other!r} as {relative!r}"
        again.append(name)
        if any(cells[first] != cells[row] for cells in listing.columns.values()):
            differ.append(name)
    if not again:
        return
    rows = "the same row stands there again"
    if differ:
        rows = f"with other cells for {some(differ)}"
    raise DataError(
        where,
        f"one row per photo was required, {len(again)} are there twice ({rows}): {some(again)}. "
        "Take the second row out of the table",
    )


def _is_one_file(images: str, first: str, second: str) -> bool:
    if first == second:
        return True
    if places.is_url(images):
        return False
    try:
        return Path(images, first).samefile(Path(images, second))
    except OSError:  # a link to nothing
        return False


def _take(values: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [values[index] for index in indices]


def _take_rows(columns: Columns, indices: Sequence[int]) -> Columns:
    return {name: _take(values, indices) for name, values in columns.items()}
