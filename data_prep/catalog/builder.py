"""The catalog: one row per photo, with its hashes, size, labels, group, and whether it is usable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.catalog.batch_inspection import MapChunks, Photos, Progress, inspect_all
from data_prep.catalog.label_schema import MISSING, OWN_COLUMNS, Schema
from data_prep.catalog.labelled_photos import read_rows
from data_prep.catalog.near_sets import NearSets, join_groups, near_sets
from data_prep.catalog.photo_inspection import OK, Facts
from data_prep.catalog.photo_listing import Source
from data_prep.catalog.photo_paths import sample_id_of
from data_prep.config import Data, TestHoldOut, TestTable
from data_prep.errors import LEFT_OUT, DataError, some
from data_prep.roots.places import join
from data_prep.split import deal_share

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_REAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
NEAR_LEFT_OUT = "near_left_out"
NOTES = "notes"
_HOLD_OUT_SEED = 0
"""The test set is chosen once for a data set: another split.seed must not train on test photos."""


def build_catalog(
    data: Data,
    base: Path,
    *,
    map_chunks: MapChunks = map,
    progress: Progress | None = None,
    work: Path | None = None,
) -> pa.Table:
    """Read every photo once and give it a row, in the order of the sample ids.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.
        map_chunks: maps a picklable function over chunks of photos, results in order; a cluster may
            run it.
        progress: gets the number of photos that are read, and a note with their total.
        work: a folder for partial results; a second call with it continues there.

    Returns:
        sample_id, path (POSIX, below the spec's folder), group, the table's own columns,
        label_<name>, label, sha256, width and height (pixels, upright), status ("ok" or the reason
        of the quarantine), phash (of `perceptual_hash`), near (the first sample of the set of
        photos in other groups, or on the other side, that show one picture; null where alone).
        Labels of test and quarantined rows are null, and so are a table's columns of test rows. A
        row that lacks some label (`unlabelled: keep`) has null there and in label. A
        table's column whose name is taken above is `table_<name>`. With `join_duplicates`, group is
        that of all groups that share a picture, joined by "+", and own_group the photo's own. The
        table's metadata has the number that `near_left_out` returns.

    Raises:
        DataError: a path, label or group is not as the spec says, a class has no usable training
            photo, or `not_copies` names a photo that is not there.
    """
    schema = Schema.of(data.labels)
    rows = read_rows(data, base)
    own_groups = rows.groups
    codes = np.full((len(own_groups), len(data.labels)), MISSING, dtype=np.int64)
    codes[rows.readable] = np.array(rows.codes, dtype=np.int64).T
    photos = Photos(data, base, rows.source, rows.test)
    facts = inspect_all(photos, map_chunks=map_chunks, progress=progress, work=work)
    near = near_sets(
        photos,
        facts,
        [*own_groups, *rows.test_groups],
        map_chunks=map_chunks,
        progress=progress,
    )
    groups = own_groups
    if data.join_duplicates:
        groups = join_groups(own_groups, facts, near.sets)
    held_out = _held_out(data, groups, codes, rows.readable)
    facts = _without_partners(facts, groups, codes, held_out)
    scan = _Scan(
        photos=photos,
        facts=facts,
        own_groups=[*own_groups, *rows.test_groups],
        groups=[*groups, *rows.test_groups],
        near=near,
        is_train=np.concatenate([~held_out, np.zeros(len(rows.test_groups), dtype=bool)]),
        codes=codes,
    )
    table = _table(scan, schema)
    notes = json.dumps([*rows.notes, *near.notes], ensure_ascii=False)
    return table.replace_schema_metadata({NEAR_LEFT_OUT: str(near.n_left_out), NOTES: notes})


def reading_notes(catalog: pa.Table) -> list[str]:
    """Return what a user should know of how the tables were read."""
    notes: list[str] = json.loads((catalog.schema.metadata or {}).get(NOTES.encode(), b"[]"))
    return notes


@dataclass(frozen=True)
class _Scan:
    """All that is known of the photos, in the order of `photos`."""

    photos: Photos
    facts: list[Facts]
    own_groups: list[str | None]
    groups: list[str | None]
    near: NearSets
    is_train: NDArray[np.bool_]  # (n_photos,)
    codes: NDArray[np.int64]  # (n_source, n_labels)

    def sample_ids(self) -> list[str]:
        names = [*self.photos.source.relatives, *self.photos.test.relatives]
        ids = []
        for name, is_train in zip(names, self.is_train.tolist(), strict=True):
            ids.append(sample_id_of("train" if is_train else "test", name))
        return ids

    def paths(self) -> list[str]:
        data = self.photos.data
        paths = [_path(data.source, name) for name in self.photos.source.relatives]
        if isinstance(data.test, TestTable):
            paths += [_path(data.test, name) for name in self.photos.test.relatives]
        return paths


def _table(scan: _Scan, schema: Schema) -> pa.Table:
    """Join all columns, sorted by sample id."""
    data = scan.photos.data
    ids = scan.sample_ids()
    columns = {
        "sample_id": pa.array(ids, pa.string()),
        "path": pa.array(scan.paths(), pa.string()),
        "group": pa.array(scan.groups, pa.string()),
    }
    if data.join_duplicates:
        columns["own_group"] = pa.array(scan.own_groups, pa.string())
    columns |= _own_columns(scan, schema)
    columns |= _label_columns(scan, schema)
    for name, kind in (
        ("sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("status", pa.string()),
        ("phash", pa.string()),
    ):
        columns[name] = pa.array([getattr(photo, name) for photo in scan.facts], kind)
    near: list[str | None] = [None] * len(ids)
    for alike in scan.near.sets:
        first = min(ids[index] for index in alike)
        for index in alike:
            near[index] = first
    columns["near"] = pa.array(near, pa.string())
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return pa.table(columns).take(pa.array(order, pa.int64()))


def _own_columns(scan: _Scan, schema: Schema) -> dict[str, pa.Array]:
    """Return the table's columns, null for test photos.

    The column that names photos is replaced by `path`, the group's by `group`.
    """
    data = scan.photos.data
    taken = {*OWN_COLUMNS, *(f"label_{name}" for name in schema.names)}
    dropped = {"path", "sample_id"}
    if data.group == "group":
        dropped.add("group")
    n_test = len(scan.photos.test.relatives)
    columns = {}
    for name, values in scan.photos.source.columns.items():
        if name in dropped:
            continue
        cells = [*values, *[None] * n_test]
        for index in np.flatnonzero(~scan.is_train).tolist():
            cells[index] = None
        columns[f"table_{name}" if name in taken else name] = _typed(cells)
    return columns


def _label_columns(scan: _Scan, schema: Schema) -> dict[str, pa.Array]:
    usable = np.array([photo.status == OK for photo in scan.facts])
    codes = np.full((len(usable), len(schema.names)), MISSING, dtype=np.int64)
    codes[: len(scan.codes)] = scan.codes
    codes[~(scan.is_train & usable)] = MISSING
    is_missing = codes == MISSING
    lacks_some = is_missing.any(axis=1)
    statuses = [scan.facts[index].status for index in np.flatnonzero(scan.is_train)]
    _refuse_missing(codes[~lacks_some], schema, statuses)
    codes[is_missing] = 0
    columns = {}
    for index, name in enumerate(schema.names):
        columns[f"label_{name}"] = pa.array(codes[:, index], pa.int64(), mask=is_missing[:, index])
    columns["label"] = pa.array(schema.encode(codes), pa.int64(), mask=lacks_some)
    return columns


def near_left_out(catalog: pa.Table) -> int:
    """Return how many pairs of photos that look alike were not compared: there were too many."""
    return int((catalog.schema.metadata or {}).get(NEAR_LEFT_OUT.encode(), b"0"))


def content_hash(catalog: pa.Table) -> str:
    """Return the hash of all that later stages read.

    These are ids, groups, columns, labels, photo hashes, sizes and states. The places and times of
    the photos are no part of it, nor are the perceptual hashes, whose last bits may differ on
    another processor.
    """
    sha = hashlib.sha256()
    for name in sorted(set(catalog.column_names) - {"path", "phash"}):
        values = json.dumps(
            [name, catalog[name].to_pylist()],
            ensure_ascii=False,
            separators=(",", ":"),
            allow_nan=False,
        )
        sha.update(values.encode())
    return sha.hexdigest()


def photos_hash(catalog: pa.Table) -> str:
    """Return the hash of what preparation reads: ids and bytes of the usable photos."""
    usable = catalog.filter(pc.equal(catalog["status"], OK))
    pairs = [usable["sample_id"].to_pylist(), usable["sha256"].to_pylist()]
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def _path(section: Source | TestTable, relative: str) -> str:
    folder = join(Path(), section.root, PurePosixPath(section.images).as_posix())
    return f"{folder}/{relative}".replace("\0", "\\0")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _held_out(
    data: Data, groups: Sequence[str], codes: NDArray[np.int64], readable: list[int]
) -> NDArray[np.bool_]:
    """Choose the groups that become the test set, balanced like a split.

    Photos that lack a label are none of it: a test photo needs all.
    """
    held_out = np.zeros(len(groups), dtype=bool)
    if isinstance(data.test, TestHoldOut):
        complete = [index for index in readable if MISSING not in codes[index]]
        held_out[complete] = deal_share(
            [groups[index] for index in complete],
            codes[complete],
            data.test.hold_out,
            seed=_HOLD_OUT_SEED,
            purpose="hold_out",
            where="data.test.hold_out",
        )
    return held_out


def _without_partners(
    facts: list[Facts],
    groups: Sequence[str],
    codes: NDArray[np.int64],
    held_out: NDArray[np.bool_],
) -> list[Facts]:
    """Leave out the photos that lack a label and whose group is in the test set."""
    test_groups = {groups[index] for index in np.flatnonzero(held_out).tolist()}
    kept = list(facts)
    for index in np.flatnonzero((codes == MISSING).any(axis=1)).tolist():
        if groups[index] in test_groups and facts[index].status == OK:
            status = f"{LEFT_OUT}it lacks a label, and its group is in the test set"
            kept[index] = replace(facts[index], status=status)
    return kept


def _refuse_missing(codes: NDArray[np.int64], schema: Schema, statuses: list[str]) -> None:
    if not len(codes):
        raise DataError(
            "data.source",
            f"usable training photos with all labels were required, found none among {len(statuses)}: "
            f"{some(sorted(set(statuses)))}",
        )
    for column, (name, classes) in enumerate(schema.classes.items()):
        present = set(codes[:, column].tolist())
        missing = [text for code, text in enumerate(classes) if code not in present]
        if missing:
            raise DataError(
                f"data.labels.{name}",
                f"a usable training photo of every class was required, found none of "
                f"{some(missing)}. Add photos, or take the class out of the rule",
            )


def _typed(values: Iterable[Any]) -> pa.Array:
    """Store a column as whole numbers, numbers or text, whichever holds all its values.

    007 stays text.
    """
    cells: list[Any] = []
    for value in values:
        is_nan = value != value  # noqa: PLR0124 - a NaN of a Parquet table
        if isinstance(value, bool):
            cells.append(str(value).lower())
        else:
            cells.append(None if is_nan else value)
    texts = {str(cell) for cell in cells if cell is not None}
    for kind, convert, form in ((pa.int64(), int, _WHOLE), (pa.float64(), float, _REAL)):
        if texts and all(form.fullmatch(text) for text in texts):
            return pa.array([None if cell is None else convert(cell) for cell in cells], kind)
    return pa.array([_text(cell) for cell in cells], pa.string())
