"""60 and more malformed photos of 15 kinds, and 60 odd tables: all are made here, none crashes a reader."""

import contextlib
import io
import random
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.catalog.images import PhotoError, decode
from data_prep.catalog.photo_inspection import examine
from data_prep.catalog.user_tables import open_table
from data_prep.errors import DataError

MOST_KB = 500_000
_NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def saved(image, kind, **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def photo(kind="JPEG", size=(64, 48), mode="RGB", **settings):
    image = Image.fromarray(_NOISE).resize(size)
    return saved(image.convert(mode), kind, **settings)


def tenths(content):
    return [content[: len(content) * part // 10] for part in range(1, 10)]


def png(width, height, *, depth=8, color=2, rows=b""):
    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def flipped(content, seed):
    rng = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(1 + seed):
        damaged[rng.randrange(12, len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def frames(kind):
    images = [Image.fromarray(_NOISE), Image.fromarray(255 - _NOISE)]
    return saved(images[0], kind, save_all=True, append_images=images[1:])


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(exif=exif)


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.txt", "x")
    return buffer.getvalue()


def bitmap(width, height):
    content = bytearray(photo("BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


GIF = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0;"
PHOTOS = {  # kind -> (are they photos? None: either, the files)
    "empty and very short": (False, [b"", b"\xff", b"\xff\xd8\xff", b"\0" * 64]),
    "JPEG cut at every tenth": (False, tenths(photo())),
    "PNG cut at every tenth": (False, tenths(photo("PNG"))[:8]),
    "WebP cut at every tenth": (False, tenths(photo("WEBP"))),
    "bombs": (
        False,
        [
            png(60_000, 60_000),
            png(12_000, 12_000, depth=1, color=0, rows=b"\0" * (12_000 * 1501)),
            GIF,
            bitmap(2**30, 2**30),
        ],
    ),
    "CMYK and other colours": (
        True,
        [photo(mode="CMYK"), photo(mode="L"), photo("TIFF", mode="CMYK"), photo("TIFF", mode="LAB")],
    ),
    "16 bits and floats": (
        True,
        [
            saved(Image.fromarray(_NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
            saved(Image.fromarray(_NOISE[..., 0].astype(np.uint16)), "TIFF"),
            saved(Image.fromarray(_NOISE[..., 0].astype(np.float32)), "TIFF"),
            saved(Image.fromarray(_NOISE[..., 0].astype(np.int32)), "TIFF"),
        ],
    ),
    "palettes, alpha, one bit": (
        True,
        [
            photo("PNG", mode="P"),
            photo("PNG", mode="LA"),
            photo("PNG", mode="1"),
            photo("PNG", mode="P", transparency=0),
        ],
    ),
    "animated": (True, [frames("GIF"), frames("PNG"), frames("WEBP"), frames("TIFF")]),
    "EXIF": (
        None,
        [
            *(turned(number) for number in (0, 3, 8, 9, 65_535)),
            photo(exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 64),
            photo(exif=b"Exif\0\0" + b"\0" * 60_000),
        ],
    ),
    "sizes of zero": (
        False,
        [png(0, 8), png(8, 0), bitmap(0, 48), GIF[:6] + b"\0" * 4 + GIF[10:]],
    ),
    "other files under the name of a photo": (
        False,
        [b"<html></html>", b"%PDF-1.7 ", archive(), "text".encode("utf-16"), b"SIMPLE  =  T"],
    ),
    "strips": (
        True,
        [photo(size=(1, 4000)), photo("PNG", size=(4000, 1)), photo("PNG", size=(1, 1)), photo("GIF", size=(9000, 2))],
    ),
    "flipped bits": (None, [flipped(photo(kind), seed) for kind in ("JPEG", "PNG", "WEBP") for seed in (0, 3)]),
    "more than a photo": (
        None,
        [photo() + b"\0" * 500, photo() + archive(), photo() + photo(), b"\n" + photo()],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_malformed_photo_is_read_or_quarantined_and_costs_little(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_photo, contents = PHOTOS[kind]
    for content in contents:
        facts = examine(content)
        pixels = None
        with contextlib.suppress(PhotoError):
            pixels = decode(content)
        if facts.status == "ok":
            assert (facts.height, facts.width, 3) == pixels.shape
        if is_photo is not None:
            assert is_photo == (facts.status == "ok"), (facts.status, content[:40])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KB


def test_there_are_sixty_photos_of_fifteen_kinds():
    assert 15 == len(PHOTOS)
    assert 60 <= sum(len(contents) for _, contents in PHOTOS.values())


HEADS = {"plain": "id,age", "quoted": '"id","age"', "blanks": " id , age ", "case": "ID,id"}
BODIES = {
    "rows": "\n1,30\n2,41\n",
    "Windows": "\r\n1,30\r\n2,41\r\n",
    "old Mac": "\r1,30\r2,41\r",
    "no end": "\n1,30\n2,41",
    "empty lines": "\n\n1,30\n\n\n2,41\n\n",
    "empty cells": "\n1,\n,41\n",
    "quotes": '\n"1","3""0"\n2,"4\n1"\n',
    "controls": "\n1,\x1b[31m\x07\n2,<script>\n",
    "formulas": '\n1,"=HYPERLINK(""http://x"")"\n2,@SUM(A1)\n',
    "long": f"\n1,{'9' * 100_000}\n2,41\n",
    "NUL": "\n1,\0\n2,41\n",
    "numbers": "\n1,1e999\n2,-0\n",
    "other digits": "\n١,٣٠\n２,４１\n",
}
REFUSED = {
    "nothing": b"",
    "header alone": b"id,age\n",
    "lines alone": b"\n\n\n",
    "too long a row": b"id,age\n1,2,3\n",
    "too short a row": b"id,age\n1\n",
    "open quote": b'id,age\n1,"2\n',
    "a name twice": b"id,id\n1,2\n",
    "no names": b",,\n1,2,3\n",
    "cp1252": "id,name\n1,Zoë\n".encode("cp1252"),
    "half a character": "id,name\n1,ë".encode()[:-1],
    "UTF-16 without mark": "id,age\n1,2\n".encode("utf-16-le"),
    "UTF-16 cut": "id,age\n1,2\n".encode("utf-16")[:-1],
    "such a cell where two separators fit": b"a;b,c\n" + b"9" * 200_000 + b";1,2\n",
    "a cell beyond the limit": b"id,age\n1," + b"9" * 200_000 + b"\n",
}


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


TABLE = parquet(id=["1", "2"], age=[30.0, None])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_an_odd_csv_has_its_rows_and_columns(tmp_path, head, body):
    path = tmp_path / "table.csv"
    path.write_bytes((HEADS[head] + BODIES[body]).encode())
    columns = open_table(path, "data.source.table").columns
    assert 2 == len(columns)
    assert {2} == {len(cells) for cells in columns.values()}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_csv_is_one_sentence(tmp_path, kind):
    path = tmp_path / "table.csv"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(DataError) as error:
        open_table(path, "data.source.table")
    assert str(error.value).startswith("data.source.table: ")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", TABLE[:-1], TABLE[: len(TABLE) // 2], TABLE[:4] + b"\xff" * 40 + TABLE[44:], b"id,age\n1,2\n"],
)  # fmt: skip
def test_a_broken_parquet_table_is_one_sentence(tmp_path, content):
    path = tmp_path / "table.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.source\.table: "):
        open_table(path, "data.source.table")


@pytest.mark.parametrize(
    "column",
    [[[1], [2]], [{"a": 1}, {"a": 2}], [b"\xff", b"a"], [1.5, float("nan")], [True, None]],
    ids=["lists", "structs", "bytes", "NaN", "booleans"],
)
def test_columns_of_other_types_are_read_or_named(tmp_path, column):
    path = tmp_path / "table.parquet"
    path.write_bytes(parquet(id=["1", "2"], other=column))
    columns = {}
    with contextlib.suppress(DataError):
        columns = open_table(path, "data.source.table").columns
    assert columns.get("id", ["1", "2"]) == ["1", "2"]


def test_a_table_that_is_no_file_is_one_sentence(tmp_path):
    for place in (tmp_path, tmp_path / "gone.csv", Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(DataError):
            open_table(place, "data.source.table")
