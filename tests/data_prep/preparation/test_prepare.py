"""Photos, steps, shards, weights and the pool."""

import io
import json
import os
import resource
import signal
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data_prep.catalog.images import PhotoError, decode, encode
from data_prep.prep_config import Prep
from data_prep.preparation.photo_steps import (
    Preparation,
    Prepared,
    around,
    center,
    decode_near,
    prepare_row,
)
from data_prep.preparation.shard_builder import Assembly, ShardTask
from data_prep.preparation.shards import (
    ShardError,
    Shards,
    memory_map,
    n_shards_for,
    read_shards,
    shard_name,
    shard_of,
    write_index,
    write_shard,
)
from data_prep.preparation.step_identity import steps_identity


def photo(color=(200, 30, 40), size=(20, 30), kind="JPEG", **settings):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **settings)
    return buffer.getvalue()


def row(name, color=(1, 2, 3)):
    return {
        "sample_id": name,
        "sha256": name,
        "image": encode(np.full((8, 8, 3), color, np.uint8)),
        "face_box": None,
        "face_confidence": None,
        "n_faces": None,
        "mask_area": None,
        "outcome": "ok",
        "steps": ["ok"],
    }


def test_a_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    assert (20, 30, 3) == decode(photo(size=(20, 30), exif=exif)).shape


@pytest.mark.parametrize(
    ("mode", "color", "wanted"),
    [
        ("RGBA", (255, 0, 0, 0), (9, 9, 9)),
        ("L", 77, (77, 77, 77)),
        ("I;16", 0x4D00, (77, 77, 77)),
        ("P", 0, (0, 0, 0)),
        ("LA", (50, 255), (50, 50, 50)),
    ],
)
def test_every_mode_becomes_rgb(mode, color, wanted):
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), color).save(buffer, "PNG")
    assert wanted == pytest.approx(
        tuple(decode(buffer.getvalue(), fill=(9, 9, 9))[0, 0].tolist()), abs=1
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"text", "not an image"),
        (photo(size=(300, 200))[:-600], "truncated|broken"),
        (b"%PDF-1.7", "not an image"),
    ],
)
def test_what_is_no_photo_says_why(data, reason):
    with pytest.raises(PhotoError, match=reason):
        decode(data)


def test_crops_stay_inside_the_photo_and_are_square():
    pixels = np.arange(100 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 60, 3)
    for box in ((10, 10, 30, 40), (-20, -20, 10, 5), (50, 90, 80, 140)):
        crop = around(pixels, box, 0.25)
        assert crop.shape[0] == crop.shape[1] <= 60
    assert (60, 60) == center(pixels, None).shape[:2]


def test_a_preparation_without_models_ends_at_its_size_and_is_the_same_every_time():
    prep = Prep.model_validate_json('{"steps": ["keep_aspect", {"name": "resize", "size": 16}]}')
    first, second = (Preparation(prep)(photo()) for _ in range(2))
    assert first == second
    assert ((16, 16, 3), "ok") == (decode(first.image).shape, first.outcome)


def test_an_identity_changes_with_a_step_and_its_weights(monkeypatch):
    def of(text):
        return json.dumps(steps_identity(Prep.model_validate_json(text)))

    a = of('{"steps": ["remove_background", {"name": "resize", "size": 16}]}')
    assert a != of('{"steps": ["remove_background", {"name": "resize", "size": 24}]}')
    assert "309c8469" in a


def test_shards_split_in_halves_as_data_grows():
    names = [f"train/{i}" for i in range(400)]
    assert (1, 2, 4) == tuple(map(n_shards_for, (256, 257, 1000)))
    assert all(shard_of(name, 2) == shard_of(name, 4) % 2 for name in names)


def test_a_folder_of_shards_becomes_one_array_and_a_flipped_bit_is_found(tmp_path):
    rows = [row(f"s{i}", (i, i, i)) for i in range(5)]
    write_shard(tmp_path / shard_name(0), rows[:3])
    write_shard(tmp_path / shard_name(1), reversed(rows[3:]))
    write_index(tmp_path, n_shards=2, size=8, steps=[])
    array = memory_map(tmp_path, tmp_path / "rows")
    assert [f"s{i}" for i in range(5)] == array.sample_ids
    assert [0, 1, 2, 3, 4] == pytest.approx(array.images[:, 4, 4, 0].tolist(), abs=1)
    data = bytearray((tmp_path / shard_name(1)).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / shard_name(1)).write_bytes(data)
    with pytest.raises(
        ShardError, match=r"shard-00001.parquet: sha256 is .* delete .* and submit again"
    ):
        list(read_shards(tmp_path))
    (tmp_path / shard_name(1)).unlink()
    with pytest.raises(ShardError, match="found no such file"):
        list(read_shards(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ShardError, match="format version 2 was required, found 99"):
        list(read_shards(tmp_path))


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, [row("x"), row("y")])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Stub:
    """Prepares a photo into one pixel of its color: enough to see which photo became which row.

    The pool's promises (every photo once, copies, quarantine, dead workers) do not depend on what a preparation does.
    """

    def __call__(self, data, *, always, watch):
        color = decode(data)[0, 0]
        if color[0] > 240:
            raise ValueError("a step fails")
        if color[1] > 240:
            os.kill(os.getpid(), signal.SIGKILL)
        watch(np.full((4, 4, 3), color, np.uint8))
        return Prepared(encode(np.full((4, 4, 3), color, np.uint8)), None, None, None, None, ["ok"])


def make_stub(prep, threads):
    return Stub()


@pytest.fixture
def photos(tmp_path):
    """Twelve photos whose gray is ten times their number."""
    import hashlib

    rows = []
    for number in range(12):
        data = photo((number * 10,) * 3, kind="PNG")
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        rows.append((f"train/{number:02}", str(path), hashlib.sha256(data).hexdigest()))
    return rows


def assemble(task, folder):
    """Make a shard without a pool."""
    assembly = Assembly(task)
    for photo_row in assembly.left:
        shown = photo_row[0] in assembly.shown
        assembly.add(prepare_row(photo_row, Stub(), show=shown))
    assert assembly.is_complete
    return assembly.write(folder)


def test_unchanged_photos_are_copied_and_a_changed_or_failing_one_is_quarantined(photos, tmp_path):
    import hashlib
    from pathlib import Path

    (tmp_path / "first").mkdir()
    first = assemble(ShardTask(0, photos), tmp_path / "first")
    bad = photo((250, 0, 0), kind="PNG")
    (tmp_path / "bad.png").write_bytes(bad)
    Path(photos[3][1]).write_bytes(photo((7, 7, 7), kind="PNG"))
    more = [*photos, ("train/bad", str(tmp_path / "bad.png"), hashlib.sha256(bad).hexdigest())]
    second = assemble(ShardTask(0, more, [first.path]), tmp_path)
    assert (12, 0, 1, 12) == (first.n_prepared, first.n_copied, second.n_prepared, second.n_copied)
    assert [("train/bad", "ValueError: a step fails")] == second.quarantined
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sheet.read_text() == second.sheet.read_text() != "[]"
    third = assemble(ShardTask(0, photos), tmp_path)
    assert [("train/03", "changed since the catalog was made")] == third.quarantined


def test_a_photo_that_is_too_large_is_not_read_whole(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as handle:
        handle.truncate(2**30)  # sparse: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = prepare_row(("test/huge.jpg", str(tmp_path / "huge.jpg"), ""), Preparation(Prep()))
    assert outcome.reason == "too large: more than 67108864 bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_a_row_is_copied_to_its_own_side_only_since_a_policy_drops_training_photos_alone(tmp_path):
    donor = tmp_path / shard_name(0)
    write_shard(donor, [row("test/a.jpg") | {"sha256": "S", "outcome": "no face: center"}])
    rows = [("test/b.jpg", "/nowhere", "S"), ("train/c.jpg", "/nowhere", "S")]
    assembly = Assembly(ShardTask(0, rows, [donor]))
    assert (1, rows[1:]) == (assembly.n_copied, assembly.left)


def test_a_second_answer_for_a_photo_is_dropped(photos, tmp_path):
    assembly = Assembly(ShardTask(0, photos[:2]))
    outcome = prepare_row(photos[0], Stub())
    assert (True, False) == (assembly.add(outcome), assembly.add(outcome))
    assert not assembly.is_complete


def test_photos_are_read_in_any_order_and_a_shard_is_checked_when_it_is_first_touched(tmp_path):
    rows = [row(f"s{i}", (i, i, i)) for i in range(6)]
    write_shard(tmp_path / shard_name(0), rows[:4])
    write_shard(tmp_path / shard_name(1), rows[4:])
    write_index(tmp_path, n_shards=2, size=8, steps=[])
    whole = Shards(tmp_path, cache_bytes=1)  # no room for a second shard
    assert [shard_row["image"] for shard_row in rows] == list(whole)
    assert (rows[5]["image"], rows[0]["image"]) == (whole[-1], whole[0])
    assert [f"s{i}" for i in range(6)] == whole.sample_ids
    data = bytearray((tmp_path / shard_name(1)).read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / shard_name(1)).write_bytes(data)
    late = Shards(tmp_path)
    assert rows[3]["image"] == late[3]
    with pytest.raises(ShardError, match=r"shard-00001.parquet: sha256 is"):
        late[4]


@pytest.mark.parametrize(
    "lie", [{"n_rows": 3_000_000_000}, {"n_rows": 3_000_000_000.0}, {"size_bytes": 10**12}]
)
def test_no_room_is_made_for_more_rows_than_a_shard_can_have(tmp_path, lie):
    write_shard(tmp_path / shard_name(0), [row("s0", (0, 0, 0))])
    write_index(tmp_path, n_shards=1, size=8, steps=[])
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0] |= lie
    (tmp_path / "index.json").write_text(json.dumps(index))
    for read in (Shards, lambda folder: memory_map(folder, folder / "rows")):
        with pytest.raises(
            ShardError, match=r"shard-00000.parquet: .* were required by index.json"
        ):
            read(tmp_path)
    assert not (tmp_path / "rows").exists()


def test_a_transparent_sample_keeps_its_alpha_and_is_decoded_over_black():
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:4, :, 3] = 0
    image = encode(pixels)
    assert np.array_equal(pixels[4:], np.asarray(Image.open(io.BytesIO(image)))[4:])
    assert [0, 0, 0] == decode(image)[0, 0].tolist()


@pytest.mark.parametrize(
    ("steps", "near"),
    [
        ('["keep_aspect", {"name": "resize", "size": 300}]', 600),
        ('["crop_face", {"name": "resize", "size": 128}]', 1024),
        ('[{"name": "center_crop", "size": 64}, {"name": "resize", "size": 32}]', None),
    ],
)
def test_a_large_jpeg_is_decoded_as_small_as_the_steps_allow(steps, near):
    assert near == decode_near(Prep.model_validate_json(f'{{"steps": {steps}}}'))
    assert (1500, 1000, 3) == decode(photo(size=(2000, 3000)), near=700).shape
    assert (1400, 1000, 3) == decode(photo(size=(1000, 1400)), near=700).shape


@pytest.mark.models
def test_cuda_that_was_asked_for_and_is_not_there_is_told_with_its_reason():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    prep = Prep.model_validate_json(
        '{"steps": ["remove_background", "crop_face", {"name": "resize", "size": 64}]}'
    )
    background, face = Preparation(prep, gpu=True).warnings
    assert "remove_background asked for CUDA and runs on the CPU: this onnxruntime" in background
    assert "crop_face asked for CUDA and runs on the CPU: torch" in face


@pytest.mark.models
def test_every_opencv_and_rembg_name_that_is_here_prepares_and_a_transparent_background_stays(
    drawn,
):
    steps = (
        '{"steps": [{"name": "remove_background", "fill": "transparent"}, {"name": "crop_face", "detector": "opencv"}, '
        '{"name": "resize", "size": 64}]}'
    )
    prepared = Preparation(Prep.model_validate_json(steps))(
        next(drawn.glob("train/images/*/normal.jpg")).read_bytes()
    )
    pixels = np.asarray(Image.open(io.BytesIO(prepared.image)))
    assert (64, 64, 4) == pixels.shape
    assert pixels[..., 3].min() < 10
    assert pixels[..., 3].max() > 245


@pytest.mark.models
def test_rembg_and_deepface_prepare_a_drawn_portrait(drawn):
    steps = '{"steps": ["remove_background", {"name": "crop_face", "margin": 0.3}, {"name": "resize", "size": 64}]}'
    prepared = Preparation(Prep.model_validate_json(steps))(
        next(drawn.glob("train/images/*/normal.jpg")).read_bytes()
    )
    assert ("ok", (64, 64, 3)) == (prepared.outcome, decode(prepared.image).shape)
    assert prepared.face_confidence > 0.8
    assert 0.3 < prepared.mask_area < 0.8


@pytest.mark.parametrize("size", [(16_000, 1), (1, 30_000), (12_000, 300)])
def test_a_long_strip_costs_little_memory(size):
    prep = Prep.model_validate({"steps": ["keep_aspect", {"name": "resize", "size": 64}]})
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(buffer, "PNG")
    tracemalloc.start()
    prepared = Preparation(prep)(buffer.getvalue())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (64, 64, 3) == decode(prepared.image).shape
    assert peak_bytes < 120e6
