"""Schemas of the Parquet files of a run (the contract's section 6), and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import atomic_path
from trainers.overlap.clock import PARTS

_TEXT = pa.string()
_INT = pa.int64()
_FLOAT = pa.float64()

END = "end"  # predictions and files after the last epoch
WAITING = "waiting"  # for a worker, and for the driver's answers
TIME_COLUMNS = tuple(f"{part}_s" for part in (*PARTS, END, WAITING))
"""What a trial did with its `wall_s`. Null where it was found in the store, or its trainer times nothing."""

TRIAL_FIELDS: list[tuple[str, pa.DataType]] = [
    ("trial_id", _TEXT),
    ("setting", _TEXT),
    ("variant", _TEXT),
    ("phase", _TEXT),  # search | confirm
    ("seed", _INT),
    ("fold", _INT),  # null in search, except where it trains folds
    ("status", _TEXT),  # COMPLETE | PRUNED | FAILED
    ("params", _TEXT),  # the sampled values as JSON
    ("epochs", _INT),
    ("wall_s", _FLOAT),
    ("val_accuracy", _FLOAT),  # of the best epoch, like all val_ columns
    ("val_macro_f1", _FLOAT),
    ("val_loss", _FLOAT),
    ("checkpoint", _TEXT),  # relative to the store; null unless COMPLETE
    ("error", _TEXT),
]
"""One row per trial. `val_macro_f1_<label>` columns follow, one per label of the schema, then `TIME_COLUMNS`."""

CURVE_FIELDS: list[tuple[str, pa.DataType]] = [("trial_id", _TEXT), ("epoch", _INT)]
"""One row per trial and epoch (from 1). One float64 column per reported metric follows."""

PREDICTIONS = pa.schema(
    [
        ("trial_id", _TEXT),
        ("setting", _TEXT),
        ("variant", _TEXT),
        ("seed", _INT),
        ("fold", _INT),
        ("sample_id", _TEXT),
        ("split", _TEXT),  # val | oof | test
        ("target", _INT),  # single-label code; null for test, always
        ("pred", _INT),
        ("probs", pa.list_(pa.float32())),  # (n_classes,)
    ]
)

MIXED = pa.schema(
    [("sample_id", _TEXT), ("parent_a", _TEXT), ("parent_b", _TEXT), ("weight_a", _FLOAT)]
)
"""mixed.parquet of a trial: the extra samples of offline MixUp. parent_b has the other weight."""

TEST_LABELS = pa.schema([("sample_id", _TEXT), ("label", _INT), ("part", _TEXT)])
"""`part` is public, private or whole."""

VOTE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("sample_id", _TEXT),
    ("ImageID", _TEXT),
    ("pred", _INT),
    ("votes", _INT),  # members that voted for pred; 0 for a quarantined photo
    ("tie", pa.bool_()),
    ("outcome", _TEXT),  # voted | tie | quarantined: <reason>
]
"""One row per test photo, in the test table's order. Then `pred_<setting>` per member."""


def trials_schema(labels: Iterable[str], metrics: Iterable[str] = ()) -> pa.Schema:
    """Return the schema of trials.parquet for these label names, and metrics beside the usual."""
    scores = [(f"val_macro_f1_{name}", _FLOAT) for name in labels]
    scores += [(name, _FLOAT) for name in metrics]
    times = [(name, _FLOAT) for name in TIME_COLUMNS]
    return pa.schema([*TRIAL_FIELDS, *scores, *times])


def curves_schema(metrics: Iterable[str]) -> pa.Schema:
    """Return the schema of curves.parquet for these metric names."""
    return pa.schema([*CURVE_FIELDS, *((name, _FLOAT) for name in metrics)])


def votes_schema(settings: Iterable[str]) -> pa.Schema:
    """Return the schema of votes.parquet for these members, in rank order."""
    return pa.schema([*VOTE_FIELDS, *((f"pred_{setting}", _INT) for setting in settings)])


def from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of rows; a missing column is null, an unknown one is an error."""
    plain = [dict(row) for row in rows]
    known = set(schema.names)
    for row in plain:
        unknown = row.keys() - known
        if unknown:
            raise ValueError(f"columns {sorted(unknown)} are not in the schema {sorted(known)}")
    return pa.Table.from_pylist(plain, schema=schema)


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file beside its place and rename it there."""
    with atomic_path(path) as beside:
        pq.write_table(table, beside)


def read(path: Path, columns: list[str] | None = None, filters: Any = None) -> pa.Table:
    """Read one Parquet file; it is not memory-mapped, so it may be replaced meanwhile.

    Args:
        path: of the file.
        columns: all by default.
        filters: rows to keep, as `pyarrow.parquet.read_table` takes them.
    """
    return pq.read_table(path, columns=columns, filters=filters, memory_map=False)
