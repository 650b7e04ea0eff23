"""Near-duplicates: what is planted is found, and nothing else; the search does not grow with the square."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_prep.audit.examination import audit, leak, people
from data_prep.catalog import batch_inspection, near_sets
from data_prep.catalog.builder import build_catalog, reading_notes
from data_prep.catalog.label_schema import Schema
from data_prep.catalog.near_duplicates import (
    candidates,
    compare_chunk,
    perceptual_hash,
    same_picture,
    sets_of,
)
from data_prep.catalog.photo_inspection import inspect_chunk
from data_prep.config import Data, Split
from data_prep.errors import DataError, MachineError
from data_prep.split import assign
from tests.data_prep.audit.planted import LABELS, cropped, detect, jpeg, plant


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> np.ndarray:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def test_a_mirrored_photo_has_the_mirrored_hash_and_a_flat_one_has_none():
    photo = scene(1)
    pairs, bits = candidates(
        [perceptual_hash(photo), perceptual_hash(np.ascontiguousarray(photo[:, ::-1]))]
    )
    assert (pairs.tolist(), int(bits[0])) == ([[0, 1]], 0)
    assert perceptual_hash(np.full((40, 30, 3), 77, dtype=np.uint8)) is None
    assert candidates([None, None])[0].shape == (0, 2)


def test_the_pixels_decide():
    photo = scene(2)
    copy = np.asarray(
        Image.open(io.BytesIO(jpeg(cropped(Image.fromarray(photo)), 50))).convert("RGB")
    )
    assert same_picture(photo, copy)
    assert same_picture(photo, np.ascontiguousarray(copy[:, ::-1]))
    assert not any(same_picture(photo, scene(other)) for other in range(3, 13))


def product(seed: int) -> np.ndarray:
    """A flat shape before a white background, as in a studio shot: its color and size are its own."""
    rng = np.random.default_rng(seed)
    photo = Image.new("RGB", (160, 160), (250, 250, 250))
    red, green, blue = rng.integers(30, 230, 3).tolist()
    wide, high = rng.integers(45, 56), rng.integers(60, 71)
    box = [80 - wide // 2, 80 - high // 2, 80 + wide // 2, 80 + high // 2]
    draw = ImageDraw.Draw(photo)
    (draw.ellipse if seed % 2 else draw.rectangle)(box, fill=(red, green, blue))
    draw.rectangle([72, box[1] - 15, 88, box[1]], fill=(red // 2, green // 2, blue // 2))
    return np.asarray(photo)


def test_products_before_a_plain_background_differ_by_their_colors():
    """78 of 84 pairs of drawn products were one picture: the white around them is most of both."""
    products = [product(seed) for seed in range(8)]
    pairs = list(itertools.combinations(products, 2))
    assert not any(same_picture(first, second) for first, second in pairs)
    for photo in products:
        copy = np.asarray(Image.open(io.BytesIO(jpeg(cropped(Image.fromarray(photo)), 50))))
        assert same_picture(photo, copy)
    other_ground = np.where(products[0] == 250, np.uint8(190), products[0])
    assert not same_picture(products[0], other_ground)


def test_masks_of_two_colors_on_one_portrait_are_still_one_picture():
    photo = Image.new("RGB", (96, 128), (240, 240, 240))
    ImageDraw.Draw(photo).ellipse([18, 10, 78, 120], fill=(200, 150, 120))
    masked = []
    for color in ((110, 150, 200), (140, 170, 140)):
        copy = photo.copy()
        ImageDraw.Draw(copy).rectangle([34, 70, 62, 92], fill=color)
        masked.append(np.asarray(copy))
    assert same_picture(*masked)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20))
def test_sets_are_the_connected_parts(pairs):
    found = list(sets_of(pairs))
    where = {member: at for at, members in enumerate(found) for member in members}
    assert all(where[a] == where[b] for a, b in pairs)
    assert sum(map(len, found)) == len(where)
    n_joins = len({frozenset(pair) for pair in pairs if pair[0] != pair[1]})
    assert len(where) - len(found) <= n_joins  # no more was joined than pairs can join


def test_the_search_compares_a_bounded_number_of_neighbours(monkeypatch):
    """A thousand equal hashes and a thousand random ones: an all-pairs search would compare two million."""
    from data_prep.catalog import near_duplicates

    compared = []
    real = np.bitwise_count
    monkeypatch.setattr(
        near_duplicates.np,
        "bitwise_count",
        lambda words: compared.append(len(words)) or real(words),
    )
    raw = np.random.default_rng(0).integers(0, 256, (1001, 64), dtype=np.uint8)
    hashes = [raw[0].tobytes().hex()] * 1000 + [row.tobytes().hex() for row in raw[1:]]
    pairs, bits = candidates(hashes)
    assert sum(compared) <= 24 * 12 * 3 * len(hashes)
    assert {
        member
        for members in sets_of([tuple(p) for p in pairs[bits == 0].tolist()])
        for member in members
    } == set(range(1000))


@pytest.fixture(scope="module")
def planted(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("planted") / "set"
    return out, plant(drawn / "train", out, n=9)


def test_planted_problems_are_found_and_nothing_else(planted):
    for detector, (recall, precision) in detect(*planted).items():
        least = 0.9 if detector in {"re-encoded", "cropped by 3 %", "mirrored"} else 1.0
        assert (recall >= least, precision >= 0.95) == (True, True), (detector, recall, precision)


def data_of(out, **changes) -> Data:
    source = {
        "source": {"layout": "profile_folders", "root": out.name},
        "labels": LABELS,
        "group": "id",
    }
    return Data.model_validate({**source, "split": {"val": 0.3}, **changes})


def test_joined_groups_are_never_split(planted):
    out, truth = planted
    found = {}
    for joined in (False, True):
        data = data_of(out, join_duplicates=joined)
        table, schema = build_catalog(data, out.parent), Schema.of(data.labels)
        usable = table.filter(np.array(table["status"].to_pylist()) == "ok")
        folds = assign(table, schema, Split(val=0.3), [], 3)
        found[joined] = (people(usable), leak(folds), leak(folds, people(usable)))
        facts = audit(table, {"base": folds}, schema)
        assert facts.leak["base"] == found[joined][2]
    assert found[False][0] == found[True][0]
    assert found[False][1] == 0 < found[False][2]  # groups look disjoint, and pictures leak
    assert found[True][1:] == (0, 0)
    own = table["own_group"].to_pylist()
    name = dict(zip(own, table["group"].to_pylist(), strict=True))
    assert all(name[a] == name[b] for a, b in map(sorted, truth["exact"]))
    assert all("+" not in group or group in name.values() for group in name.values())


def test_photos_that_were_looked_at_are_no_copies(planted):
    out, truth = planted
    table = build_catalog(data_of(out), out.parent)
    by_hash = {row["sample_id"]: row["sha256"] for row in table.to_pylist()}
    sets: dict[str, list[str]] = {}
    for row in table.to_pylist():
        sets.setdefault(row["near"], []).append(row["sample_id"])
    del sets[None]
    pairs = [names for names in sets.values() if len(names) == 2]
    pair = next(names for names in pairs if by_hash[names[0]] != by_hash[names[1]])
    cleared = build_catalog(data_of(out, not_copies=[pair]), out.parent)
    assert cleared["near"].null_count == table["near"].null_count + 2
    assert reading_notes(cleared) == ["1 pairs that look alike are no copies, by data.not_copies"]
    every = build_catalog(data_of(out, not_copies="all", join_duplicates=True), out.parent)
    copies: dict[str, set[str]] = {}
    for row in every.to_pylist():
        if row["near"]:
            copies.setdefault(row["near"], set()).add(row["sha256"])
    assert {len(hashes) for hashes in copies.values()} == {1}  # equal files alone
    owner = dict(zip(every["own_group"].to_pylist(), every["group"].to_pylist(), strict=True))
    assert all(owner[a] == owner[b] for a, b in map(sorted, truth["exact"]))
    with pytest.raises(DataError, match=r"data\.not_copies.*train/none\.jpg"):
        build_catalog(data_of(out, not_copies=[["train/none.jpg", pair[0]]]), out.parent)


def test_a_joined_group_is_never_split_by_a_hold_out_test_set(planted):
    out, _ = planted
    data = data_of(out, join_duplicates=True, test={"hold_out": 0.3})
    rows = [row for row in build_catalog(data, out.parent).to_pylist() if row["status"] == "ok"]
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["sample_id"].partition("/")[0])
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "test"}
    near = {row["near"] for row in rows if row["near"]}
    assert near
    assert all(len({row["group"] for row in rows if row["near"] == one}) == 1 for one in near)


def test_pairs_that_were_too_many_to_compare_are_told(planted, monkeypatch, tmp_path):
    out, _ = planted
    found = {}
    for most in (near_sets.MAX_COMPARED, 3):
        monkeypatch.setattr(near_sets, "MAX_COMPARED", most)
        table = build_catalog(data_of(out), out.parent)
        pq.write_table(table, tmp_path / "catalog.parquet")  # the count travels with the file
        found[most] = audit(
            pq.read_table(tmp_path / "catalog.parquet"), {}, Schema.of(data_of(out).labels)
        ).to_json()
    whole, cut = found.values()
    told = [one for one in cut["warnings"] if one["kind"] == "left_out"]
    assert (0, []) == (
        whole["n_near_left_out"],
        [one for one in whole["warnings"] if one["kind"] == "left_out"],
    )
    assert cut["n_near_left_out"] == told[0]["n"] > 0
    assert (
        cut["near_duplicates"]["across_groups"]["n"]
        < whole["near_duplicates"]["across_groups"]["n"]
    )


def test_what_is_found_does_not_depend_on_the_order_of_the_table(planted):
    out, _ = planted
    tables = []
    for reverse in (False, True):
        lines = (out / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (out / "train.csv").write_text(
            "".join([lines[0], *sorted(lines[1:], reverse=reverse)]), encoding="utf-8"
        )
        tables.append(build_catalog(data_of(out, join_duplicates=True), out.parent))
    assert tables[0].equals(tables[1])


def test_a_catalog_goes_on_where_it_was_interrupted(contest, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_inspection, "CHUNK", 10)
    work, read = tmp_path / "work", []
    work.mkdir()

    def dying(function, chunks):
        for number, chunk in enumerate(chunks):
            if function is inspect_chunk:
                if number == 3:
                    raise KeyboardInterrupt
                read.append(len(chunk))
            yield function(chunk)

    def counting(function, chunks):
        for chunk in chunks:
            read.append(len(chunk) if function is inspect_chunk else 0)
            yield function(chunk)

    with pytest.raises(KeyboardInterrupt):
        build_catalog(contest.data(), contest.base, map_chunks=dying, work=work)
    table = build_catalog(contest.data(), contest.base, map_chunks=counting, work=work)
    assert table.equals(build_catalog(contest.data(), contest.base))
    assert (read[:3], sum(read)) == ([10, 10, 10], 54)


def test_photos_that_cannot_be_read_are_not_the_same_and_a_folder_that_went_is_an_error(tmp_path):
    for name in "ab":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    pair, gone = (
        (f"{tmp_path}/a.png", f"{tmp_path}/b.png"),
        (f"{tmp_path}/a.png", f"{tmp_path}/gone.png"),
    )
    assert [True, False] == compare_chunk([pair, gone])
    (tmp_path / "a.png").rename(tmp_path.with_name("elsewhere.png"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(
        MachineError, match="a disk that answers was required, found: the folder is empty now"
    ):
        compare_chunk([pair])
