"""The labels of a test table: the only place that reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_listing import list_test
from data_prep.catalog.photo_paths import composed
from data_prep.catalog.user_tables import Columns, read_table
from data_prep.config import Data, StemLabel, TestTable
from data_prep.errors import DataError, nearest, some
from data_prep.label_codes import code_of
from data_prep.roots.places import join

WHERE = "data.test.label"
_FEW = 4
"""Answers that may be of one class by chance."""


def read_answers(data: Data, base: Path) -> dict[str, int]:
    """Return the class of every photo of the test table, by its path below the photos' folder.

    Raises:
        DataError: a column is missing, or a label is no class.
    """
    test = data.test
    assert isinstance(test, TestTable)  # noqa: S101 - callers ask for a table's labels only
    names = [test.label] if isinstance(test.label, str) else list(test.label or [])
    listing = list_test(test, base)
    path = join(base, test.root, test.table)
    columns = listing.columns
    if test.layout == "table":
        columns = read_table(path, WHERE, [test.id, *names])
    for name in names:
        if name not in columns:
            raise DataError(
                WHERE,
                f"a column {name!r} was required in {test.table}, found none of that name"
                f"{nearest(name, _columns_of(path))}",
            )
    schema = Schema.of(data.labels)
    if isinstance(test.label, str):
        classes = _joint_classes(schema, test.label, columns[test.label])
    else:
        classes = _classes_by_label(data, schema, columns, names)
    faults = []
    answers = {}
    for relative, answer in zip(listing.relatives, classes, strict=True):
        if isinstance(answer, str):
            faults.append(f"test/{relative}: {answer}")
        else:
            answers[relative] = answer
    if faults:
        raise DataError(
            WHERE,
            f"a class from 0 to {schema.n_classes - 1} (or its name, such as "
            f"{schema.class_name(0)!r}) was required for every photo, {len(faults)} have none: "
            f"{some(faults)}. Correct them, or leave out {WHERE}",
        )
    return answers


def placeholder(data: Data, base: Path) -> str | None:
    """Return a warning if all answers of a test table are one class: they may be placeholders.

    Raises:
        DataError: as `read_answers`.
    """
    if not isinstance(data.test, TestTable) or not data.test.label:
        return None
    schema = Schema.of(data.labels)
    counts = Counter(read_answers(data, base).values())
    if len(counts) != 1 or counts.total() < _FEW or schema.n_classes == 1:
        return None
    return (
        f"all {counts.total()} answers of {data.test.table} are one class "
        f"({schema.class_name(next(iter(counts)))}): a placeholder of a contest? "
        f"Then leave out {WHERE}, its score means nothing"
    )


def _columns_of(path: str) -> list[str]:
    return list(read_table(path, WHERE))


def _classes_by_label(
    data: Data, schema: Schema, columns: Columns, names: list[str]
) -> list[int | str]:
    """Join a column per label, each read by the rule of its label."""
    if len(names) != len(schema.names):
        raise DataError(
            WHERE,
            f"one column, or one per label ({', '.join(schema.names)}) was required, "
            f"found {', '.join(names)}",
        )
    by_label = []
    for (name, label), column in zip(data.labels.items(), names, strict=True):
        codes: list[int | str] = []
        for value in columns[column]:
            if isinstance(label, StemLabel):  # its rule reads file names, so the class is named
                classes = schema.classes[name]
                is_known = value in classes
                codes.append(classes.index(value) if is_known else f"{value!r} is no {name}")
            else:
                codes.append(code_of(label, value))
        by_label.append(codes)
    joint: list[int | str] = []
    for row in zip(*by_label, strict=True):
        fault = next((code for code in row if isinstance(code, str)), None)
        joint.append(schema.encode(list(row)) if fault is None else fault)
    return joint


def _joint_classes(schema: Schema, column: str, values: list[Any]) -> list[int | str]:
    """Return the class of each value: by name, by code, or by either.

    Either is allowed where no name is the code of another class.

    Raises:
        DataError: classes are named by numbers, and the column fits both readings, or neither.
    """
    texts = [_text(value) for value in values]
    names = {composed(schema.class_name(label)): label for label in range(schema.n_classes)}
    codes = {str(label): label for label in range(schema.n_classes)}
    reading = _reading(schema, column, names, codes, set(texts))
    classes: list[int | str] = []
    for text, value in zip(texts, values, strict=True):
        classes.append(reading.get(text, repr(value)))
    return classes


def _text(value: Any) -> str:
    """Write a whole number without a decimal point: a column with gaps holds 1.0 for 1."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = composed(str(value))
    whole, point, rest = text.partition(".")
    return whole if point and whole.isdecimal() and not rest.strip("0") else text


def _reading(
    schema: Schema, column: str, names: dict[str, int], codes: dict[str, int], values: set[str]
) -> dict[str, int]:
    either = names | codes
    doubtful = [name for name in sorted(names.keys() & codes.keys()) if names[name] != codes[name]]
    if not doubtful or values - either.keys():
        return either
    fitting = [reading for reading in (names, codes) if values <= reading.keys()]
    if len(fitting) == 1 or (fitting and not values.intersection(doubtful)):
        return fitting[0]
    example = next((value for value in doubtful if value in values), doubtful[0])
    readings = "both" if fitting else "neither"
    raise DataError(
        WHERE,
        f"a column of names or of codes was required, {column!r} can be read as {readings}: "
        f"{example!r} is the name of class {names[example]} and the code of class "
        f"{schema.class_name(codes[example])!r}. Write the column in codes and name the classes so "
        "that no name is a code, such as 'c1' for '1'",
    )
