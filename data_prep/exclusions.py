"""Rules about columns of the table: which photos they take out, and which photos are alike in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.catalog.label_schema import Schema, name_in_catalog
from data_prep.errors import DataError

Ints = NDArray[np.int64]
_NOT_OF_USER = ("path", "label", "sha256", "width", "height", "status", "fold", "role")


def excluded(
    table: pa.Table, schema: Schema, rules: Sequence[Mapping[str, Any]], where: str = "data.exclude"
) -> NDArray[np.bool_]:
    """Return which samples a list of rules takes out: (n_samples,) bool.

    Args:
        table: rows of the catalog.
        schema: of its labels.
        rules: a sample goes when any rule fits, a rule fits when all its columns do.
        where: the spec's entry, for messages.

    Raises:
        DataError: a column is unknown, or a rule compares numbers with text.
    """
    out = np.zeros(len(table), dtype=bool)
    for number, rule in enumerate(rules):
        fits = np.ones(len(table), dtype=bool)
        for column, wanted in rule.items():
            fits &= _fits(table, schema, column, wanted, f"{where}[{number}].{column}")
        out |= fits & bool(rule)
    return out


def cells(table: pa.Table, schema: Schema, columns: Sequence[str], where: str) -> Ints:
    """Number the samples so that equal numbers mean equal values in all columns (or labels).

    Returns:
        (n_samples,) int64.

    Raises:
        DataError: a column is unknown.
    """
    values = [_values(table, schema, column, where)[0] for column in columns]
    if not values:
        return np.zeros(len(table), dtype=np.int64)
    numbers: dict[tuple[Any, ...], int] = {}
    cells = [numbers.setdefault(row, len(numbers)) for row in zip(*values, strict=True)]
    return np.array(cells, dtype=np.int64)


def _fits(
    table: pa.Table, schema: Schema, column: str, wanted: Any, where: str
) -> NDArray[np.bool_]:
    if isinstance(wanted, Mapping):
        return ~_fits(table, schema, column, wanted["not"], where)
    values, numeric = _values(table, schema, column, where)
    test = _test_of(wanted, numeric, where)
    fits = {value: value is not None and test(value) for value in set(values)}
    return np.array([fits[value] for value in values], dtype=bool)


def _values(table: pa.Table, schema: Schema, column: str, where: str) -> tuple[list[Any], bool]:
    """Return a column of the user's table, or the class names of a label, and whether it holds numbers."""
    names = _user_columns(table, schema)
    name = name_in_catalog(column, table.column_names)
    if name in names:
        kind = table[name].type
        return table[name].to_pylist(), pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if column in schema.names:
        classes = schema.classes[column]
        codes = table[f"label_{column}"].to_pylist()
        return [None if code is None else classes[code] for code in codes], False
    known = dict.fromkeys(name.removeprefix("table_") for name in names)
    known.update(dict.fromkeys(schema.names))
    raise DataError(
        where,
        f"a column of the table or a label was required, found {column!r}; there are "
        f"{', '.join(known)}",
    )


def _user_columns(table: pa.Table, schema: Schema) -> list[str]:
    not_of_user = {*_NOT_OF_USER, *(f"label_{name}" for name in schema.names)}
    return [name for name in table.column_names if name not in not_of_user]


def _test_of(wanted: Any, numeric: bool, where: str) -> Callable[[Any], bool]:
    listed = wanted if isinstance(wanted, list) else [wanted]
    numbers = []
    for value in listed:
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append(value)
    if isinstance(wanted, list) and len(wanted) == 2 and len(numbers) == 2:
        if not numeric:
            raise DataError(
                where,
                "a range fits columns of numbers only, found text; list the values in quotes "
                f"instead of {wanted}",
            )
        return lambda value: bool(numbers[0] <= value <= numbers[1])
    if numeric:
        if len(numbers) < len(listed):
            raise DataError(
                where, f"the column holds numbers, found {wanted!r}; write numbers without quotes"
            )
        return set(numbers).__contains__
    texts = set()
    for value in listed:
        texts.add(str(value).lower() if isinstance(value, bool) else str(value))
    return texts.__contains__
