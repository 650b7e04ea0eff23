"""The declarative label schema: attributes, their classes, and the single code that joins them."""
from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.config import ColumnLabel, FolderLabel, Label, StemLabel
from data_prep.errors import DataError


@dataclass(frozen=True)
class Schema:
    """Label names and their class names; their order gives all codes."""

    classes: dict[str, list[str]]

    @classmethod
    def of(cls, labels: Mapping[str, Label]) -> Schema:
        """Read the schema out of a spec's labels."""
        return cls({name: class_names(label) for name, label in labels.items()})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(names) for names in self.classes.values())

    @property
    def n_classes(self) -> int:
        return math.prod(self.sizes)

    def encode(self, codes: Sequence[int]) -> int:
        """Join one code per label into the single code; the first label weighs most.

        Raises:
            ValueError: a code is out of range, or their number is wrong.
        """
        if len(codes) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} codes were required, found {len(codes)}")
        label = 0
        for code, size in zip(codes, self.sizes, strict=True):
            if not 0 <= code < size:
                raise ValueError(f"codes below {size} were required, found {code}")
            label = label * size + code
        return label

    def decode(self, label: int) -> tuple[int, ...]:
        """Split a single code into one code per label.

        Raises:
            ValueError: it is out of range.
        """
        if not 0 <= label < self.n_classes:
            raise ValueError(f"a class below {self.n_classes} was required, found {label}")
        codes = []
        for size in reversed(self.sizes):
            label, code = divmod(label, size)
            codes.append(code)
        return tuple(reversed(codes))

    def class_name(self, label: int) -> str:
        """Return a readable name such as 'wear/male/<30'."""
        return "/".join(names[code] for names, code in zip(self.classes.values(), self.decode(label), strict=True))


def class_names(label: Label) -> list[str]:
    """Return the class names of one label in code order; bins [30, 60] give '<30', '30-59', '>=60'."""
    if isinstance(label, StemLabel):
        return list(label.classes)
    if label.classes is not None:
        return list(label.classes)
    bins = label.bins or []
    whole = all(float(border).is_integer() for border in bins)
    middle = [f"{low:g}-{high - 1:g}" if whole else f"{low:g}-<{high:g}" for low, high in zip(bins, bins[1:], strict=False)]
    return [f"<{bins[0]:g}", *middle, f">={bins[-1]:g}"]


def label_code(name: str, label: Label, sample: str, row: Mapping[str, Any]) -> int | str:
    """Return the code of a sample under one label, or a text that says why it has none.

    Args:
        name: of the label.
        label: its rule.
        sample: sample id; its last part is the file, the part before it the folder.
        row: the sample's row of the table.
    """
    if isinstance(label, StemLabel):
        return _stem_code(label, sample)
    if isinstance(label, FolderLabel):
        folder = sample.rsplit("/", 2)[-2] if sample.count("/") > 1 else ""
        parts = folder.split(label.separator)
        if label.part >= len(parts):
            return f"folder {folder!r} has no part {label.part} when cut at {label.separator!r}"
        value: Any = parts[label.part]
    else:
        if label.column not in row:
            raise DataError(f"data.labels.{name}.column", f"column {label.column!r} was required, found {', '.join(row)}")
        value = row[label.column]
    return _value_code(label, value)


def _stem_code(label: StemLabel, sample: str) -> int | str:
    stem = sample.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    fits = [
        code
        for code, patterns in enumerate(label.classes.values())
        if any(fnmatch.fnmatchcase(stem, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))
    ]
    if len(fits) == 1:
        return fits[0]
    names = list(label.classes)
    return f"stem {stem!r} fits {' and '.join(names[code] for code in fits) if fits else 'no class'}"


def _value_code(label: ColumnLabel | FolderLabel, value: Any) -> int | str:
    if label.classes is not None:
        text = str(value)
        return label.classes.index(text) if text in label.classes else f"value {text!r} is none of {', '.join(label.classes)}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"value {value!r} is no number"
    if not math.isfinite(number):
        return f"value {value!r} is not finite"
    return sum(number >= border for border in label.bins or [])
