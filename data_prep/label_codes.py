"""The codes of labels: what the rules of a spec make of names, folders and columns."""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.catalog.label_schema import MISSING, name_in_catalog
from data_prep.catalog.photo_paths import composed
from data_prep.config import ColumnLabel, FolderLabel, Label, StemLabel
from data_prep.errors import UNLABELLED, DataError, nearest, some

_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
"""007 is a name and no number."""


def code_of(label: Label, value: Any) -> int | str:
    """Return the code of one value under one label, or a text that says why it has none.

    Args:
        label: the rule.
        value: a stem, a part of a folder's name, or a value of a column.
    """
    if isinstance(label, StemLabel):
        return _code_of_stem(label, value)
    if value is None or value == "":
        return "the value is empty"
    if label.classes is None:
        return _bin_of(label.bins or [], value)
    code = class_of(label.classes, value)
    if code is not None:
        return code
    text = str(value)
    hint = ""
    if class_of(label.classes, text.strip()) is not None:
        hint = " (it has blanks around it)"
    return f"value {text!r} is none of {', '.join(label.classes)}{hint}"


def class_of(classes: Sequence[str], value: Any) -> int | None:
    """Return the code of the class that a value names, None if it names none.

    Text is compared as it is, in either Unicode form (NFC or NFD). Where all classes are numbers,
    numbers are compared: 0.0 is the class "0". Truth values are compared in any case.
    """
    text = composed(str(value).lower() if isinstance(value, bool) else str(value))
    names = [composed(name) for name in classes]
    if text in names:
        return names.index(text)
    if set(names) <= {"true", "false"}:
        return names.index(text.lower()) if text.lower() in names else None
    number = _number(text)
    numbers = [_number(name) for name in names]
    is_distinct = None not in numbers and len(set(numbers)) == len(numbers)
    return numbers.index(number) if is_distinct and number in numbers else None


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def number_of(value: Any) -> float | None:
    """Return the number that a value of a column is, None where it is none or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bin_of(borders: Sequence[float], value: Any) -> int | str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"value {value!r} is no number"
    if not math.isfinite(number):
        return f"value {value!r} is not finite"
    return sum(number >= border for border in borders)


def _code_of_stem(label: StemLabel, stem: str) -> int | str:
    fitting = {}
    for code, (name, patterns) in enumerate(label.classes.items()):
        forms = map(composed, _patterns(patterns))
        if any(fnmatch.fnmatchcase(composed(stem), pattern) for pattern in forms):
            fitting[name] = code
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    return f"stem {stem!r} fits {' and '.join(fitting) or 'no class'}"


def read_codes(
    labels: Mapping[str, Label],
    relatives: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    may_lack: bool = False,
) -> list[list[int]]:
    """Return the codes of all samples, one list per label.

    Args:
        labels: the rules by name.
        relatives: POSIX paths of the photos below `images/`.
        columns: the table's columns, one value per photo.
        may_lack: a sample without a class has the code `MISSING`.

    Raises:
        DataError: a rule leaves samples without a class or with two, or names a column that is not there.
    """
    all_codes = []
    for name, label in labels.items():
        codes = _codes(name, label, relatives, columns)
        if may_lack:
            all_codes.append([MISSING if isinstance(code, str) else code for code in codes])
        else:
            all_codes.append(_require_codes(name, label, relatives, codes))
    return all_codes


def unlabelled(
    labels: Mapping[str, Label],
    relatives: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    wholly: bool = False,
) -> list[str | None]:
    """Return per sample why it has no class of some label, None where it has all.

    Args:
        labels: the rules by name.
        relatives: POSIX paths of the photos below `images/`.
        columns: the table's columns, one value per photo.
        wholly: a reason is given only where a sample has no class of any label.

    Raises:
        DataError: a rule names a column that is not there.
    """
    reasons: list[str | None] = [None] * len(relatives)
    n_missing = [0] * len(relatives)
    for name, label in labels.items():
        for index, code in enumerate(_codes(name, label, relatives, columns)):
            if not isinstance(code, str):
                continue
            n_missing[index] += 1
            if reasons[index] is None:
                reasons[index] = f"no class of {name}: {code}"
    if not wholly:
        return reasons
    of_none = zip(reasons, n_missing, strict=True)
    return [reason if n == len(labels) else None for reason, n in of_none]


def values_in(label: ColumnLabel | FolderLabel, catalog: Any) -> list[Any]:
    """Return the values that a label is read from, out of a catalog; null where a row is not labelled.

    Args:
        label: the rule.
        catalog: rows as `build_catalog` returns them.
    """
    if isinstance(label, FolderLabel):
        relatives = [sample.partition("/")[2] for sample in catalog["sample_id"].to_pylist()]
        columns = {}
        if "folder" in catalog.column_names:
            columns["folder"] = catalog["folder"].to_pylist()
        return list(_values("", label, relatives, columns))
    values: list[Any] = catalog[name_in_catalog(label.column, catalog.column_names)].to_pylist()
    return values


def train_borders(labels: Mapping[str, Label]) -> dict[str, list[float]]:
    """Return the `train_bins` of the labels that name some."""
    return {
        name: label.train_bins
        for name, label in labels.items()
        if not isinstance(label, StemLabel) and label.train_bins
    }


def train_codes(labels: Mapping[str, Label], catalog: Any) -> dict[str, list[int]]:
    """Return the codes that training samples have under `train_bins`, for the labels that name some.

    Args:
        labels: the rules by name.
        catalog: rows of it.

    Returns:
        Label -> a code per row, `MISSING` where a row lacks the label.
    """
    codes = {}
    for name, label in labels.items():
        if isinstance(label, ColumnLabel | FolderLabel) and label.train_bins is not None:
            moved = label.model_copy(update={"bins": label.train_bins})
            rule = functools.partial(code_of, moved)
            known = map(rule, values_in(label, catalog))
            codes[name] = [MISSING if isinstance(code, str) else code for code in known]
    return codes


def _codes(
    name: str, label: Label, relatives: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[int | str]:
    known: dict[Any, int | str] = {}  # few distinct values: 100,000 photos cost 0.1 s
    codes = []
    for value in _values(name, label, relatives, columns):
        if value not in known:
            # a folder without that part gives None, and a stem is never None
            known[value] = code_of(label, value)
        codes.append(known[value])
    return codes


def _require_codes(
    name: str, label: Label, relatives: Sequence[str], codes: Sequence[int | str]
) -> list[int]:
    kept = []
    faults = []
    for relative, code in zip(relatives, codes, strict=True):
        if isinstance(code, str):
            faults.append(f"{relative}: {code}")
        else:
            kept.append(code)
    if faults:
        raise DataError(
            f"data.labels.{name}",
            f"one class per photo was required under the rule {_rule(label)}; {len(faults)} of "
            f"{len(relatives)} have not: {some(faults)}. Widen or narrow the rule, correct the "
            f"data, {UNLABELLED}",
        )
    return kept


def _values(
    name: str, label: Label, relatives: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> Sequence[Any]:
    if isinstance(label, StemLabel):
        return list(map(_stem, relatives))
    if isinstance(label, FolderLabel):
        folders = _class_folders(relatives, columns)
        return [_folder_part(label, folder) for folder in folders]
    if label.column not in columns:
        raise DataError(
            f"data.labels.{name}.column",
            f"one of {', '.join(columns)} was required, found {label.column!r}"
            f"{nearest(label.column, columns)}",
        )
    return columns[label.column]


def _stem(relative: str) -> str:
    name = relative.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _class_folders(relatives: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Sequence[str]:
    """Return the folder that a photo's class is read from: its own, or the first in class folders.

    In class folders a photo may lie deeper, and the column `folder` is the first folder.
    """
    first = [relative.partition("/")[0] for relative in relatives]
    if list(columns.get("folder", ())) == first:
        return first
    return [relative.rpartition("/")[0].rpartition("/")[2] for relative in relatives]


def _folder_part(label: FolderLabel, folder: str) -> str | None:
    parts = folder.split(label.separator)
    return parts[label.part] if label.part < len(parts) else None


def _rule(label: Label) -> str:
    if isinstance(label, StemLabel):
        rules = []
        for name, patterns in label.classes.items():
            rules.append(f"{name}: {' or '.join(_patterns(patterns))}")
        return f"stem, {', '.join(rules)}"
    if isinstance(label, ColumnLabel):
        where = f"column {label.column}"
    else:
        where = f"folder part {label.part} cut at {label.separator!r}"
    if label.bins:
        return f"{where}, bins {label.bins}"
    return f"{where}, classes {label.classes}"


def _patterns(patterns: str | list[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns
