from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.audit.descriptive_statistics import columns_that_tell
from data_prep.audit.examination import audit
from data_prep.catalog import answers_table, batch_inspection, labels_of_test_photos
from data_prep.catalog.builder import build_catalog, content_hash, photos_hash, reading_notes
from data_prep.catalog.fingerprint import fingerprint
from data_prep.catalog.images import decode
from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_inspection import examine, inspect
from data_prep.catalog.photo_paths import PLAIN_EXTENSIONS, photo_path, refusal
from data_prep.catalog.user_tables import read_table
from data_prep.config import Data
from data_prep.errors import DataError, MachineError
from data_prep.exclusions import excluded
from data_prep.label_codes import values_in
from tests.data_prep.conftest import AGE, GENDER, jpeg


def encoded(kind: str, mode: str = "RGB", size=(64, 48), **settings) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind, **settings)
    return buffer.getvalue()


def bomb(kind: str, side: int = 60_000) -> bytes:
    photo = bytearray(encoded(kind))
    if kind == "PNG":
        photo[16:24] = struct.pack(">II", side, side)
        photo[29:33] = struct.pack(">I", zlib.crc32(bytes(photo[12:29])))
    else:
        at = photo.index(b"\xff\xc0")
        photo[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(photo)


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


PHOTOS = {
    "jpeg": (encoded("JPEG"), "ok"),
    "cmyk": (encoded("JPEG", "CMYK"), "ok"),
    "png": (encoded("PNG"), "ok"),
    "palette": (encoded("PNG", "P"), "ok"),
    "sixteen bits": (sixteen_bits(), "ok"),
    "webp": (encoded("WEBP"), "ok"),
    "webp lossless": (encoded("WEBP", lossless=True), "ok"),
    "webp alpha": (encoded("WEBP", "RGBA"), "ok"),
    "one pixel": (encoded("PNG", size=(1, 1)), "ok"),
    "truncated jpeg": (encoded("JPEG")[:-400], "truncated"),
    "truncated header": (encoded("JPEG")[:30], "truncated"),
    "truncated png": (encoded("PNG")[:-400], "truncated"),
    "truncated webp": (encoded("WEBP")[:-400], "truncated"),
    "text": (b"not a photo", "not an image"),
    "empty": (b"", "empty file"),
    "gif": (encoded("GIF"), "ok"),
    "bmp": (encoded("BMP"), "ok"),
    "tiff": (encoded("TIFF"), "ok"),
    "truncated bmp": (encoded("BMP")[:-400], "broken"),
    "truncated tiff": (encoded("TIFF")[:-400], "broken"),
    "pdf": (b"%PDF-1.7", "not allowed: PDF (only JPEG, PNG, WebP, BMP, GIF and TIFF)"),
    "jpeg bomb": (bomb("JPEG"), "too large: 60000x60000"),
    "png bomb": (bomb("PNG"), "too large: 60000x60000"),
    "webp bomb": (
        b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0" + bytes(10),
        "too large: 16383x16383",
    ),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_is_judged_by_its_bytes(name):
    photo, status = PHOTOS[name]
    assert status == examine(photo).status


def test_a_turned_photo_has_the_size_that_people_see():
    assert (examine(rotated()).width, examine(rotated()).height, examine(rotated()).status) == (
        48,
        64,
        "ok",
    )


def test_a_true_bomb_costs_no_memory():
    code = ("import resource, zlib, struct; from data_prep.catalog.photo_inspection import examine\n"
            "c = lambda t, d: struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))\n"
            "z = zlib.compressobj(9); rows = b''.join([z.compress(bytes(12001)) for _ in range(12000)] + [z.flush()])\n"
            "p = b'\\x89PNG\\r\\n\\x1a\\n' + c(b'IHDR', struct.pack('>IIBBBBB', 12000, 12000, 8, 0, 0, 0, 0)) + c(b'IDAT', rows) + c(b'IEND', b'')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; s = examine(p).status\n"
            "print(s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)")  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    status, grown_mib = out.rsplit(maxsplit=1)
    assert status == "too large: 12000x12000"
    assert int(grown_mib) < 100


def test_the_limit_of_pixels_is_a_setting():
    code = (
        "import io; from PIL import Image; from data_prep.catalog.photo_inspection import examine\n"
        "buffer = io.BytesIO(); Image.new('L', (1200, 1000)).save(buffer, 'PNG')\n"
        "print(examine(buffer.getvalue()).status)"
    )
    statuses = []
    for limit in ("1", "1.5", "lots"):
        environment = {**os.environ, "MAX_MEGAPIXELS": limit}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        statuses.append((done.stdout or done.stderr).strip().splitlines()[-1])
    assert ["too large: 1200x1000", "ok"] == statuses[:2]
    assert "MAX_MEGAPIXELS: a number up to 178 was required, found 'lots'" in statuses[2]


@pytest.mark.parametrize(("brightest", "expected"), [(255, 255), (4000, 249), (60_000, 233)])
def test_twelve_bits_in_sixteen_are_not_nearly_black(brightest, expected):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), brightest, dtype=np.uint16)).save(buffer, "PNG")
    assert expected == decode(buffer.getvalue()).max()


def test_damaged_photos_end_in_a_status():
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encoded(kind)
        for _ in range(60):
            photo = bytearray(whole)
            for at in random.integers(0, len(photo), 8):
                photo[at] = random.integers(0, 256)
            assert examine(bytes(photo)).status


def test_pipes_folders_and_files_that_are_gone_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = [inspect(str(tmp_path), name).status for name in ("pipe.jpg", "folder.jpg", "gone.jpg")]
    assert found == ["not a file", "not a file", "unreadable: No such file or directory"]


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOTCONN, errno.ETIMEDOUT]
)
def test_what_is_no_photos_fault_is_no_fact_about_a_photo(tmp_path, monkeypatch, number):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(encoded("JPEG"))
    monkeypatch.setattr(
        "builtins.open", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number)))
    )
    with pytest.raises(
        MachineError,
        match=rf"a\.jpg: a disk that answers was required, found: {os.strerror(number)}; ",
    ):
        inspect(str(tmp_path), "a.jpg")
    monkeypatch.undo()
    assert "ok" == inspect(str(tmp_path), "a.jpg").status


# catalog


def test_a_contest_folder_becomes_one_row_per_photo(contest):
    table = build_catalog(contest.data(), contest.base)
    ids = table["sample_id"].to_pylist()
    assert sorted(ids) == ids
    assert len(set(ids)) == 12 * 4 + 6
    row = next(
        row
        for row in table.to_pylist()
        if row["sample_id"] == "train/000003_female_x_41/incorrect_mask.JPG"
    )
    expected = {"group": "000003", "id": "000003", "age": 41, "label_mask": 1, "label_gender": 1, "label_age": 1, "label": 10,
                "width": 8, "height": 12, "status": "ok", "path": "train/images/000003_female_x_41/incorrect_mask.JPG"}  # fmt: skip
    assert expected == {name: row[name] for name in expected}
    place = photo_path(contest.data(), contest.base, row["sample_id"])
    assert (contest.base / row["path"]).read_bytes() == Path(place).read_bytes()


def test_test_rows_know_nothing_but_their_photo(contest):
    for row in build_catalog(contest.data(), contest.base).to_pylist():
        if row["sample_id"].startswith("test/"):
            assert {"sample_id", "path", "sha256", "width", "height", "status"} == {
                name for name, value in row.items() if value is not None
            }


def test_labels_of_the_test_set_are_read_by_one_function_only(contest, monkeypatch):
    kept = []
    read = answers_table.read_table
    monkeypatch.setattr(
        answers_table,
        "read_table",
        lambda path, where, keep=None: kept.append(keep) or read(path, where, keep),
    )
    first = build_catalog(contest.data(), contest.base)
    assert kept == []
    contest.tests = [row | {"ans": "poison"} for row in contest.tests]
    contest.save()
    poisoned = build_catalog(contest.data(), contest.base)
    assert first.equals(poisoned)
    with pytest.raises(DataError, match=r"data\.test\.label.*6 have none: test/c\.jpg: 'poison'"):
        labels_of_test_photos.labels_of_test_photos(contest.data(), contest.base, poisoned)


def test_answers_are_joined_by_id_and_keep_the_tables_order(contest):
    table = build_catalog(contest.data(), contest.base)
    answers = labels_of_test_photos.labels_of_test_photos(contest.data(), contest.base, table)
    assert {f"test/{row['ImageID']}": row["ans"] for row in contest.tests} == dict(
        zip(answers["sample_id"].to_pylist(), answers["label"].to_pylist(), strict=True)
    )
    assert [
        (f"test/{name}.jpg", f"{name}.jpg") for name in "cabfed"
    ] == labels_of_test_photos.order_of_test_photos(contest.data(), contest.base, table)
    assert (
        labels_of_test_photos.labels_of_test_photos(
            contest.data(test={"root": "eval"}), contest.base, table
        )
        is None
    )


def test_answers_may_be_class_names(contest):
    contest.tests = [row | {"ans": "wear/female/>=60"} for row in contest.tests]
    contest.save()
    table = build_catalog(contest.data(), contest.base)
    assert (
        labels_of_test_photos.labels_of_test_photos(contest.data(), contest.base, table)[
            "label"
        ].to_pylist()
        == [5] * 6
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("123123", [0, 1, 2, 0, 1, 2]),  # all are names, 3 is no code
        ("012012", [0, 1, 2, 0, 1, 2]),  # all are codes, 0 is no name
        ("333333", [2] * 6),
        ("121212", "can be read as both: '1' is the name of class 0 and the code of class '2'"),
        ("013013", "can be read as neither: '1' is the name of class 0"),
        ("03x111", "1 have none: test/b.jpg: 'x'"),
    ],
)
def test_classes_named_by_numbers_are_read_by_the_whole_column_or_refused(
    contest, values, expected
):
    data = contest.data(
        labels={"kind": {"from": "column", "column": "kind", "classes": ["1", "2", "3"]}}
    )
    contest.people = [row | {"kind": at % 3 + 1} for at, row in enumerate(contest.people)]
    contest.tests = [row | {"ans": value} for row, value in zip(contest.tests, values, strict=True)]
    contest.save()
    table = build_catalog(data, contest.base)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=rf"data\.test\.label: .*{expected}"):
            labels_of_test_photos.labels_of_test_photos(data, contest.base, table)
        return
    order = [f"test/{row['ImageID']}" for row in contest.tests]
    found = labels_of_test_photos.labels_of_test_photos(data, contest.base, table)
    of = dict(zip(found["sample_id"].to_pylist(), found["label"].to_pylist(), strict=True))
    assert expected == [of[sample] for sample in order]


def test_bins_of_one_year_are_no_codes(contest):
    data = contest.data(labels={"age": {"from": "column", "column": "age", "bins": [2, 3]}})
    contest.people = [row | {"age": at % 3 + 1} for at, row in enumerate(contest.people)]
    for values, expected in (
        (["<2", "2", ">=3"] * 2, [0, 1, 2] * 2),
        ([0, 1, 2] * 2, [0, 1, 2] * 2),
    ):
        contest.tests = [
            row | {"ans": value} for row, value in zip(contest.tests, values, strict=True)
        ]
        contest.save()
        found = labels_of_test_photos.labels_of_test_photos(
            data, contest.base, build_catalog(data, contest.base)
        )
        of = dict(zip(found["sample_id"].to_pylist(), found["label"].to_pylist(), strict=True))
        assert expected == [of[f"test/{row['ImageID']}"] for row in contest.tests]


def test_neither_order_of_rows_nor_place_nor_time_is_in_the_hash(contest, tmp_path):
    first = build_catalog(contest.data(), contest.base)
    contest.people.reverse()
    contest.save()
    (tmp_path / "b").mkdir()
    (contest.base / "train").rename(tmp_path / "b/t")
    moved = {"layout": "profile_folders", "root": str(tmp_path / "b/t")}
    second = build_catalog(contest.data(source=moved), contest.base)
    assert (content_hash(first), photos_hash(first)) == (content_hash(second), photos_hash(second))
    other = first.set_column(first.column_names.index("race"), "race", [["y"] * len(first)])
    assert content_hash(first) != content_hash(other)
    assert photos_hash(first) == photos_hash(other)


def test_chunks_may_run_elsewhere_and_progress_is_told(contest):
    def through_pickle(function, items):
        for item in items:
            yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item)))

    told = []
    far = build_catalog(
        contest.data(),
        contest.base,
        map_chunks=through_pickle,
        progress=lambda done, note: told.append((done, note)),
    )
    assert build_catalog(contest.data(), contest.base).equals(far)
    assert told[-1] == (54, "of 54 photos")


def test_corrupt_photos_are_quarantined_and_the_rest_goes_on(contest):
    broken = {"train/images/000000_male_x_22/mask1.jpg": b"text", "eval/images/a.jpg": b""}
    for place, content in broken.items():
        (contest.base / place).write_bytes(content)
    table = build_catalog(contest.data(), contest.base)
    assert {
        row["sample_id"]: (row["status"], row["label"])
        for row in table.to_pylist()
        if row["status"] != "ok"
    } == {
        "train/000000_male_x_22/mask1.jpg": ("not an image", None),
        "test/a.jpg": ("empty file", None),
    }
    assert (
        len(labels_of_test_photos.labels_of_test_photos(contest.data(), contest.base, table)) == 6
    )


def test_names_of_all_kinds_are_photos_like_others(contest):
    names = ["mask 1.jpg", "mask'\".jpg", "mask\n2.jpg", "mask한국어.jpg", "mask,3.webp"]
    for at, name in enumerate(names):
        contest.photo(f"train/images/000000_male_x_22/{name}", 500 + at)
    contest.photo("train/images/000000_male_x_22/._mask1.jpg", 1)
    contest.photo("train/images/000000_male_x_22/notes.txt", 1)
    found = build_catalog(contest.data(), contest.base)["sample_id"].to_pylist()
    assert 54 + len(names) == len(found)
    assert {f"train/000000_male_x_22/{name}" for name in names} < set(found)


def test_names_that_are_not_utf8_are_refused_and_listed(contest):
    folder = os.fsencode(contest.images / "000000_male_x_22")
    Path(os.fsdecode(folder + b"/mask\xff.jpg")).write_bytes(b"")
    table = build_catalog(contest.data(), contest.base)
    row = next(row for row in table.to_pylist() if row["status"] != "ok")
    assert (
        row["sample_id"],
        row["status"],
    ) == ("train/000000_male_x_22/mask\\xff.jpg", "refused: the name is not UTF-8")


def test_what_may_hold_photos_and_is_not_read_is_counted_and_ends_nothing(contest):
    person = "train/images/000000_male_x_22"
    others = ("new.arw", "old.PDF", "Old.pdf", "frame.avif", "scan", "sub/mask9.jpg")
    for name in (*others, "._new.arw", "Thumbs.db", "@eaDir/mask1.jpg", "Notes.TXT", "notes.txt"):
        contest.photo(f"{person}/{name}", 1)
    contest.photo("train/images/000001_female_x_22/a/b/mask1.jpg", 77)  # the folder of another row
    contest.people.append(contest.people[1] | {"path": "000001_female_x_22/a/b"})
    contest.photo("train/images/raw only/new.arw", 1)
    contest.people.append(contest.people[1] | {"path": "raw only"})
    contest.save()
    data = contest.data(test={"hold_out": 0.25})
    table = build_catalog(data, contest.base)
    facts = audit(table, {}, Schema.of(data.labels)).to_json()
    only = f"only {', '.join(PLAIN_EXTENSIONS)} are read"
    assert facts["reasons"] == {
        f"refused: .arw, {only}": 2,
        f"refused: .pdf, {only}": 2,
        f"refused: .avif, {only}": 1,
        f"refused: no extension, {only}": 1,
        "refused: a folder, photos in it are not read": 1,
    }
    assert (facts["n_quarantined"], facts["n_usable"]) == (7, 49)
    assert ["photos cannot be used and are left out"] == [
        one["what"] for one in facts["warnings"] if one["kind"] == "quarantined"
    ]
    assert (
        len(labels_of_test_photos.labels_of_test_photos(data, contest.base, table))
        == facts["n_test"]
    )


# paths


OUTSIDE = [
    "../x.jpg",
    "a/../../x.jpg",
    "/etc/passwd",
    "\\\\host\\x.jpg",
    "c:\\x.jpg",
    "http://h/x.jpg",
    "data:image/png;base64,AA",
    "a\0b.jpg",
    "~/x.jpg",
    "",
    "a\\..\\x",
]


@pytest.mark.parametrize("place", OUTSIDE)
def test_paths_from_outside_are_refused(contest, place):
    assert refusal(place).startswith("refused: ")
    with pytest.raises(DataError, match="refused"):
        photo_path(contest.data(), contest.base, f"test/{place}")


def test_a_table_full_of_bad_paths_opens_none_of_them(contest, monkeypatch):
    contest.tests = [
        {"ImageID": place, "ans": 0} for place in OUTSIDE if place and "\0" not in place
    ]
    contest.save()
    opened = []
    monkeypatch.setattr(
        batch_inspection,
        "inspect_chunk",
        lambda places: opened.extend(places) or [examine(b"") for _ in places],
    )
    with pytest.raises(DataError, match="found none among 48: empty file"):
        build_catalog(contest.data(), contest.base)
    assert all(folder == str(contest.images) for folder, _ in opened)
    monkeypatch.undo()
    table = build_catalog(contest.data(), contest.base)
    assert len(contest.tests) == sum(
        row["status"].startswith("refused: ") for row in table.to_pylist()
    )


def test_links_out_of_the_root_are_refused_and_links_inside_work(contest, tmp_path):
    secret = contest.photo("secret/mask9.jpg", 9)
    person = contest.images / "000000_male_x_22"
    (person / "mask8.jpg").symlink_to(secret)
    (person / "mask7.jpg").symlink_to(contest.images / "000001_female_x_22/mask1.PNG")
    (person / "mask6.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (contest.images / "out").symlink_to(secret.parent, target_is_directory=True)
    contest.people.append(contest.people[0] | {"id": "9", "path": "out"})
    contest.save()
    status = {
        row["sample_id"]: row["status"]
        for row in build_catalog(
            contest.data(labels={"age": {"from": "column", "column": "age", "bins": [30]}}),
            contest.base,
        ).to_pylist()
    }
    refused = "refused: the link leads out of the data folder"
    expected = {
        "train/out": refused,
        **{
            f"train/000000_male_x_22/mask{at}.jpg": found
            for at, found in ((8, refused), (7, "ok"), (6, refused))
        },
    }
    assert expected == {name: status[name] for name in expected}


# errors


def test_missing_and_repeated_test_photos_are_named(contest):
    contest.tests += [{"ImageID": f"gone{at}.jpg", "ans": 0} for at in range(4)]
    contest.save()
    with pytest.raises(
        DataError,
        match=r"data\.test\.table: row \d+ of .* names gone0.jpg, which is not in images/ \(4 of \d+; "
        r"also row \d+: gone1.jpg; row \d+: gone2.jpg; row \d+: gone3.jpg\)",
    ):
        build_catalog(contest.data(), contest.base)
    contest.tests = contest.tests[:6] + contest.tests[:2]
    contest.save()
    with pytest.raises(
        DataError,
        match=r"2 are there twice \(the same row stands there again\): 'c\.jpg'; 'a\.jpg'",
    ):
        build_catalog(contest.data(), contest.base)


def test_people_without_photos_are_named(contest):
    contest.people.append(contest.people[0] | {"id": "77", "path": "nobody"})
    contest.save()
    with pytest.raises(DataError, match=r"data\.source\.table.*1 have none: 'nobody'"):
        build_catalog(contest.data(), contest.base)


def test_names_that_differ_in_case_are_two_photos_where_the_files_are_two(contest):
    contest.photo("train/images/000000_male_x_22/mask1.JPG", 1)
    names = build_catalog(contest.data(), contest.base)["sample_id"].to_pylist()
    person = "train/000000_male_x_22"
    assert {f"{person}/mask1.JPG", f"{person}/mask1.jpg"} < set(names)


def test_a_class_without_any_training_photo_is_named(contest):
    for row in contest.people:
        if row["age"] == 60:
            (contest.images / row["path"]).rename(contest.images / f"{row['id']}_x")
            row |= {"age": 50, "path": f"{row['id']}_x"}
    contest.save()
    with pytest.raises(DataError, match=r"data\.labels\.age: .*found none of >=60"):
        build_catalog(contest.data(), contest.base)


def test_groups_must_be_there(contest):
    with pytest.raises(
        DataError, match=r"data\.group: .*found 'person'; columns are id, gender, race, age, path"
    ):
        build_catalog(contest.data(group="person"), contest.base)
    contest.people[4]["race"] = ""
    contest.save()
    with pytest.raises(
        DataError, match="a value of race was required for every photo, 4 have none: 000004_male"
    ):
        build_catalog(contest.data(group="race"), contest.base)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"id,path\n1,a,b\n", "train.csv:2: 2 cells were required .*found 3"),
        (b"id,id\n1,a\n", "distinct column names"),
        (b"", "a header line"),
        (b"id,path\n", "at least one row"),
        (b"id,path\n\xff,a\n", "UTF-8 was required, found byte 0xff"),
        (b"id,folder\n1,a\n", "a column 'path' was required, found id, folder"),
    ],
)
def test_a_broken_table_is_explained(contest, content, text):
    (contest.base / "train/train.csv").write_bytes(content)
    with pytest.raises(DataError, match=text):
        build_catalog(contest.data(), contest.base)


def test_a_parquet_table_with_a_name_twice_is_refused(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["age", "age"]),
        tmp_path / "t.parquet",
    )
    with pytest.raises(
        DataError, match=r"distinct column names were required, found \['age', 'age'\]"
    ):
        read_table(tmp_path / "t.parquet", "data.source.table")


def test_a_column_is_found_by_its_own_name_beside_one_that_the_catalog_could_have_renamed(contest):
    contest.people = [row | {"table_age": 99, "label": row["gender"]} for row in contest.people]
    contest.save()
    data = contest.data(labels={"age": AGE, "sex": GENDER | {"column": "label"}})
    table = build_catalog(data, contest.base)
    labelled = table.filter(table["label"].is_valid())
    schema = Schema.of(data.labels)
    assert {22: 16, 41: 16, 60: 16} == Counter(values_in(data.labels["age"], labelled))
    assert [16, 24] == [
        excluded(labelled, schema, [rule]).sum() for rule in ({"age": 60}, {"label": ["male"]})
    ]
    assert "table_label" not in {
        tell.column
        for tell in columns_that_tell(
            labelled, schema.decode(labelled["label"].to_numpy()), schema, data.labels
        )
    }


# other layouts


def test_class_folders_need_no_table(tmp_path, contest):
    for at in range(6):
        contest.photo(f"plants/images/{('oak', 'elm')[at % 2]}/{at}.jpeg", at)
    labels = {"kind": {"from": "folder", "classes": ["elm", "oak"]}}
    data = contest.data(
        source={"layout": "class_folders", "root": "plants"},
        labels=labels,
        group="sample_id",
        test=None,
    )
    table = build_catalog(data, contest.base)
    assert table["sample_id"].to_pylist()[:3] == [
        "train/elm/1.jpeg",
        "train/elm/3.jpeg",
        "train/elm/5.jpeg",
    ]
    assert (table["label"].to_pylist(), table["folder"].to_pylist()) == (
        [0] * 3 + [1] * 3,
        ["elm"] * 3 + ["oak"] * 3,
    )
    assert len(set(table["group"].to_pylist())) == 6
    contest.photo("plants/images/7.jpeg", 7)
    contest.photo("plants/images/oak/deep/8.jpeg", 8)
    contest.photo("plants/images/README.md", 9)
    contest.photo("plants/images/__MACOSX/oak/._0.jpeg", 9)
    table = build_catalog(data.model_copy(update={"group": "folder"}), contest.base)
    lost = {row["sample_id"]: row["status"] for row in table.to_pylist() if row["status"] != "ok"}
    assert lost == {"train/7.jpeg": "refused: no folder of a class"}


def test_photos_in_folders_of_a_class_folder_are_read(contest):
    """They were refused with their folder, as if nobody kept a folder per plant."""
    for at in range(6):
        contest.photo(f"plants/images/{('oak', 'elm')[at % 2]}/plant {at // 2}/top/{at}.jpeg", at)
    (contest.base / "plants/images/oak/again").symlink_to(contest.base / "plants/images/elm")
    data = contest.data(
        source={"layout": "class_folders", "root": "plants"},
        labels={"kind": {"from": "folder", "classes": ["elm", "oak"]}},
        group={"from": "name", "pattern": "(?P<group>plant [0-9]+)/"},
        test=None,
    )
    rows = {row["sample_id"]: row for row in build_catalog(data, contest.base).to_pylist()}
    assert rows["train/oak/plant 1/top/2.jpeg"]["label"] == 1
    assert rows["train/oak/plant 1/top/2.jpeg"]["group"] == "plant 1"
    assert rows["train/oak/again"]["status"] == "refused: a folder, photos in it are not read"
    assert len(rows) == 7


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_photos_and_keeps_its_columns(contest, kind):
    rows = pa.table({"file": [f"s/{at}.jpg" for at in range(4)], "label": ["x", "y"] * 2, "who": ["01", "02", "03", "03"],
                     "n": [1, 2, 3, 4], "share": [0.5, 1, 2, 3e-05]})  # fmt: skip
    for at in range(4):
        contest.photo(f"flat/images/s/{at}.jpg", at)
    if kind == "csv":
        (contest.base / "flat/t.csv").write_text(
            "\n".join(
                [
                    ",".join(rows.column_names),
                    *(",".join(map(str, row.values())) for row in rows.to_pylist()),
                ]
            )
        )
    else:
        pq.write_table(rows, contest.base / "flat/t.parquet")
    labels = {"class": {"from": "column", "column": "label", "classes": ["x", "y"]}}
    source = {"layout": "table", "root": "flat", "table": f"t.{kind}", "path": "file"}
    table = build_catalog(
        contest.data(source=source, labels=labels, group="who", test=None), contest.base
    )
    assert table["group"].to_pylist() == ["01", "02", "03", "03"]
    assert (table["table_label"].to_pylist(), table["label"].to_pylist()) == (
        ["x", "y", "x", "y"],
        [0, 1, 0, 1],
    )
    assert (pa.int64(), pa.float64(), pa.string()) == (
        table["n"].type,
        table["share"].type,
        table["who"].type,
    )


def test_held_out_photos_hide_their_labels_and_keep_their_group(contest):
    data = contest.data(test={"hold_out": 0.25})
    table = build_catalog(data, contest.base)
    test = [row for row in table.to_pylist() if row["sample_id"].startswith("test/")]
    groups = {row["group"] for row in test}
    assert len(groups) == 3
    assert not groups & {
        row["group"] for row in table.to_pylist() if row["sample_id"].startswith("train/")
    }
    hidden = ["id", "gender", "race", "age", "label_mask", "label_gender", "label_age", "label"]
    assert {None} == {row[name] for row in test for name in hidden}
    schema, answers = (
        Schema.of(data.labels),
        labels_of_test_photos.labels_of_test_photos(data, contest.base, table),
    )
    assert [row["sample_id"] for row in test] == answers["sample_id"].to_pylist()
    for sample, label in zip(
        answers["sample_id"].to_pylist(), answers["label"].to_pylist(), strict=True
    ):
        assert schema.class_name(label).split("/")[1] == sample.split("_")[1]
    other = contest.data(test={"hold_out": 0.25}, split={"seed": 9})
    assert table.equals(
        build_catalog(other, contest.base)
    )  # the test set does not move with split.seed


def test_inspecting_holds_no_photo_in_memory(contest):
    photo = encoded("PNG", size=(600, 400))  # 0.7 MB each: 54 of them would show
    for path in contest.base.rglob("images/**/*.*"):
        path.write_bytes(photo)
    build_catalog(contest.data(), contest.base)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_catalog(contest.data(), contest.base)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 * 1024


def test_a_row_without_its_file_is_quarantined_and_found_again(table_of_photos):
    base, data = table_of_photos
    photo = base / "set/shots/photo05.jpg"
    stored = photo.read_bytes()
    photo.unlink()
    table = build_catalog(data, base)
    statuses = dict(zip(table["sample_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert "the file is missing" == statuses.pop("train/photo05.jpg")
    assert {"ok"} == set(statuses.values())
    note = "row 7 of t.csv names photo05.jpg, which is not in shots/ (1 of 20); left out"
    assert note in reading_notes(table)
    facts = audit(table, {}, Schema.of(data.labels)).to_json()
    advice = [warning["do"] for warning in facts["warnings"] if warning["kind"] == "quarantined"]
    assert ["replace or remove them; restore a missing file, or take its row out of the table"] == (
        advice
    )
    before = fingerprint(data, base)
    photo.write_bytes(stored)
    assert before != fingerprint(data, base)
    assert {"ok"} == set(build_catalog(data, base)["status"].to_pylist())


def test_photos_that_lack_a_label_have_advice_of_their_own(table_of_photos):
    base, data = table_of_photos
    text = (base / "set/t.csv").read_text().replace("photo05.jpg,b", "photo05.jpg,")
    (base / "set/t.csv").write_text(text)
    data = data.model_copy(update={"unlabelled": "leave_out"})
    facts = audit(build_catalog(data, base), {}, Schema.of(data.labels)).to_json()
    (warning,) = [warning for warning in facts["warnings"] if warning["kind"] == "quarantined"]
    assert ("photos lack a label and are left out", 1) == (warning["what"], warning["n"])
    assert "add the label, or nothing" == warning["do"]


@pytest.fixture
def table_of_photos(tmp_path):
    """Twenty photos of two kinds in a table; the base folder and the data section."""
    lines = ["photo,kind"]
    (tmp_path / "set/shots").mkdir(parents=True)
    for number in range(20):
        name = f"photo{number:02d}.jpg"
        (tmp_path / "set/shots" / name).write_bytes(jpeg(number))
        lines.append(f"{name},{'ab'[number % 2]}")
    (tmp_path / "set/t.csv").write_text("\n".join(lines) + "\n")
    whole = {
        "source": {"layout": "table", "root": "set", "table": "t.csv", "path": "photo", "images": "shots"},
        "labels": {"kind": {"from": "column", "column": "kind", "classes": ["a", "b"]}},
        "group": "sample_id",
    }  # fmt: skip
    return tmp_path, Data.model_validate(whole)
