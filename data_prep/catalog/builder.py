"""The catalog: one row per photo, with its hashes, size, labels, group, and whether it can be used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.audit.photo_scan import MapChunks, Photos, inspect_all, joined, near_sets
from data_prep.catalog.inspection import OK
from data_prep.catalog.labels import OWN_COLUMNS, Schema, read_codes
from data_prep.catalog.sources import Columns, Listing, list_source, list_test, read_table, refusal
from data_prep.config import Data, TestHoldOut, TestTable
from data_prep.errors import DataError, some
from data_prep.split import deal_share

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_REAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
NEAR_LEFT_OUT = "near_left_out"
_HOLD_OUT_SEED = 0
"""The test set is chosen once for a data set: another split.seed must not show the test photos to a training."""


def build_catalog(
    data: Data,
    base: Path,
    *,
    map_chunks: MapChunks = map,
    progress: Callable[[int, str], None] | None = None,
    work: Path | None = None,
) -> pa.Table:
    """Read every photo once and give it a row, in the order of the sample ids.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.
        map_chunks: maps a picklable function over chunks of photos, results in order; the place for a cluster.
        progress: told how many photos are read, and of how many.
        work: a folder for what is done so far; a second call over it goes on there.

    Returns:
        sample_id, path (POSIX, below the spec's folder), group, the table's own columns, label_<name>, label, sha256,
        width and height (pixels, upright), status ("ok" or the reason of the quarantine), phash (of
        `perceptual_hash`), near (the first sample of the set of photos in other groups, or on the other side, that
        show one picture; null where alone). Test and quarantined rows have null labels; test rows nothing of the
        table. A table's column whose name is taken above is `table_<name>`. With `join_duplicates`, group is that of
        all groups that share a picture, joined by "+", and own_group the photo's own. What `near_left_out` tells stands
        in the table's metadata.

    Raises:
        DataError: a path, label or group is not as the spec says, or a class has no usable training photo.
    """
    schema = Schema.of(data.labels)
    source = list_source(data.source, base)
    known = [at for at, problem in enumerate(source.refusals) if problem is None]
    if not known:
        raise DataError(
            "data.source",
            f"training photos were required, found none that may be opened: {some(_reasons(source))}",
        )
    own_groups, codes = _groups(data, source), _codes(data, source, known)
    test = (
        list_test(data.test, base)
        if isinstance(data.test, TestTable)
        else Listing([], [], {"group": []})
    )
    n_source = len(source.relatives)
    photos = Photos(data, base, source, test)
    read = inspect_all(photos, map_chunks=map_chunks, progress=progress, work=work)
    test_groups = [_text(group) for group in test.columns["group"]]
    near, n_left_out = near_sets(
        photos, read, [*own_groups, *test_groups], map_chunks=map_chunks, progress=progress
    )
    groups = joined(own_groups, read, near) if data.join_duplicates else own_groups
    held = _held_out(data, groups, codes, known)

    ids = [
        _sample_id("test" if held[at] else "train", relative)
        for at, relative in enumerate(source.relatives)
    ]
    ids += [_sample_id("test", relative) for relative in test.relatives]
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    facts = [read[at] for at in order]

    statuses = np.array(
        [fact.status == OK for fact in facts]
    )  # in sorted order, like all that follows
    is_source = order < n_source
    rows = np.where(is_source, order, 0)  # a row of the source; meaningless for a test table's
    train = is_source & ~np.concatenate([held, np.ones(len(test.relatives), dtype=bool)])[order]
    labels = np.where((train & statuses)[:, None], codes[rows], -1)
    _refuse_missing(
        labels[train & statuses],
        schema,
        [fact.status for fact, at in zip(facts, train, strict=True) if at],
    )

    roots = {
        "source": data.source.root,
        "test": data.test.root if isinstance(data.test, TestTable) else "",
    }
    relatives = [*source.relatives, *test.relatives]

    def column(values: Sequence[str | None]) -> pa.Array:
        return pa.array([values[at] for at in order], pa.string())

    columns: dict[str, pa.Array] = {
        "sample_id": column(ids),
        "path": column(
            [
                _path(roots["source" if at < n_source else "test"], name)
                for at, name in enumerate(relatives)
            ]
        ),
        "group": column([*groups, *test_groups]),
    }
    if data.join_duplicates:
        columns["own_group"] = column([*own_groups, *test_groups])
    for name, values in _own_columns(data, source, schema).items():
        columns[name] = _typed(
            [values[at] if shown else None for at, shown in zip(rows, train, strict=True)]
        )
    unknown = labels[:, 0] < 0
    for place, name in enumerate(schema.names):
        columns[f"label_{name}"] = pa.array(labels[:, place], pa.int64(), mask=unknown)
    columns["label"] = pa.array(
        np.where(unknown, 0, schema.encode(np.maximum(labels, 0))), pa.int64(), mask=unknown
    )
    columns["sha256"] = pa.array([fact.sha256 for fact in facts], pa.string())
    columns["width"] = pa.array([fact.width for fact in facts], pa.int64())
    columns["height"] = pa.array([fact.height for fact in facts], pa.int64())
    columns["status"] = pa.array([fact.status for fact in facts], pa.string())
    columns["phash"] = pa.array([fact.phash for fact in facts], pa.string())
    first = {at: min(ids[member] for member in alike) for alike in near for at in alike}
    columns["near"] = column([first.get(at) for at in range(len(ids))])
    return pa.table(columns, metadata={NEAR_LEFT_OUT: str(n_left_out)})


def near_left_out(catalog: pa.Table) -> int:
    """Return how many pairs of photos that look alike nobody compared, because there were too many."""
    return int((catalog.schema.metadata or {}).get(NEAR_LEFT_OUT.encode(), b"0"))


def photo_path(data: Data, base: Path, sample_id: str) -> Path:
    """Return where a sample's photo lies. Links below the root were resolved and checked when the catalog was made.

    Raises:
        DataError: the id leads out of the data root.
    """
    side, _, relative = sample_id.partition("/")
    section = data.test if side == "test" and isinstance(data.test, TestTable) else data.source
    if problem := refusal(relative):
        raise DataError(
            "data.source" if section is data.source else "data.test", f"{sample_id!r}: {problem}"
        )
    return base / section.root / "images" / relative


def content_hash(catalog: pa.Table) -> str:
    """Return the hash of all that later stages read: ids, groups, columns, labels, photo hashes, sizes, states.

    Where the photos lie and when they were written is no part of it, nor are the perceptual hashes, whose last bits
    another processor may round otherwise.
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


def test_labels(data: Data, base: Path, catalog: pa.Table) -> pa.Table | None:
    """Read the test set's labels: the one place that does. None where the spec names none.

    Returns:
        sample_id, label (single code) for every test photo, quarantined ones too, in the catalog's order.

    Raises:
        DataError: a label is missing or no class.
    """
    schema = Schema.of(data.labels)
    ids = [sample for sample in catalog["sample_id"].to_pylist() if sample.startswith("test/")]
    if isinstance(data.test, TestHoldOut):
        source = list_source(data.source, base)
        wanted, held = set(ids), _test_ids(source)
        kept = source.where(lambda at: held[at] in wanted)
        codes = np.array(read_codes(data.labels, kept.relatives, kept.columns), dtype=np.int64).T
        answers = dict(zip(_test_ids(kept), schema.encode(codes).tolist(), strict=True))
    elif isinstance(data.test, TestTable) and data.test.label:
        answers = _answers(data.test, base, schema)
    else:
        return None
    return pa.table(
        {
            "sample_id": pa.array(ids, pa.string()),
            "label": pa.array([answers[sample] for sample in ids], pa.int64()),
        }
    )


def test_order(data: Data, base: Path, catalog: pa.Table) -> list[tuple[str, str]]:
    """Return (sample_id, ImageID) of the test photos in the order of their table, or of the catalog without one."""
    if isinstance(data.test, TestTable):
        listing = list_test(data.test, base)
        return list(zip(_test_ids(listing), map(str, listing.columns["ImageID"]), strict=True))
    return [
        (sample, sample.partition("/")[2])
        for sample in catalog["sample_id"].to_pylist()
        if sample.startswith("test/")
    ]


# neither is a test, whatever their names say
test_labels.__test__ = False  # type: ignore[attr-defined]
test_order.__test__ = False  # type: ignore[attr-defined]


def _answers(test: TestTable, base: Path, schema: Schema) -> dict[str, int]:
    where, column = "data.test.label", str(test.label)
    columns = read_table(base / test.root / test.table, where, [test.id, column])
    if column not in columns:
        raise DataError(
            where, f"a column {column!r} was required in {test.table}, found none of that name"
        )
    named = _reading(schema, where, column, {str(value) for value in columns[column]})
    answers, faults = {}, []
    for sample, value in zip(_test_ids(list_test(test, base)), columns[column], strict=True):
        if (label := named.get(str(value))) is None:
            faults.append(f"{sample}: {value!r}")
        else:
            answers[sample] = label
    if faults:
        raise DataError(
            where,
            f"a class from 0 to {schema.n_classes - 1} (or its name, such as {schema.class_name(0)!r}) was "
            f"required for every photo, {len(faults)} have none: {some(faults)}. Correct them, or leave out {where}",
        )
    return answers


def _reading(schema: Schema, where: str, column: str, values: set[str]) -> dict[str, int]:
    """Return what values of a test table mean: names, codes, or either where no name is another class's code.

    Raises:
        DataError: classes are named by numbers, and the column can be read both ways, or neither.
    """
    names = {schema.class_name(label): label for label in range(schema.n_classes)}
    codes = {str(label): label for label in range(schema.n_classes)}
    either = names | codes
    doubtful = sorted(
        value for value in names.keys() & codes.keys() if names[value] != codes[value]
    )
    if not doubtful or values - either.keys():
        return either
    fitting = [reading for reading in (names, codes) if values <= reading.keys()]
    if len(fitting) == 1 or (fitting and not values.intersection(doubtful)):
        return fitting[0]
    one = next((value for value in doubtful if value in values), doubtful[0])
    raise DataError(
        where,
        f"a column of names or of codes was required, {column!r} can be read as {'both' if fitting else 'neither'}: "
        f"{one!r} is the name of class {names[one]} and the code of class {schema.class_name(codes[one])!r}. "
        "Write the column in codes and name the classes so that no name is a code, such as 'c1' for '1'",
    )


def _test_ids(listing: Listing) -> list[str]:
    return [_sample_id("test", relative) for relative in listing.relatives]


def _sample_id(side: str, relative: str) -> str:
    return f"{side}/{relative}".replace("\0", "\\0")


def _path(root: str, relative: str) -> str:
    return f"{PurePosixPath(Path(root).as_posix(), 'images')}/{relative}".replace("\0", "\\0")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _reasons(source: Listing) -> list[str]:
    return [
        f"{relative!r}: {problem}"
        for relative, problem in zip(source.relatives, source.refusals, strict=True)
        if problem
    ]


def _groups(data: Data, source: Listing) -> list[str]:
    """Read the group of every source photo. `sample_id` stands for every photo its own."""
    if data.group == "sample_id":
        return list(source.relatives)
    if data.group not in source.columns:
        raise DataError(
            "data.group",
            f"a column of the source was required, found {data.group!r}; "
            f"columns are {', '.join(source.columns)} (sample_id: every photo is its own group)",
        )
    groups = [_text(value) for value in source.columns[data.group]]
    if empty := [
        relative for relative, group in zip(source.relatives, groups, strict=True) if not group
    ]:
        raise DataError(
            "data.group",
            f"a value of {data.group} was required for every photo, {len(empty)} have none: {some(empty)}",
        )
    return [str(group) for group in groups]


def _codes(data: Data, source: Listing, known: list[int]) -> np.ndarray:
    """Read the labels of all photos that may be opened: (n_photos, n_labels) int64, -1 for the others."""
    kept = source.where(set(known).__contains__)
    codes = np.full((len(source.relatives), len(data.labels)), -1, dtype=np.int64)
    codes[known] = np.array(read_codes(data.labels, kept.relatives, kept.columns), dtype=np.int64).T
    return codes


def _held_out(data: Data, groups: Sequence[str], codes: np.ndarray, known: list[int]) -> np.ndarray:
    """Choose the groups that become the test set, balanced like a split."""
    held = np.zeros(len(groups), dtype=bool)
    if not isinstance(data.test, TestHoldOut):
        return held
    share, own = data.test.hold_out, [groups[at] for at in known]
    held[known] = deal_share(
        own,
        codes[known],
        share,
        seed=_HOLD_OUT_SEED,
        purpose="hold_out",
        where="data.test.hold_out",
    )
    return held


def _own_columns(data: Data, source: Listing, schema: Schema) -> Columns:
    """Keep the table's columns; the one that names photos is replaced by `path`, the group's by `group`."""
    taken = {*OWN_COLUMNS, *(f"label_{name}" for name in schema.names)}
    dropped = {"path", "sample_id", *(["group"] if data.group == "group" else [])}
    return {
        f"table_{name}" if name in taken else name: values
        for name, values in source.columns.items()
        if name not in dropped
    }


def _refuse_missing(codes: np.ndarray, schema: Schema, statuses: list[str]) -> None:
    if not len(codes):
        raise DataError(
            "data.source",
            f"usable training photos were required, found none among {len(statuses)}: {some(sorted(set(statuses)))}",
        )
    for column, (name, classes) in enumerate(schema.classes.items()):
        there = set(np.unique(codes[:, column]).tolist())
        if lost := [text for code, text in enumerate(classes) if code not in there]:
            raise DataError(
                f"data.labels.{name}",
                f"a usable training photo of every class was required, found none of "
                f"{some(lost)}. Add photos, or take the class out of the rule",
            )


def _typed(values: list[Any]) -> pa.Array:
    """Store a column as whole numbers, numbers or text, whichever holds all its values; 007 stays text."""
    clean = [None if value != value else value for value in values]  # noqa: PLR0124 - a NaN of a Parquet table
    known = {
        str(value).lower() if isinstance(value, bool) else str(value)
        for value in clean
        if value is not None
    }
    for kind, convert, form in ((pa.int64(), int, _WHOLE), (pa.float64(), float, _REAL)):
        if known and all(form.fullmatch(text) for text in known):
            return pa.array([None if value is None else convert(value) for value in clean], kind)
    return pa.array(
        [str(value).lower() if isinstance(value, bool) else _text(value) for value in clean],
        pa.string(),
    )
