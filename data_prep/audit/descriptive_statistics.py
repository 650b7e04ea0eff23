"""What a data set is made of: joint tables, histograms, photo sizes, columns that tell a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.audit.fact_types import (
    BorderCounts,
    Histogram,
    JointTable,
    PhotoSize,
    PhotoSizes,
    SideRange,
    Tell,
)
from data_prep.catalog.label_schema import OWN_COLUMNS, Schema, in_digits, name_in_catalog
from data_prep.config import ColumnLabel, FolderLabel, Label
from data_prep.label_codes import values_in

_MAX_VALUES = 20  # of a column that may be a category
_WITNESSES = 5  # groups per value; a column with fewer names the groups themselves
_MAX_SPAN = 150  # whole numbers up to this many get a bar each, as ages do
_N_BARS = 30
_REACH = 3
"""How far from a border a value is doubtful, in its own unit.

The contest's team excluded 57-59 at the border 60.
"""


def joint_tables(codes: Any, schema: Schema) -> list[JointTable]:
    """Count the photos of every pair of labels.

    Args:
        codes: (n_photos, n_labels) int64.
        schema: of the labels.
    """
    tables = []
    for first, second in combinations(range(len(schema.names)), 2):
        counts = np.zeros((schema.sizes[first], schema.sizes[second]), dtype=np.int64)
        np.add.at(counts, (codes[:, first], codes[:, second]), 1)
        names = [schema.names[first], schema.names[second]]
        tables.append(
            JointTable(
                labels=names,
                rows=schema.classes[names[0]],
                columns=schema.classes[names[1]],
                counts=counts.tolist(),
                association=cramers_v(counts),
            )
        )
    return tables


def cramers_v(counts: Any) -> float:
    """Return Cramer's V of a table of counts, corrected for its bias (Bergsma 2013), 0 to 1."""
    table = np.asarray(counts, dtype=np.float64)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    n = table.sum()
    if min(table.shape, default=0) < 2 or n < 2:
        return 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / n
    phi = ((table - expected) ** 2 / expected).sum() / n
    rows, columns = table.shape
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    small = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    if small <= 0:
        return 0.0
    return round(float(min(1.0, np.sqrt(phi / small))), 4)


def columns_that_tell(
    labelled: pa.Table,
    codes: Any,
    schema: Schema,
    labels: Mapping[str, Label],
    file_bytes: Mapping[str, int] | None = None,
) -> list[Tell]:
    """Measure how much other columns and the form of the photos tell of each label.

    Each value counts once per group, so that seven photos of one person are one witness. Columns
    that labels are read from are left out.

    Names, order, times and EXIF of the files are not looked at: no network sees them.

    Args:
        labelled: rows of the catalog.
        codes: (n_photos, n_labels) int64.
        schema: of the labels.
        labels: their rules.
        file_bytes: sample id -> size of the file.

    Returns:
        The strongest first; names in parentheses are facts of the photos.
    """
    groups = labelled["group"].to_pylist()
    most = min(_MAX_VALUES, len(set(groups)) / _WITNESSES)
    tells = []
    columns = _columns(labelled, labels)
    if file_bytes is not None:
        columns["(bytes per pixel)"] = _compression(labelled, file_bytes, min(4, int(most)))
    for column, values in columns.items():
        number = {value: index for index, value in enumerate(sorted(set(values)))}
        if not 2 <= len(number) <= most:
            continue
        numbers = [number[value] for value in values]
        for index, label in enumerate(schema.names):
            counts = np.zeros((len(number), schema.sizes[index]), dtype=np.int64)
            for _, value, code in set(zip(groups, numbers, codes[:, index].tolist(), strict=True)):
                counts[value, code] += 1
            tells.append(Tell(column, label, cramers_v(counts), len(number)))
    return sorted(tells, key=lambda tell: -tell.association)


def _columns(labelled: pa.Table, labels: Mapping[str, Label]) -> dict[str, Sequence[str]]:
    widths = labelled["width"].to_pylist()
    heights = labelled["height"].to_pylist()
    ids = labelled["sample_id"].to_pylist()
    columns: dict[str, Sequence[str]] = {
        "(photo size)": [f"{w}x{h}" for w, h in zip(widths, heights, strict=True)],
        "(file type)": [sample.rpartition(".")[2].lower() for sample in ids],
    }
    left_out = set(OWN_COLUMNS)
    for label in labels.values():
        if isinstance(label, ColumnLabel):
            left_out.add(name_in_catalog(label.column, labelled.column_names))
    for name in labelled.column_names:
        if name not in left_out and not name.startswith("label_"):
            values = labelled[name].to_pylist()
            columns[name] = ["" if value is None else str(value) for value in values]
    return columns


def _compression(labelled: pa.Table, file_bytes: Mapping[str, int], n_parts: int) -> list[str]:
    """Deal photos into equal parts by the bytes that a pixel has, the most compressed ones first."""
    ids = labelled["sample_id"].to_pylist()
    n_bytes = np.array([file_bytes.get(sample, 0) for sample in ids], dtype=np.float64)
    density = n_bytes / (labelled["width"].to_numpy() * labelled["height"].to_numpy())
    borders = np.quantile(density, np.arange(1, n_parts) / n_parts) if len(ids) else []
    return [str(part) for part in np.searchsorted(borders, density, side="right").tolist()]


def histograms(labelled: pa.Table, labels: Mapping[str, Label]) -> dict[str, Histogram]:
    """Count the numbers behind every label that is cut into bins, by label."""
    by_label = {}
    for name, label in labels.items():
        if isinstance(label, ColumnLabel | FolderLabel) and label.bins:
            values = np.array([float(value) for value in values_in(label, labelled)])
            by_label[name] = _histogram(label, label.bins, values)
    return by_label


def _histogram(
    label: ColumnLabel | FolderLabel, borders: list[float], values: NDArray[np.float64]
) -> Histogram:
    low = float(values.min())
    span = float(values.max()) - low
    is_whole = bool((values == np.round(values)).all()) and span < _MAX_SPAN
    if is_whole:
        width = 1.0
        last = int(span)
    else:
        width = (span or 1.0) / _N_BARS
        last = _N_BARS - 1
    bars = np.minimum(np.floor((values - low) / width).astype(np.int64), last)
    doubtful = {}
    for border in borders:
        below = (values >= border - _REACH) & (values < border)
        above = (values >= border) & (values < border + _REACH)
        doubtful[in_digits(border)] = BorderCounts(int(below.sum()), int(above.sum()))
    return Histogram(
        column=label.column if isinstance(label, ColumnLabel) else None,
        borders=list(borders),
        train_borders=label.train_bins,
        start=low,
        width=width,
        counts=np.bincount(bars).tolist(),
        doubtful=doubtful,
    )


def sizes(usable: pa.Table) -> PhotoSizes:
    """Return how large photos are, in pixels: the ten most frequent sizes and the ranges."""
    widths = usable["width"].to_numpy()
    heights = usable["height"].to_numpy()
    counts = Counter(zip(widths.tolist(), heights.tolist(), strict=True))
    return PhotoSizes(
        frequent=[PhotoSize(*size, n) for size, n in counts.most_common(10)],
        n_distinct=len(counts),
        width=_range(widths),
        height=_range(heights),
    )


def _range(values: NDArray[np.int64]) -> SideRange | None:
    if not len(values):
        return None
    return SideRange(int(values.min()), float(np.median(values)), int(values.max()))
