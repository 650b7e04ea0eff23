"""Data roots: their tables, and the photos that a layout names, before any photo is opened."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.config import ClassFolders, ProfileFolders, Table, TestTable
from data_prep.errors import DataError, some

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_NOTES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".xmp", ".yaml", ".yml", ".md"),
    *(".html", ".aae", ".log", ".mat", ".pts", ".npy", ".npz", ".pkl", ".mov", ".mp4", ".avi"),
)
"""What people and tools write beside photos: to ignore it loses no photo."""
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
"""Files of file managers, hidden or not."""
_FOREIGN = re.compile(r"[a-z][a-z0-9+.-]*://|data:|[a-z]:[\\/]", re.IGNORECASE)
"""URLs and drive letters."""

Columns = dict[str, list[Any]]
Source = ProfileFolders | ClassFolders | Table


@dataclass(frozen=True)
class Listing:
    """Photos as columns: POSIX paths below `images/`, why some must not be opened, a table's cells."""

    relatives: list[str]
    refusals: list[str | None]
    columns: Columns

    def where(self, wanted: Callable[[int], bool]) -> Listing:
        """Return the photos whose position fits."""
        kept = [index for index in range(len(self.relatives)) if wanted(index)]
        return Listing(
            _take(self.relatives, kept), _take(self.refusals, kept), _take_rows(self.columns, kept)
        )


def list_source(source: Source, base: Path) -> Listing:
    """List the labelled photos in the layout's order.

    A path that leads out of the root is listed with its reason, and is never opened. Layouts of
    folders also list files of other formats and folders in place of photos: they may hold photos.

    Raises:
        DataError: a table, column, folder or photo is missing, or two photos have one name.
    """
    images = images_of(source, base)
    if not Path(images).is_dir():
        raise DataError(
            "data.source.root", f"photos below {images} were required, found no such folder"
        )
    if isinstance(source, ClassFolders):
        listing = _class_folders(images)
    else:
        path = base / source.root / source.table
        columns = read_table(path, "data.source.table")
        if isinstance(source, Table):
            _require_column(source.path, columns, "data.source.path", path)
            listing = _photos_of_table(images, source.path, columns)
        else:
            _require_column("path", columns, "data.source.table", path)
            listing = _profile_folders(images, "path", columns)
    _refuse_twins(listing, "data.source")
    return listing


def list_test(test: TestTable, base: Path) -> Listing:
    """List the test photos in the table's order, with its id and group columns only.

    Raises:
        DataError: the table or a photo is missing, or an id is there twice.
    """
    columns = _columns_of_test(test, base)
    listing = _photos_of_table(images_of(test, base), test.id, columns, "data.test.table")
    _refuse_twins(listing, "data.test.table")
    groups = columns[test.group] if test.group else [None] * len(listing.relatives)
    of_table = {"ImageID": columns[test.id], "group": groups}
    return Listing(listing.relatives, listing.refusals, of_table)


def images_of(section: Source | TestTable, base: Path) -> str:
    """Return the absolute folder below which a section's photos lie."""
    # links stay as they are: readers resolve and check them
    return os.path.abspath(base / section.root / "images")  # noqa: PTH100


def refusal(relative: str) -> str | None:
    """Return why a path must not be opened, None if it stays below its root.

    Links are checked when the photo is read.
    """
    parts = relative.replace("\\", "/").split("/")
    if not relative or "\0" in relative:
        return "refused: an empty path or one with a NUL"
    if _FOREIGN.match(relative):
        return "refused: an address, not a path below images/"
    if relative.startswith(("/", "\\", "~/")):
        return "refused: a path from outside images/"
    if ".." in parts:
        return "refused: the path leads out of images/"
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "refused: the name is not UTF-8"
    return None


def read_table(path: Path, where: str, keep: Sequence[str] | None = None) -> Columns:
    """Read a CSV (UTF-8, comma) or Parquet table as columns.

    An empty cell is None. Cells of a CSV table stay text.

    Args:
        path: the table.
        where: the spec's entry, for messages.
        keep: columns to keep; the others' cells never leave this function.

    Raises:
        DataError: it cannot be read, a row has another number of cells than the header, or two
            columns have one name.
    """
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    try:
        return read(path, where, keep)
    except FileNotFoundError:
        raise DataError(where, f"a table was required at {path}, found none") from None
    except OSError as error:
        raise DataError(where, f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            where,
            f"{path}: UTF-8 was required, found byte {error.object[error.start]:#x}; "
            "save it as UTF-8",
        ) from None


def _read_csv(path: Path, where: str, keep: Sequence[str] | None) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            if not names or len(set(names)) < len(names) or not all(names):
                raise DataError(
                    where,
                    f"{path}: a header line of distinct column names was required, found {names}",
                )
            rows = []
            for row in reader:
                if not row:  # an empty line is no row
                    continue
                if len(row) != len(names):
                    raise DataError(
                        where,
                        f"{path}:{reader.line_num}: {len(names)} cells were required "
                        f"({', '.join(names)}), found {len(row)}",
                    )
                rows.append(row)
        except csv.Error as error:
            raise DataError(where, f"{path}:{reader.line_num}: {error}") from None
    if not rows:
        raise DataError(
            where, f"{path}: at least one row was required below the header, found none"
        )
    columns: Columns = {}
    for index, name in enumerate(names):
        if keep is None or name in keep:
            columns[name] = [row[index] or None for row in rows]
    return columns


def _read_parquet(path: Path, where: str, keep: Sequence[str] | None) -> Columns:
    import pyarrow as pa  # noqa: PLC0415 - most tables are CSV
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(path)
        if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
            raise DataError(
                where,
                f"{path}: distinct column names were required, found {file.schema_arrow.names}",
            )
        names = []
        for field in file.schema_arrow:
            if _is_plain(field.type) and (keep is None or field.name in keep):
                names.append(field.name)
        columns: Columns = file.read(columns=names).to_pydict()
    except pa.ArrowInvalid as error:
        raise DataError(where, f"{path} is no Parquet table: {error}") from None
    if not file.metadata.num_rows:
        raise DataError(where, f"{path}: at least one row was required, found none")
    return columns


def _is_plain(kind: Any) -> bool:
    """Return False for nested and extension types: some unpickle when they are read."""
    import pyarrow.types as pt  # noqa: PLC0415

    value = kind.value_type if pt.is_dictionary(kind) else kind
    if pt.is_string(value) or pt.is_large_string(value):
        return True
    return bool(pt.is_integer(value) or pt.is_floating(value) or pt.is_boolean(value))


def _columns_of_test(test: TestTable, base: Path) -> Columns:
    path = base / test.root / test.table
    wanted = {"id": test.id}
    if test.group is not None:
        wanted["group"] = test.group
    columns = read_table(path, "data.test.table", list(wanted.values()))
    for entry, name in wanted.items():
        if name not in columns:
            raise DataError(
                f"data.test.{entry}",
                f"{path}: a column {name!r} was required, found none of that name",
            )
    return columns


def _require_column(name: str, columns: Columns, where: str, path: Path) -> None:
    if name not in columns:
        raise DataError(
            where, f"{path}: a column {name!r} was required, found {', '.join(columns)}"
        )


def _class_folders(images: str) -> Listing:
    relatives = []
    refusals: list[str | None] = []
    for name, is_folder in _entries(images):
        if not is_folder:
            relatives.append(_shown(name))
            refusals.append(refusal(name) or "refused: no folder of a class")
            continue
        for relative, problem in _photos_in(images, name):
            relatives.append(relative)
            refusals.append(problem)
    if not relatives:
        raise DataError(
            "data.source.root",
            f"{images}/<class>/<photo> was required, found no photo ({', '.join(EXTENSIONS)})",
        )
    folders = [relative.partition("/")[0] for relative in relatives]
    return Listing(relatives, refusals, {"folder": folders})


def _profile_folders(images: str, key: str, columns: Columns) -> Listing:
    relatives = []
    refusals = []
    rows = []
    lost = []
    folders = [_tidy(value) for value in columns[key]]
    listed: set[str] = set()
    for folder in folders:
        path = PurePosixPath(folder)
        listed.update(map(str, (path, *path.parents)))
    for row, folder in enumerate(folders):
        refused = refusal(folder)
        photos = [(folder, refused)] if refused else list(_photos_in(images, folder, listed))
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
    return Listing(relatives, refusals, _take_rows(columns, rows))


def _photos_of_table(
    images: str, key: str, columns: Columns, where: str = "data.source.table"
) -> Listing:
    relatives = list(map(_tidy, columns[key]))
    refusals = list(map(refusal, relatives))
    lost = []
    for relative, problem in zip(relatives, refusals, strict=True):
        if problem is None and not os.path.lexists(f"{images}/{relative}"):
            lost.append(repr(relative))
    if lost:
        raise DataError(
            where,
            f"a photo below {images} was required for every {key}, {len(lost)} are missing: "
            f"{some(lost)}. Restore the photos or take their rows out of the table",
        )
    return Listing(relatives, refusals, columns)


def _photos_in(
    images: str, folder: str, listed: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    """List a folder's photos, and what else may hold photos with the reason why it is not read.

    Folders in `listed` are read on their own, so they are left out here.
    """
    place = os.path.realpath(f"{images}/{folder}")
    if not place.startswith(os.path.realpath(images) + os.sep):
        yield folder, "refused: the link leads out of the data folder"
        return
    for name, is_folder in _entries(place):
        relative = f"{folder}/{name}"
        if not (is_folder and relative in listed):
            yield _shown(relative), refusal(relative) or _unread(name, is_folder=is_folder)


def _unread(name: str, *, is_folder: bool) -> str | None:
    if is_folder:
        return "refused: a folder, photos in it are not read"
    if name.lower().endswith(EXTENSIONS):
        return None
    kind = PurePosixPath(name).suffix.lower() or "no extension"
    return f"refused: {kind}, only {', '.join(EXTENSIONS)} are read"


def _entries(folder: str) -> list[tuple[str, bool]]:
    """List the names in a folder, sorted, and whether each is a folder.

    Hidden files (._mask1.jpg), litter and notes are left out.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                is_folder = entry.is_dir()
                is_note = name.endswith(_NOTES) and not is_folder
                if not (name.startswith(".") or name in _LITTER or is_note):
                    names.append((entry.name, is_folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names)


def _tidy(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if refusal(text) else PurePosixPath(text).as_posix()


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _refuse_twins(listing: Listing, where: str) -> None:
    """Refuse names that differ in case only: they are one file on many systems.

    Of files that are never opened, equal names alone matter.
    """
    seen: dict[str, str] = {}
    twins = []
    for relative, problem in zip(listing.relatives, listing.refusals, strict=True):
        key = relative.casefold() if problem is None else relative
        if key in seen:
            twins.append(f"{seen[key]!r} and {relative!r}")
        seen[key] = relative
    if twins:
        raise DataError(
            where,
            f"names that differ in more than case were required, {len(twins)} are there twice: "
            f"{some(twins)}",
        )


def _take(values: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [values[index] for index in indices]


def _take_rows(columns: Columns, indices: Sequence[int]) -> Columns:
    return {name: _take(values, indices) for name, values in columns.items()}
