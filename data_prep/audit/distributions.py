"""What a data set is made of: joint tables, histograms with their borders, photo sizes, columns that tell a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.catalog.labels import OWN_COLUMNS, Schema, in_digits, name_in_catalog, values_in
from data_prep.config import ColumnLabel, Label

_MAX_VALUES = 20  # of a column that may be a category
_WITNESSES = 5  # groups per value, fewer name the groups themselves
_MAX_SPAN = 150  # whole numbers up to this many get a bar each, as ages do
_N_BARS = 30
_REACH = 3
"""How far from a border a value is doubtful, in its own unit: the contest's team excluded 57-59 at the border 60."""


def joint_tables(codes: Any, schema: Schema) -> list[dict[str, Any]]:
    """Count the photos of every pair of labels.

    Args:
        codes: (n_photos, n_labels) int64.
        schema: of the labels.

    Returns:
        One {labels: [a, b], rows, columns, counts (rows x columns), association (Cramer's V, 0 to 1)} per pair.
    """
    found = []
    for a, b in combinations(range(len(schema.names)), 2):
        counts = np.zeros((schema.sizes[a], schema.sizes[b]), dtype=np.int64)
        np.add.at(counts, (codes[:, a], codes[:, b]), 1)
        found.append(
            {
                "labels": [schema.names[a], schema.names[b]],
                "rows": schema.classes[schema.names[a]],
                "columns": schema.classes[schema.names[b]],
                "counts": counts.tolist(),
                "association": association(counts),
            }
        )
    return found


def association(counts: Any) -> float:
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
    return round(float(min(1.0, np.sqrt(phi / small))), 4) if small > 0 else 0.0


def tells(
    labelled: pa.Table, codes: Any, schema: Schema, labels: Mapping[str, Label]
) -> list[dict[str, Any]]:
    """Say how much other columns and the photos' own form tell of each label.

    Counted once per group, so that seven photos of one person are one witness. A column that a label is read from is
    left out for it.

    Returns:
        {column, label, association, n_values}, the strongest first; `(photo size)` and `(file type)` stand for facts
        of the photos.
    """
    columns: dict[str, Sequence[Any]] = {
        "(photo size)": [
            f"{w}x{h}"
            for w, h in zip(
                labelled["width"].to_pylist(), labelled["height"].to_pylist(), strict=True
            )
        ],
        "(file type)": [
            sample.rpartition(".")[2].lower() for sample in labelled["sample_id"].to_pylist()
        ],
    }
    sources = {
        name_in_catalog(label.column, labelled.column_names)
        for label in labels.values()
        if isinstance(label, ColumnLabel)
    }
    for name in labelled.column_names:
        if name not in OWN_COLUMNS and not name.startswith("label_") and name not in sources:
            columns[name] = [
                "" if value is None else str(value) for value in labelled[name].to_pylist()
            ]
    groups = labelled["group"].to_pylist()
    found = []
    for column, values in columns.items():
        names = {value: at for at, value in enumerate(sorted(set(values)))}
        if not 2 <= len(names) <= min(_MAX_VALUES, len(set(groups)) / _WITNESSES):
            continue
        for at, label in enumerate(schema.names):
            once = set(
                zip(groups, (names[value] for value in values), codes[:, at].tolist(), strict=True)
            )
            counts = np.zeros((len(names), schema.sizes[at]), dtype=np.int64)
            for _, value, code in once:
                counts[value, code] += 1
            found.append(
                {
                    "column": column,
                    "label": label,
                    "association": association(counts),
                    "n_values": len(names),
                }
            )
    return sorted(found, key=lambda one: -one["association"])


def histograms(labelled: pa.Table, labels: Mapping[str, Label]) -> dict[str, dict[str, Any]]:
    """Count the numbers behind every label that is cut into bins.

    Returns:
        Label -> {column, borders, train_borders (or null), start, width, counts, doubtful}: bar i covers start + i * width up to
        the next; doubtful maps a border to the photos within 3 below and above it.
    """
    found = {}
    for name, label in labels.items():
        borders = getattr(label, "bins", None)
        if not borders or label.source == "stem":
            continue
        values = np.array([float(value) for value in values_in(label, labelled)])
        low, high = float(values.min()), float(values.max())
        whole = bool((values == np.round(values)).all()) and high - low < _MAX_SPAN
        width = 1.0 if whole else (high - low or 1.0) / _N_BARS
        bars = np.floor((values - low) / width).astype(np.int64)
        counts = np.bincount(np.minimum(bars, int(high - low) if whole else _N_BARS - 1))
        found[name] = {
            "column": label.column if isinstance(label, ColumnLabel) else None,
            "borders": list(borders),
            "train_borders": label.train_bins,
            "start": low,
            "width": width,
            "counts": counts.tolist(),
            "doubtful": {
                in_digits(border): {
                    "below": int(((values >= border - _REACH) & (values < border)).sum()),
                    "above": int(((values >= border) & (values < border + _REACH)).sum()),
                }
                for border in borders
            },
        }
    return found


def sizes(usable: pa.Table) -> dict[str, Any]:
    """Return how large photos are, in pixels: the ten most frequent sizes, and the range of both sides."""
    pairs = Counter(zip(usable["width"].to_pylist(), usable["height"].to_pylist(), strict=True))
    facts: dict[str, Any] = {
        "frequent": [
            {"width": width, "height": height, "n": n}
            for (width, height), n in pairs.most_common(10)
        ],
        "n_distinct": len(pairs),
    }
    for side in ("width", "height"):
        values = usable[side].to_numpy()
        if len(values):
            facts[side] = {
                "min": int(values.min()),
                "median": float(np.median(values)),
                "max": int(values.max()),
            }
    return facts
