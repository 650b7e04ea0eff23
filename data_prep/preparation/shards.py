"""Prepared samples in Parquet shards, an index written last, and a memory-mapped array of them.

Roles, folds, groups and labels are not in a shard: they change without a photo being prepared
again, and test labels must lie in one place only. They are joined by `sample_id`.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, TypedDict, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from data_prep.catalog.images import decode
from data_prep.files import atomic_path, file_sha256, write_json, write_text

FORMAT_VERSION = 2
INDEX = "index.json"
MAX_SIDE = 2048  # pixels
ROWS_PER_SHARD = 256
ROW_GROUP = 64  # small groups keep a random read of one row cheap
CACHE_BYTES = 256 * 2**20

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("sha256", pa.string()),  # of the photo, not of the crop
        # JPEG, (size, size, 3); PNG with alpha where the background is transparent
        ("image", pa.binary()),
        # x0, y0, x1, y1 as shares of the photo's sides; null without a face
        ("face_box", pa.list_(pa.float32(), 4)),
        ("face_confidence", pa.float32()),
        ("n_faces", pa.int16()),  # in the photo; the sample shows the largest central one
        ("mask_area", pa.float32()),  # share of the photo that the background remover kept
        ("outcome", pa.string()),  # "ok", or what steps did instead, joined by "; "
        ("steps", pa.list_(pa.string())),  # the outcome of every step in order
    ]
)


class ShardError(ValueError):
    """A shard that is not what its index says."""


class ShardRow(TypedDict):
    """One prepared sample, with the columns of SCHEMA."""

    sample_id: str
    sha256: str
    image: bytes
    face_box: list[float] | None
    face_confidence: float | None
    n_faces: int | None
    mask_area: float | None
    outcome: str
    steps: list[str]


@dataclass(frozen=True)
class ShardEntry:
    """What index.json says of one shard."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]+\.parquet$")]
    sha256: str
    size_bytes: int
    n_rows: NonNegativeInt


@dataclass(frozen=True)
class Index:
    """What index.json says of a folder of shards."""

    n_shards: PositiveInt  # a power of two; shards without rows have no file
    size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    steps: Any
    shards: tuple[ShardEntry, ...]


_INDEX = TypeAdapter(Index)


@dataclass(frozen=True)
class Rows:
    """All prepared samples as one array, shared by every process that maps it."""

    images: NDArray[np.uint8]  # (N, size, size, 3)
    sample_ids: list[str]

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of every sample id."""
        return {sample: row for row, sample in enumerate(self.sample_ids)}


def n_shards_for(n_samples: int) -> int:
    """Return a power of two with about 256 samples a shard, so that growing data halves shards."""
    n_shards = 1
    while n_shards * ROWS_PER_SHARD < n_samples:
        n_shards *= 2
    return n_shards


def shard_of(sample_id: str, n_shards: int) -> int:
    """Return the number of a sample's shard, a function of its id alone."""
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % n_shards


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05}.parquet"


def write_shard(path: Path, rows: Iterable[ShardRow]) -> None:
    """Write rows in the order of their ids; the same rows give the same bytes."""
    ordered = sorted(rows, key=lambda row: row["sample_id"])
    table = pa.Table.from_pylist(ordered, schema=SCHEMA)
    with atomic_path(path) as beside:
        # photos are compressed already; statistics of them would only be large
        pq.write_table(
            table,
            beside,
            row_group_size=ROW_GROUP,
            compression={"image": "none", "sample_id": "zstd"},
            use_dictionary=False,
            write_statistics=["sample_id"],
        )


def read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one shard with the expected schema, never with one that the file brings along.

    Raises:
        ShardError: it is no Parquet file, or its columns differ.
    """
    try:
        file = pq.ParquetFile(path, memory_map=False)
        names = {field.name for field in file.schema_arrow}
        if names != set(SCHEMA.names):
            raise ShardError(
                f"{path}: columns {SCHEMA.names} were required, found {sorted(names)}; "
                "delete it and submit again"
            )
        schema = SCHEMA
        if columns:
            schema = pa.schema([SCHEMA.field(name) for name in columns])
        return file.read(columns=columns).select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise ShardError(
            f"{path}: a Parquet shard was required, found: {error}; delete it and submit again"
        ) from None


def write_index(folder: Path, *, n_shards: int, size: int, steps: Any) -> None:
    """Write index.json over the shards of a folder, as the last file: it makes the folder whole."""
    shards = []
    for path in sorted(folder.glob("shard-*.parquet")):
        n_rows = pq.read_metadata(path).num_rows
        shards.append(ShardEntry(path.name, file_sha256(path), path.stat().st_size, n_rows))
    index = {
        "format_version": FORMAT_VERSION,
        "n_shards": n_shards,
        "size": size,
        "steps": steps,
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / INDEX, index)


def read_index(folder: Path) -> Index:
    """Read index.json.

    Raises:
        ShardError: it is missing, or of another format version.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version = index["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{folder / INDEX}: an index was required, found: {error}; submit again"
        ) from None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{folder / INDEX}: format version {FORMAT_VERSION} was required, found {version!r}; "
            f"read it with the release that wrote it, or delete {folder} and submit again"
        )
    try:
        return _INDEX.validate_python(index)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ShardError(
            f"{folder / INDEX}: an index was required, found in {place}: {first['msg']}; "
            f"delete {folder} and submit again"
        ) from None


def _present_index(folder: Path) -> Index:
    """Read index.json before room is made for the rows that it names.

    Raises:
        ShardError: it cannot be read; a shard is missing, has another size, or more rows than bytes.
    """
    index = read_index(folder)
    for shard in index.shards:
        path = _existing_path(folder, shard)
        size_bytes = path.stat().st_size
        if size_bytes != shard.size_bytes or shard.n_rows > size_bytes:
            raise ShardError(
                f"{path}: {shard.n_rows} rows in {shard.size_bytes} bytes were required by {INDEX}, "
                f"found {size_bytes} bytes; delete {folder} and submit again"
            )
    return index


def verify_shard(folder: Path, shard: ShardEntry) -> Path:
    """Return the path of a shard of the index whose bytes are what the index says.

    Raises:
        ShardError: it is missing or its sha256 differs.
    """
    path = _existing_path(folder, shard)
    sha256 = file_sha256(path)
    if sha256 != shard.sha256:
        raise ShardError(
            f"{path}: sha256 is {sha256[:8]}.., {INDEX} says {shard.sha256[:8]}..; "
            f"delete {folder} and submit again"
        )
    return path


def _existing_path(folder: Path, shard: ShardEntry) -> Path:
    path = folder / shard.file
    if not path.is_file():
        raise ShardError(
            f"{path}: required by {INDEX}, found no such file; delete {folder} and submit again"
        )
    return path


def read_shards(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the shards of a folder in order, each checked against the index before it is used.

    Raises:
        ShardError: a shard is missing or its sha256 differs.
    """
    for shard in read_index(folder).shards:
        yield _read_entry(folder, shard, columns)


def _read_entry(folder: Path, shard: ShardEntry, columns: list[str] | None) -> pa.Table:
    table = read_shard(verify_shard(folder, shard), columns)
    if len(table) != shard.n_rows:
        raise ShardError(
            f"{folder / shard.file}: {shard.n_rows} rows were required by {INDEX}, found "
            f"{len(table)}; delete {folder} and submit again"
        )
    return table


class Shards(Sequence[bytes]):
    """The encoded photos of a folder of shards, by position or by sample id, in any order.

    A shard is verified and read when one of its photos is first asked for, and kept while there is
    room. Encoded photos are small, and reading the file again for every photo costs ten times as
    much as decoding it.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Open a folder.

        Raises:
            ShardError: the index is missing, of another format version, or says of a shard what
                cannot be.
        """
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._shards = _present_index(folder).shards
        self._starts = [0, *accumulate(shard.n_rows for shard in self._shards)]
        self._kept: OrderedDict[int, pa.Array] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """Return the encoded photo at a position.

        Raises:
            IndexError: there is none.
            ShardError: its shard is not what the index says.
        """
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"position {index}: required below {len(self)}")
        index %= len(self)
        number = bisect_right(self._starts, index) - 1
        photo: bytes = self._photos(number)[index - self._starts[number]].as_py()
        return photo

    @cached_property
    def sample_ids(self) -> list[str]:
        """The id of every position; reads and verifies all shards."""
        ids: list[str] = []
        for table in read_shards(self._folder, ["sample_id"]):
            ids += table["sample_id"].to_pylist()
        return ids

    def _photos(self, number: int) -> pa.Array:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        table = _read_entry(self._folder, self._shards[number], ["image"])
        photos = table["image"].combine_chunks()
        self._kept[number] = photos
        self._kept_bytes += photos.nbytes
        while len(self._kept) > 1 and self._kept_bytes > self._cache_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return photos


def memory_map(prepared: Path, out: Path) -> Rows:
    """Decode all shards once into one array.

    `out/rows.npy` gets the photos, (N, size, size, 3) uint8, and `out/rows.json` their ids.

    Raises:
        ShardError: a shard, or a photo in it, is not what the index says.
    """
    index = _present_index(prepared)
    n_rows = sum(shard.n_rows for shard in index.shards)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.npy"
    images = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(n_rows, index.size, index.size, 3)
    )
    with path.open("r+b") as handle:
        # on a full disk this raises; writing through the map would end the process with SIGBUS
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    ids: list[str] = []
    for table in read_shards(prepared, ["sample_id", "image"]):
        for sample, image in zip(table["sample_id"].to_pylist(), table["image"], strict=True):
            pixels = decode(image.as_py())
            if pixels.shape != images.shape[1:]:
                raise ShardError(
                    f"{prepared}: photos of {index.size} x {index.size} were required by {INDEX}, "
                    f"found {sample} of {pixels.shape[1]} x {pixels.shape[0]}; delete it and "
                    "submit again"
                )
            images[len(ids)] = pixels
            ids.append(sample)
    images.flush()
    del images
    write_text(out / "rows.json", json.dumps(ids))
    return open_rows(out)


def open_rows(folder: Path) -> Rows:
    """Map the array that `memory_map` wrote, read-only."""
    images = np.load(folder / "rows.npy", mmap_mode="r")
    return Rows(images, json.loads((folder / "rows.json").read_text(encoding="utf-8")))
