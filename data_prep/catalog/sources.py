"""Data roots: their tables, and the list of photos that a layout names, before any photo is opened."""

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
    *(
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".xmp",
        ".yaml",
        ".yml",
        ".md",
        ".html",
        ".aae",
        ".log",
    ),
    *(".mat", ".pts", ".npy", ".npz", ".pkl", ".mov", ".mp4", ".avi"),
)
"""What people and tools write beside photos: no photo is lost by leaving it alone."""
_LITTER = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
}  # of file managers, hidden or not
_FOREIGN = re.compile(
    r"[a-z][a-z0-9+.-]*://|data:|[a-z]:[\\/]", re.IGNORECASE
)  # URLs and drive letters

Columns = dict[str, list[Any]]
Source = ProfileFolders | ClassFolders | Table


@dataclass(frozen=True)
class Listing:
    """Photos as columns: POSIX paths below `images/`, why some must not be opened, and what a table says of them."""

    relatives: list[str]
    refusals: list[str | None]
    columns: Columns

    def where(self, wanted: Callable[[int], bool]) -> Listing:
        """Return the photos whose position fits."""
        kept = [at for at in range(len(self.relatives)) if wanted(at)]
        columns = {name: [values[at] for at in kept] for name, values in self.columns.items()}
        return Listing(
            [self.relatives[at] for at in kept], [self.refusals[at] for at in kept], columns
        )


def list_source(source: Source, base: Path) -> Listing:
    """List the labelled photos in the layout's order.

    A path that leads out of the root is listed with its reason, and nobody opens it. So are, of layouts of folders,
    files of other formats and folders where photos were expected: they may hold photos that would be missed.

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
        key = source.path if isinstance(source, Table) else "path"
        if key not in columns:
            entry = "data.source.path" if isinstance(source, Table) else "data.source.table"
            raise DataError(
                entry, f"{path}: a column {key!r} was required, found {', '.join(columns)}"
            )
        listing = (_profile_folders if isinstance(source, ProfileFolders) else _one_by_one)(
            images, key, columns
        )
    _refuse_twins(listing, "data.source")
    return listing


def list_test(test: TestTable, base: Path) -> Listing:
    """List the test photos in the table's order. Of the table only the id and the group column are kept.

    Raises:
        DataError: the table or a photo is missing, or an id stands twice.
    """
    columns = _columns_of_test(test, base)
    listing = _one_by_one(images_of(test, base), test.id, columns, "data.test.table")
    _refuse_twins(listing, "data.test.table")
    groups = columns[test.group] if test.group else [None] * len(listing.relatives)
    return Listing(
        listing.relatives, listing.refusals, {"ImageID": columns[test.id], "group": groups}
    )


def images_of(section: Source | TestTable, base: Path) -> str:
    """Return the absolute folder below which a section's photos lie."""
    return os.path.abspath(base / section.root / "images")  # noqa: PTH100 - links stay: readers resolve and check them


def refusal(relative: str) -> str | None:
    """Say why a path must not be opened, None if it stays below its root (links are checked when it is read)."""
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
    """Read a CSV (UTF-8, comma) or Parquet table as columns; an empty cell is None, CSV cells stay text.

    Args:
        path: the table.
        where: the spec's entry, for messages.
        keep: columns to keep; the others' cells never leave this function.

    Raises:
        DataError: it cannot be read, a row has another number of cells than the header, or a name stands twice.
    """
    try:
        return (
            _read_parquet(path, where, keep)
            if path.suffix.lower() == ".parquet"
            else _read_csv(path, where, keep)
        )
    except FileNotFoundError:
        raise DataError(where, f"a table was required at {path}, found none") from None
    except OSError as error:
        raise DataError(where, f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            where,
            f"{path}: UTF-8 was required, found byte {error.object[error.start]:#x}; save it as UTF-8",
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
                if len(row) != len(names) and row:
                    raise DataError(
                        where,
                        f"{path}:{reader.line_num}: {len(names)} cells were required ({', '.join(names)}), "
                        f"found {len(row)}",
                    )
                if row:  # an empty line says nothing
                    rows.append(row)
        except csv.Error as error:
            raise DataError(where, f"{path}:{reader.line_num}: {error}") from None
    if not rows:
        raise DataError(
            where, f"{path}: at least one row was required below the header, found none"
        )
    kept = [(name, at) for at, name in enumerate(names) if keep is None or name in keep]
    return {name: [row[at] or None for row in rows] for name, at in kept}


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
        plain = [field.name for field in file.schema_arrow if _is_plain(field.type)]
        names = [name for name in plain if keep is None or name in keep]
        columns: Columns = file.read(columns=names).to_pydict()
    except pa.ArrowInvalid as error:
        raise DataError(where, f"{path} is no Parquet table: {error}") from None
    if not file.metadata.num_rows:
        raise DataError(where, f"{path}: at least one row was required, found none")
    return columns


def _is_plain(kind: Any) -> bool:
    """Nested and extension types of a stranger's file are left alone: some unpickle when they are read."""
    import pyarrow.types as pt  # noqa: PLC0415

    value = kind.value_type if pt.is_dictionary(kind) else kind
    return any(
        check(value)
        for check in (
            pt.is_integer,
            pt.is_floating,
            pt.is_string,
            pt.is_large_string,
            pt.is_boolean,
        )
    )


def _columns_of_test(test: TestTable, base: Path) -> Columns:
    path = base / test.root / test.table
    wanted = [test.id, *([test.group] if test.group else [])]
    columns = read_table(path, "data.test.table", wanted)
    for entry, name in (("id", test.id), ("group", test.group)):
        if name is not None and name not in columns:
            raise DataError(
                f"data.test.{entry}",
                f"{path}: a column {name!r} was required, found none of that name",
            )
    return columns


def _class_folders(images: str) -> Listing:
    relatives, refusals = [], []
    for name, is_folder in _entries(images):
        beside = [(_shown(name), refusal(name) or "refused: no folder of a class")]
        for relative, problem in _photos_in(images, name) if is_folder else beside:
            relatives.append(relative)
            refusals.append(problem)
    if not relatives:
        raise DataError(
            "data.source.root",
            f"{images}/<class>/<photo> was required, found no photo ({', '.join(EXTENSIONS)})",
        )
    return Listing(
        relatives, refusals, {"folder": [relative.partition("/")[0] for relative in relatives]}
    )


def _profile_folders(images: str, key: str, columns: Columns) -> Listing:
    relatives, refusals, rows, lost = [], [], [], []
    folders = [_tidy(value) for value in columns[key]]
    rooms = {str(room) for path in map(PurePosixPath, folders) for room in (path, *path.parents)}
    for row, folder in enumerate(folders):
        found = (
            [(folder, problem)]
            if (problem := refusal(folder))
            else list(_photos_in(images, folder, rooms))
        )
        if not found:
            lost.append(repr(folder))
        for relative, why in found:
            relatives.append(relative)
            refusals.append(why)
            rows.append(row)
    if lost:
        raise DataError(
            "data.source.table",
            f"a folder with photos below {images} was required for every row, {len(lost)} have none: "
            f"{some(lost)}. Restore the folders or take their rows out of the table",
        )
    return Listing(
        relatives,
        refusals,
        {name: [values[row] for row in rows] for name, values in columns.items()},
    )


def _one_by_one(
    images: str, key: str, columns: Columns, where: str = "data.source.table"
) -> Listing:
    relatives = [_tidy(value) for value in columns[key]]
    refusals = [refusal(relative) for relative in relatives]
    lost = [
        repr(relative)
        for relative, problem in zip(relatives, refusals, strict=True)
        if problem is None and not os.path.lexists(f"{images}/{relative}")
    ]
    if lost:
        raise DataError(
            where,
            f"a photo below {images} was required for every {key}, {len(lost)} are missing: {some(lost)}. "
            f"Restore the photos or take their rows out of the table",
        )
    return Listing(relatives, refusals, columns)


def _photos_in(
    images: str, folder: str, rooms: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    """List a folder's photos, and what else may hold photos with the reason why it is not read; `rooms` are read too."""
    place = os.path.realpath(f"{images}/{folder}")
    if not place.startswith(os.path.realpath(images) + os.sep):
        yield folder, "refused: the link leads out of the data folder"
        return
    for name, is_folder in _entries(place):
        relative = f"{folder}/{name}"
        if not (is_folder and relative in rooms):
            yield _shown(relative), refusal(relative) or _unread(name, is_folder=is_folder)


def _unread(name: str, *, is_folder: bool) -> str | None:
    if is_folder:
        return "refused: a folder, photos in it are not read"
    if name.lower().endswith(EXTENSIONS):
        return None
    kind = PurePosixPath(name).suffix.lower() or "no extension"
    return f"refused: {kind}, only {', '.join(EXTENSIONS)} are read"


def _entries(folder: str) -> list[tuple[str, bool]]:
    """List a folder in sorted order with what is a folder, without hidden files (._mask1.jpg), litter and notes."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        (name, is_folder)
        for name, is_folder in found
        if not name.startswith(".")
        and name.lower() not in _LITTER
        and (is_folder or not name.lower().endswith(_NOTES))
    )


def _tidy(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if refusal(text) else PurePosixPath(text).as_posix()


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _refuse_twins(listing: Listing, where: str) -> None:
    """Names that differ in case only are one file on many systems; of what nobody opens, equal names alone matter."""
    seen: dict[str, str] = {}
    twins = []
    for relative, problem in zip(listing.relatives, listing.refusals, strict=True):
        if (key := relative.casefold() if problem is None else relative) in seen:
            twins.append(f"{seen[key]!r} and {relative!r}")
        seen[key] = relative
    if twins:
        raise DataError(
            where,
            f"names that differ in more than case were required, {len(twins)} stand twice: {some(twins)}",
        )
