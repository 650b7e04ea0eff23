"""Photos of phones: decoded where pillow-heif is installed, named in one sentence elsewhere."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep import photo_files
from data_prep.catalog import images, photo_inspection
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.images import PhotoError, decode
from data_prep.catalog.photo_inspection import examine, may_be_read_now
from data_prep.catalog.photo_paths import HEIF_REFUSAL, PLAIN_EXTENSIONS, READS_HEIF

HEADER = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"x" * 40
FOLDER = "train/images/000000_male_x_22"
with_library = pytest.mark.skipif(not READS_HEIF, reason="pillow-heif is not installed")


def heic(size=(64, 40)):
    """A photo whose left half is red and whose right half is blue."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (200, 30, 60)
    pixels[:, size[0] // 2 :] = (20, 40, 210)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95)
    return buffer.getvalue()


@pytest.fixture
def no_library(monkeypatch):
    """A machine without pillow-heif."""
    formats = tuple(name for name in images.FORMATS if name != "HEIF")
    monkeypatch.setattr(photo_files, "EXTENSIONS", PLAIN_EXTENSIONS)
    for module in (images, photo_inspection):
        monkeypatch.setattr(module, "FORMATS", formats)
        monkeypatch.setattr(module, "READS_HEIF", False)


def statuses(contest):
    rows = build_catalog(contest.data(), contest.base).to_pylist()
    return {row["sample_id"].rpartition("/")[2]: row["status"] for row in rows}


@with_library
def test_a_heic_photo_is_decoded_like_any_other(contest):
    photo = heic()
    facts = examine(photo)
    assert (64, 40, "ok") == (facts.width, facts.height, facts.status)
    pixels = decode(photo)
    assert np.abs(pixels[20, 10].astype(int) - (200, 30, 60)).max() < 12
    assert np.abs(pixels[20, 50].astype(int) - (20, 40, 210)).max() < 12
    for name in ("mask3.HEIC", "mask4.jpg"):  # phones send both under the name .jpg
        (contest.base / FOLDER / name).write_bytes(photo)
    read = statuses(contest)
    assert ["ok", "ok"] == [read["mask3.HEIC"], read["mask4.jpg"]]


@with_library
def test_a_damaged_or_huge_heic_is_quarantined(monkeypatch):
    photo = heic()
    for damaged in (photo[:-60], photo[: len(photo) // 2], HEADER):
        assert "broken" == examine(damaged).status
        with pytest.raises(PhotoError, match=r"not an image|broken|truncated"):
            decode(damaged)
    monkeypatch.setattr(photo_inspection, "MAX_PIXELS", 2000)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    assert "too large: 64x40" == examine(photo).status
    with pytest.raises(PhotoError, match="too large: 64x40"):
        decode(photo)


def test_without_the_library_one_sentence_names_it(contest, no_library):
    (contest.base / FOLDER / "mask3.heic").write_bytes(HEADER)
    (contest.base / FOLDER / "mask4.jpg").write_bytes(HEADER)
    read = statuses(contest)
    assert f"refused: {HEIF_REFUSAL}" == read["mask3.heic"]
    assert f"not allowed: {HEIF_REFUSAL}" == read["mask4.jpg"]
    assert not may_be_read_now(read["mask3.heic"])
    with pytest.raises(PhotoError, match="not an image"):
        decode(HEADER)
    film = examine(b"\0\0\0\x1cftypisom" + b"x" * 40).status
    assert film.startswith("not allowed: AVIF or video")


@with_library
def test_photos_that_were_refused_are_read_once_the_library_is_there():
    for status in (f"refused: {HEIF_REFUSAL}", "refused: .heic, only .jpg are read"):
        assert may_be_read_now(status)
    assert not may_be_read_now("refused: .pdf, only .jpg are read")
