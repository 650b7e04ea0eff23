"""A user's table, CSV or Parquet, as columns. Cells of a CSV table stay text."""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, MachineError
from data_prep.roots.places import is_url, open_binary

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_PROBED_ROWS = 20
_ENCODINGS = ("cp949", "shift_jis", "gb18030", "big5", "cp1251", "cp1252")
"""What tables are often saved in where it is not UTF-8."""

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class UserTable:
    """The columns of a table, and what a user should know of how it was read."""

    columns: Columns
    notes: list[str] = field(default_factory=list)


def read_table(path: Path | str, where: str, keep: Sequence[str] | None = None) -> Columns:
    """Return the columns of a table; see `open_table`."""
    return open_table(path, where, keep).columns


def open_table(path: Path | str, where: str, keep: Sequence[str] | None = None) -> UserTable:
    """Read a CSV (UTF-8; commas, tabs, semicolons or bars) or Parquet table as columns.

    An empty cell and a NaN of Parquet are None. Dates of Parquet become text as in ISO 8601. Columns
    without a name are passed over if they are an index or empty.

    Args:
        path: the table; a URL of a bucket is text.
        where: the spec's entry, for messages.
        keep: columns to keep; the others' cells never leave this function.

    Raises:
        DataError: it cannot be read, a row has another number of cells than the header, or two
            columns have one name.
    """
    place = str(path)
    read = _read_parquet if place.lower().endswith(".parquet") else _read_csv
    try:
        return read(place, where, keep)
    except FileNotFoundError:
        raise DataError(where, f"a table was required at {path}, found none") from None
    except OSError as error:
        raise DataError(where, f"{path} cannot be read: {error.strerror or error}") from None
    except MachineError as error:
        raise DataError(where, str(error)) from None
    except UnicodeDecodeError as error:
        raise DataError(where, _encoding_advice(place, error)) from None
    except csv.Error as error:  # of the rows that the separator was looked for in
        raise DataError(where, f"{path}: {error}") from None


def _encoding_advice(path: str, error: UnicodeDecodeError) -> str:
    with open_binary(path) as binary:
        content = binary.read()
    fitting = []
    for encoding in _ENCODINGS:
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        fitting.append(encoding)
    text = f"{path}: UTF-8 was required, found byte {error.object[error.start]:#x}"
    if not fitting:
        return f"{text}; save it as UTF-8"
    command = f"iconv -f {fitting[0]} -t utf-8 {_name(path)} > new.csv"
    return f"{text}; it could be {' or '.join(fitting)}: save it as UTF-8, `{command}`"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _read_csv(path: str, where: str, keep: Sequence[str] | None) -> UserTable:
    with open_binary(path) as binary:
        start = binary.read(4)
        binary.seek(0)
        is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        handle = io.TextIOWrapper(binary, newline="", encoding=encoding)
        delimiter = _delimiter(handle, path)
        handle.seek(0)
        reader = csv.reader(handle, strict=True, delimiter=delimiter)
        try:
            names = [name.strip() for name in next(reader, [])]
            rows = list(_rows(reader, names, path, where))
        except csv.Error as error:
            raise DataError(where, f"{path}:{reader.line_num}: {error}") from None
    unnamed = _unnamed(names, rows)
    left = [name for index, name in enumerate(names) if index not in unnamed]
    if not left or len(set(left)) < len(left) or not all(left):
        raise DataError(where, f"{path}: {_header_fault(left)}")
    if not rows:
        raise DataError(
            where, f"{path}: at least one row was required below the header, found none"
        )
    notes = []
    if delimiter != ",":
        notes.append(f"{_name(path)}: its cells are separated by {_DELIMITERS[delimiter]}")
    if unnamed:
        numbers = ", ".join(str(index + 1) for index in unnamed)
        notes.append(f"{_name(path)}: column {numbers} has no name and is passed over")
    columns: Columns = {}
    for index, name in enumerate(names):
        if index not in unnamed and (keep is None or name in keep):
            columns[name] = [row[index] or None for row in rows]
    return UserTable(columns, notes)


def _header_fault(names: list[str]) -> str:
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    found = f"{', '.join(map(repr, twice))} twice" if twice else f"found {names}"
    return f"a header line of distinct column names was required, {found}"


def _rows(reader: Any, names: list[str], path: str, where: str) -> Iterator[list[str]]:
    for row in reader:
        if not row:  # an empty line is no row
            continue
        if len(row) != len(names):
            raise DataError(
                where,
                f"{path}:{reader.line_num}: {len(names)} cells were required "
                f"({', '.join(names)}), found {len(row)}; correct the row, or put a cell that "
                "contains a separator into quotes",
            )
        yield row


def _delimiter(handle: Any, path: str) -> str:
    """Choose what separates cells: of those in the header, the one that fits the rows below."""
    lines = [line for line, _ in zip(handle, range(_PROBED_ROWS), strict=False)]
    header = lines[0] if lines else ""
    present = [mark for mark in _DELIMITERS if mark in header]
    if path.lower().endswith((".tsv", ".tab")) and "\t" in present:
        return "\t"
    if len(present) == 1:
        return present[0]
    for mark in present:
        sizes = {len(row) for row in csv.reader(lines, delimiter=mark) if row}
        if len(sizes) == 1:
            return mark
    return ","


def _unnamed(names: list[str], rows: list[list[str]]) -> list[int]:
    """Return the columns without a name that hold no data of the user: an index, or nothing."""
    unnamed = []
    for index, name in enumerate(names):
        if not name and (index == 0 or not any(row[index] for row in rows)):
            unnamed.append(index)
    return unnamed if len(unnamed) < len(names) else []


def _read_parquet(path: str, where: str, keep: Sequence[str] | None) -> UserTable:
    import pyarrow as pa  # noqa: PLC0415 - most tables are CSV
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(open_binary(path) if is_url(path) else path)
        if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
            raise DataError(
                where,
                f"{path}: distinct column names were required, found {file.schema_arrow.names}",
            )
        names = []
        notes = []
        for column in file.schema_arrow:
            if not _is_plain(column.type):
                notes.append(f"{_name(path)}: column {column.name} ({column.type}) is not read")
            elif keep is None or column.name in keep:
                names.append(column.name)
        columns = {}
        for name, cells in zip(names, file.read(columns=names).columns, strict=True):
            is_time = pa.types.is_timestamp(cells.type)
            # Python has no nanoseconds
            plain = cells.cast(pa.timestamp("us", cells.type.tz), safe=False) if is_time else cells
            columns[name] = _plain_cells(plain.to_pylist())
    except pa.ArrowInvalid as error:
        raise DataError(where, f"{path} is no Parquet table: {error}") from None
    if not file.metadata.num_rows:
        raise DataError(where, f"{path}: at least one row was required, found none")
    return UserTable(columns, notes)


def _plain_cells(cells: list[Any]) -> list[Any]:
    """Turn dates into text and NaN into None; a column of midnights holds dates."""
    kinds = {type(cell) for cell in cells}
    if kinds.isdisjoint({float, dt.date, dt.datetime}):
        return cells
    moments = [cell for cell in cells if isinstance(cell, dt.datetime)]
    are_dates = all(moment.time() == dt.time() for moment in moments)
    plain: list[Any] = []
    for cell in cells:
        if isinstance(cell, dt.datetime):
            plain.append((cell.date() if are_dates else cell).isoformat())
        elif isinstance(cell, dt.date):
            plain.append(cell.isoformat())
        else:
            is_nan = isinstance(cell, float) and math.isnan(cell)
            plain.append(None if is_nan else cell)
    return plain


def _is_plain(kind: Any) -> bool:
    """Return False for nested and extension types: some unpickle when they are read."""
    import pyarrow.types as pt  # noqa: PLC0415

    value = kind.value_type if pt.is_dictionary(kind) else kind
    if pt.is_string(value) or pt.is_large_string(value):
        return True
    if pt.is_date(value) or pt.is_timestamp(value):
        return True
    return bool(pt.is_integer(value) or pt.is_floating(value) or pt.is_boolean(value))
