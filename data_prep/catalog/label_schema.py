"""The declarative label schema: attributes, their classes, and the single code that joins them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.config import Label

OWN_COLUMNS = (
    "sample_id",
    "path",
    "group",
    "own_group",
    "label",
    "sha256",
    "width",
    "height",
    "status",
    "phash",
    "near",
)
"""A catalog's own columns, beside label_<name>; a table's column of such a name is `table_<name>`."""
MISSING = -1
"""The code of a label that a photo lacks."""
_ALL_DIGITS = 1e15  # a whole number below it is exact


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
        """The labels, the one that weighs most first."""
        return tuple(self.classes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes per label."""
        return tuple(len(names) for names in self.classes.values())

    @property
    def n_classes(self) -> int:
        """Number of joint classes."""
        return math.prod(self.sizes)

    def encode(self, codes: Any) -> Any:
        """Join one code per label into the single code; the first label weighs most.

        Args:
            codes: L integers, or an (N, L) integer array.

        Returns:
            int, or an (N,) array.

        Raises:
            ValueError: a code is out of range, or their number is wrong.
        """
        # an array is known by its shape: this module imports no NumPy
        many = getattr(codes, "ndim", 1) == 2
        columns = list(codes.T if many else codes)
        if len(columns) != len(self.sizes):
            raise ValueError(
                f"{len(self.sizes)} codes were required, one per label, found {len(columns)}"
            )
        label: Any = 0
        for name, column, size in zip(self.names, columns, self.sizes, strict=True):
            _check_range(column, size, f"codes of {name}")
            label = label * size + column
        return label if many else int(label)

    def decode(self, label: Any) -> Any:
        """Split the single code into one code per label.

        Args:
            label: an integer, or an (N,) integer array.

        Returns:
            A tuple of L ints, or an (N, L) array.

        Raises:
            ValueError: a code is out of range.
        """
        _check_range(label, self.n_classes, "classes")
        rest = label
        columns = []
        for size in reversed(self.sizes):
            columns.append(rest % size)
            rest = rest // size
        columns.reverse()
        if getattr(label, "ndim", 0) == 0:
            return tuple(int(column) for column in columns)
        import numpy as np  # noqa: PLC0415 - an array came in, so NumPy is loaded already

        return np.stack(columns, axis=1)

    def class_name(self, label: int) -> str:
        """Return a readable name such as 'wear/male/<30'."""
        codes = self.decode(label)
        return "/".join(map(list.__getitem__, self.classes.values(), codes))


def class_names(label: Label) -> list[str]:
    """Return the class names of one label in code order; bins [30, 60] give '<30', '30-59', '>=60'."""
    if label.classes is not None:
        return list(label.classes)
    bins = label.bins or []
    inner = [_between(low, high) for low, high in itertools.pairwise(bins)]
    return [f"<{in_digits(bins[0])}", *inner, f">={in_digits(bins[-1])}"]


def in_digits(border: float) -> str:
    """Write a border so that no two look alike: 30, 0.5, 1000001."""
    if float(border).is_integer() and abs(border) < _ALL_DIGITS:
        return str(int(border))
    short = f"{border:g}"
    return short if float(short) == border else repr(float(border))


def name_in_catalog(column: str, there: Collection[str]) -> str:
    """Return what a catalog with the columns `there` calls a column of the user's table."""
    renamed = f"table_{column}"
    is_taken = column in OWN_COLUMNS or column.startswith("label_")
    return renamed if is_taken and renamed in there else column


def _between(low: float, high: float) -> str:
    if float(low).is_integer() and float(high).is_integer():
        if high - low == 1:
            return in_digits(low)
        return f"{in_digits(low)}-{in_digits(high - 1)}"
    return f"{in_digits(low)}-<{in_digits(high)}"


def _check_range(codes: Any, size: int, what: str) -> None:
    if getattr(codes, "ndim", 0) == 0:
        low = high = codes
    elif len(codes):
        low = codes.min()
        high = codes.max()
    else:
        return
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise ValueError(f"{what} from 0 to {size - 1} were required, found {wrong}")
