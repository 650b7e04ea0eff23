"""The report stage writes the photos to look at, and none where the spec shows no photos."""

import base64
import json

import numpy as np
import pytest

from data_prep.preparation.shards import Rows
from orchestrator.stages import report
from tests.orchestrator.stages.planted import plant_world


def write_gallery(world, monkeypatch):
    names = world.confirmed.predictions["sample_id"].to_pylist()
    photos = Rows(np.full((len(names), 8, 8, 3), 200, np.uint8), names)
    monkeypatch.setattr(report, "open_rows", lambda folder: photos)
    report._write_gallery(
        world.env, world.catalog, world.split, world.prepared, world.confirmed, world.select()
    )
    return world.env.paths.gallery


def test_the_photo_that_the_vote_reads_wrongly_is_in_the_gallery(tmp_path, monkeypatch):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    photos = json.loads(write_gallery(world, monkeypatch).read_text())["photos"]
    (wrong,) = [photo for photo in photos if photo["kind"] == "sure_wrong"]
    assert ("train/6/0.jpg", 0, 1) == (wrong["sample_id"], wrong["given"], wrong["answer"])
    assert base64.b64decode(wrong["jpeg"]).startswith(b"\xff\xd8")
    assert "disputed" in {photo["kind"] for photo in photos}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_spec_without_photos_leaves_no_gallery(tmp_path, monkeypatch, is_there):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}", "report={photos: false}")
    if is_there:
        world.env.paths.gallery.write_text("{}")
    assert not write_gallery(world, monkeypatch).exists()
