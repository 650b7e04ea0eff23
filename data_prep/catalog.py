"""The catalog: one row per photo, with its hash, size, labels, group, and whether it can be read."""
from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import ClassFolders, Data, ProfileFolders, TestHoldOut, TestTable
from data_prep.errors import DataError
from data_prep.images import MAX_BYTES, PhotoError, decode, read_header
from data_prep.labels import Schema, label_code

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
CHUNK = 64
_NAMED = 3
OWN = ("sample_id", "path", "group", "label", "sha256", "width", "height", "status")

MapChunks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Photo:
    """A photo before it is read: its id, its place below `images/`, and its row of the table."""

    sample_id: str
    relative: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What reading a photo once tells."""

    sha256: str | None
    width: int | None
    height: int | None
    status: str


def build_catalog(
    data: Data, base: Path, *, map_chunks: MapChunks = map, progress: Callable[[int, str], None] | None = None
) -> pa.Table:
    """Read every photo once and give it a row, in the order of the sample ids.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.
        map_chunks: maps a function over chunks of paths, in order; the place for a cluster.
        progress: told how many photos are read.

    Returns:
        Columns sample_id, path, group, the table's own, label_<name>, label, sha256, width, height, status ("ok" or
        the reason of the quarantine). Test rows have no labels.

    Raises:
        DataError: paths, labels or groups are not as the spec says.
    """
    photos = sorted((*_source_photos(data, base), *_test_photos(data, base)), key=lambda photo: photo.sample_id)
    _refuse_duplicates(photos)
    paths = [str(photo_path(data, base, photo.sample_id)) for photo in photos]
    facts: list[Facts] = []
    for chunk in map_chunks(inspect_chunk, [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]):
        facts.extend(chunk)
        if progress:
            progress(len(facts), f"of {len(paths)} photos")
    schema = Schema.of(data.labels)
    rows = _rows(data, schema, photos, facts)
    held = _held_out(data, schema, rows) if isinstance(data.test, TestHoldOut) else set()
    rows = [_as_test(row, schema) if row["group"] in held and row["sample_id"].startswith("train/") else row for row in rows]
    rows.sort(key=lambda row: row["sample_id"])
    _refuse_empty(rows, schema)
    return _table(rows, schema)


def photo_path(data: Data, base: Path, sample_id: str) -> Path:
    """Return where a sample's photo lies.

    Raises:
        DataError: the id leads out of the data root.
    """
    side, _, relative = sample_id.partition("/")
    test = data.test if side == "test" and isinstance(data.test, TestTable) else None
    images = (base / (test.root if test else data.source.root) / "images").resolve()
    place = images / relative
    if not _is_safe(relative) or not place.resolve().is_relative_to(images):
        raise DataError(f"data.{'test' if test else 'source'}", f"{relative!r} leads out of {images}; photos must lie below it")
    return place


def inspect_chunk(paths: list[str]) -> list[Facts]:
    """Read photos one after another; a broken one is a fact, not an error."""
    return [inspect(Path(path)) for path in paths]


def inspect(path: Path) -> Facts:
    """Hash and fully decode one photo."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            return Facts(None, None, None, f"too large: {size} bytes, at most {MAX_BYTES}")
        photo = path.read_bytes()
    except OSError as error:
        return Facts(None, None, None, f"unreadable: {error.strerror}")
    sha256 = hashlib.sha256(photo).hexdigest()
    width = height = None
    try:
        header = read_header(photo)
        width, height = header.width, header.height
        decode(photo)
    except PhotoError as error:
        return Facts(sha256, width, height, str(error))
    return Facts(sha256, width, height, "ok")


def content_hash(catalog: pa.Table) -> str:
    """Return the hash of all that splits, training and selection read from a catalog; file times are no part of it."""
    sha = hashlib.sha256()
    for row in catalog.to_pylist():
        sha.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def photos_hash(catalog: pa.Table) -> str:
    """Return the hash of what preparation reads: ids and bytes of the usable photos."""
    sha = hashlib.sha256()
    columns = (catalog[name].to_pylist() for name in ("sample_id", "sha256", "status"))
    for sample, digest, status in zip(*columns, strict=True):
        if status == "ok":
            sha.update(f"{sample}|{digest}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def test_labels(data: Data, base: Path, catalog: pa.Table) -> pa.Table | None:
    """Read the test set's labels: the one place that does. None where the spec names none.

    Returns:
        sample_id, label (single code) for every test photo.

    Raises:
        DataError: a label is missing or no class.
    """
    schema = Schema.of(data.labels)
    ids = [sample for sample in catalog["sample_id"].to_pylist() if sample.startswith("test/")]
    if isinstance(data.test, TestTable) and data.test.label:
        answers = _table_answers(data.test, base, schema)
    elif isinstance(data.test, TestHoldOut):
        rows = {f"test/{photo.relative}": photo for photo in _source_photos(data, base)}
        answers = {sample: _codes(data, schema, rows[sample])[1] for sample in ids}
    else:
        return None
    labels = [answers[sample] for sample in ids]
    return pa.table({"sample_id": pa.array(ids, pa.string()), "label": pa.array(labels, pa.int64())})


test_labels.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name says


def test_order(data: Data, base: Path, catalog: pa.Table) -> list[tuple[str, str]]:
    """Return (sample_id, ImageID) of the test photos in the order of their table."""
    if isinstance(data.test, TestTable):
        return [(f"test/{row[data.test.id]}", str(row[data.test.id])) for row in _read_table(data.test, base, "test")]
    return [(sample, sample.partition("/")[2]) for sample in catalog["sample_id"].to_pylist() if sample.startswith("test/")]


test_order.__test__ = False  # type: ignore[attr-defined]


def _table_answers(test: TestTable, base: Path, schema: Schema) -> dict[str, int]:
    answers = {}
    for row in _read_table(test, base, "test"):
        text = str(row.get(test.label or ""))
        if not text.isdecimal() or int(text) >= schema.n_classes:
            raise DataError("data.test.label", f"a class from 0 to {schema.n_classes - 1} was required in column "
                            f"{test.label!r}, found {text!r} for {row[test.id]}")
        answers[f"test/{row[test.id]}"] = int(text)
    return answers


def _source_photos(data: Data, base: Path) -> Iterator[Photo]:
    source = data.source
    images = base / source.root / "images"
    if isinstance(source, ClassFolders):
        for folder in sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")):
            for name in _photos_in(folder):
                relative = f"{folder.name}/{name}"
                yield Photo(f"train/{relative}", relative, {"folder": folder.name, "sample_id": f"train/{relative}"})
        return
    for row in _read_table(source, base, "source"):
        place = str(row.get(getattr(source, "path", "path")) or "")
        if not _is_safe(place):
            raise DataError("data.source.table", f"a path below {images} was required, found {place!r}")
        if isinstance(source, ProfileFolders):
            folder = images / place
            if not folder.is_dir() or not folder.resolve().is_relative_to(images.resolve()):
                raise DataError("data.source.table", f"folder {folder} was required by the table, found none inside the root")
            for name in _photos_in(folder):
                yield Photo(f"train/{place}/{name}", f"{place}/{name}", row)
        else:
            yield Photo(f"train/{place}", place, row)


def _test_photos(data: Data, base: Path) -> Iterator[Photo]:
    """List the test photos. Of their table only the id and the group column are read."""
    if not isinstance(data.test, TestTable):
        return
    for row in _read_table(data.test, base, "test"):
        if data.test.id not in row:
            raise DataError("data.test.id", f"column {data.test.id!r} was required, found {', '.join(row)}")
        place = str(row[data.test.id])
        if not _is_safe(place):
            raise DataError("data.test.table", f"a path below images/ was required, found {place!r}")
        kept = {"group": row.get(data.test.group)} if data.test.group else {}
        yield Photo(f"test/{place}", place, kept)


def _photos_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."))


def _is_safe(place: str) -> bool:
    parts = place.split("/")
    return bool(place) and "\0" not in place and "\\" not in place and ":" not in parts[0] and not any(
        part in {"", ".", "..", "~"} for part in parts
    )


def _read_table(section: Any, base: Path, side: str) -> list[dict[str, Any]]:
    path = base / section.root / section.table
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path, memory_map=False).to_pylist()
        return rows
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"data.{side}.table", f"{path}:{reader.line_num}: {len(reader.fieldnames or [])} columns "
                                f"were required, found another number")
            rows.append(dict(row))
    return rows


def _refuse_duplicates(photos: list[Photo]) -> None:
    twice = sorted({a.sample_id for a, b in zip(photos, photos[1:], strict=False) if a.sample_id == b.sample_id})
    if twice:
        raise DataError("data", f"every photo must be named once, found twice: {', '.join(twice[:_NAMED])}")


def _codes(data: Data, schema: Schema, photo: Photo) -> tuple[list[int], int] | list[str]:
    codes, faults = [], []
    for name, rule in data.labels.items():
        code = label_code(name, rule, photo.sample_id, photo.row)
        if isinstance(code, str):
            faults.append(f"{name}: {code}")
        else:
            codes.append(code)
    return faults or (codes, schema.encode(codes))


def _rows(data: Data, schema: Schema, photos: list[Photo], facts: list[Facts]) -> list[dict[str, Any]]:
    rows, faults = [], []
    for photo, fact in zip(photos, facts, strict=True):
        row: dict[str, Any] = {"sample_id": photo.sample_id, "path": photo.relative}
        if photo.sample_id.startswith("train/"):
            row |= {name: value for name, value in photo.row.items() if name not in OWN and not name.startswith("label_")}
            row["group"] = _group(data, photo)
            coded = _codes(data, schema, photo)
            if isinstance(coded, list):
                faults.append(f"{photo.sample_id} ({'; '.join(coded)})")
            elif fact.status == "ok":
                row |= {f"label_{name}": code for name, code in zip(schema.names, coded[0], strict=True)}
                row["label"] = coded[1]
        else:
            row["group"] = photo.row.get("group")
        rows.append(row | {"sha256": fact.sha256, "width": fact.width, "height": fact.height, "status": fact.status})
    if faults:
        raise DataError("data.labels", f"every sample needs exactly one class per label, {len(faults)} have not: "
                        f"{', '.join(faults[:_NAMED])}; widen the label's rule or remove the photos")
    return rows


def _group(data: Data, photo: Photo) -> str:
    if data.group == "sample_id":
        return photo.sample_id
    if data.group not in photo.row:
        raise DataError("data.group", f"column {data.group!r} was required, found {', '.join(photo.row)}")
    return str(photo.row[data.group])


def _held_out(data: Data, schema: Schema, rows: list[dict[str, Any]]) -> set[str]:
    from data_prep.split import deal  # noqa: PLC0415 - split imports nothing of this module

    usable = [row for row in rows if row["sample_id"].startswith("train/") and row["status"] == "ok"]
    fraction = data.test.hold_out if isinstance(data.test, TestHoldOut) else 0.0
    codes = [[row[f"label_{name}"] for name in schema.names] for row in usable]
    groups = [row["group"] for row in usable]
    return {group for group, chosen in deal(groups, codes, fraction, "hold_out", data.split.seed).items() if chosen}


def _as_test(row: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Turn a held-out source row into a test row: nothing that tells its labels stays."""
    kept = {name: row[name] for name in OWN if name in row and name not in {"sample_id", "label"}}
    return kept | {"sample_id": "test/" + row["sample_id"].partition("/")[2]}


def _refuse_empty(rows: list[dict[str, Any]], schema: Schema) -> None:
    present: dict[str, set[int]] = {name: set() for name in schema.names}
    for row in rows:
        for name in schema.names:
            if row.get(f"label_{name}") is not None:
                present[name].add(row[f"label_{name}"])
    for name, classes in schema.classes.items():
        lost = [text for code, text in enumerate(classes) if code not in present[name]]
        if lost:
            raise DataError(f"data.labels.{name}", f"readable training photos of every class were required, found none of {', '.join(lost)}")


def _table(rows: list[dict[str, Any]], schema: Schema) -> pa.Table:
    extra = sorted({name for row in rows for name in row} - {*OWN, *(f"label_{name}" for name in schema.names)})
    columns: dict[str, pa.Array] = {}
    for name in ("sample_id", "path", "group"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.string())
    for name in extra:
        columns[name] = _typed([row.get(name) for row in rows])
    for name in (*(f"label_{label}" for label in schema.names), "label"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.int64())
    columns["sha256"] = pa.array([row["sha256"] for row in rows], pa.string())
    for name in ("width", "height"):
        columns[name] = pa.array([row[name] for row in rows], pa.int64())
    columns["status"] = pa.array([row["status"] for row in rows], pa.string())
    return pa.table(columns)


def _typed(values: list[Any]) -> pa.Array:
    """Store a table's own column as whole numbers, numbers or text, whichever holds all its values."""
    for kind, convert in ((pa.int64(), int), (pa.float64(), float)):
        try:
            numbers = [None if value in (None, "") else convert(value) for value in values]
        except (TypeError, ValueError):
            continue
        if not any(isinstance(value, str) and len(value) > 1 and value[0] == "0" and value.isdecimal() for value in values):
            return pa.array(numbers, kind)
    return pa.array([None if value is None else str(value) for value in values], pa.string())
