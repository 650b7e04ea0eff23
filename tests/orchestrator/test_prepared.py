"""The prepare stage on a real store and a real Ray cluster, with steps that need no network."""

import json
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from orchestrator import prepared, stages
from orchestrator.errors import UserError
from orchestrator.ledger import Ledger, read
from orchestrator.plan import Keys, make_plan
from orchestrator.progress import Reporter
from orchestrator.reader import read as read_spec
from orchestrator.runs import RunPaths
from orchestrator.store import Store

pytestmark = pytest.mark.ray
SPEC = """
name: {name}
data:
  source: {{layout: class_folders, root: data}}
  labels: {{kind: {{from: folder, classes: [a, b]}}}}
  group: folder
prep: {{steps: [center_crop, {{name: resize, size: {size}}}]}}
"""
N_PHOTOS = 80


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of noise in two classes."""
    root = tmp_path_factory.mktemp("photos")
    for at in range(N_PHOTOS):
        path = root / "data/images" / "ab"[at % 2] / f"{at}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (64, 48, 3), np.uint8)).save(path)
    return root


def context_of(root, store, name="one", size=32):
    """Return a context whose catalog is made, as the driver has it when it comes to prepare."""
    spec = root / f"{name}.yaml"
    spec.write_text(SPEC.format(name=name, size=size))
    experiment, store = read_spec(spec), Store(store)
    plan = make_plan(experiment, store)
    paths = RunPaths(store.root / "runs" / plan.run_id)
    paths.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(paths.root).__enter__()
    context = stages.Context(
        experiment, Keys(experiment, plan.files), store, paths, ledger, Reporter(quiet=True), 2.0, 0.0
    )
    stages.catalog(context)
    return context


def made(context):
    return [event for event in read(context.paths.events) if event["event"] == "shard"]


def test_a_flipped_bit_in_a_shard_is_found_and_that_shard_is_made_again(ray_cluster, photos, tmp_path):
    context = context_of(photos, tmp_path)
    assert "SUCCEEDED" == prepared.prepare(context).outcome
    artifact = context.prepared["base"]
    (shard,) = artifact.path.glob("shard-*.parquet")
    good = shard.read_bytes()
    broken = bytearray(good)
    broken[len(good) // 2] ^= 1
    shard.write_bytes(broken)
    assert "SUCCEEDED" == prepared.prepare(context).outcome
    assert good == (context.prepared["base"].path / shard.name).read_bytes()
    shard.write_bytes(good[:-100])
    assert "SUCCEEDED" == prepared.prepare(context).outcome
    assert "CACHED" == prepared.prepare(context).outcome
    assert 3 == len(made(context))
    assert 2 * 2 == sum(event["event"] == "damaged" for event in read(context.paths.events)), "the shard and its link"


def test_prep_json_counts_and_shows_and_warns_where_one_class_fails_more_often(
    ray_cluster, photos, tmp_path, monkeypatch
):
    context = context_of(photos, tmp_path)
    monkeypatch.setitem(prepared._FAILURES, "no face", lambda row: row["sample_id"].startswith("train/a/"))
    prepared.prepare(context)
    (one,) = json.loads(context.paths.prep.read_text())["sets"]
    assert (["base"], N_PHOTOS, N_PHOTOS // 2) == (one["variants"], one["counts"]["photos"], one["counts"]["no face"])
    assert ["ordinary", "ordinary"] == [film["kind"] for film in one["sheet"]]
    assert {3} == {len(film["frames"]) for film in one["sheet"]}
    (warning,) = one["warnings"]
    assert warning.startswith("no face: 100% of kind a (40 of 40), 0% of b (0 of 40). This preparation is biased")


def test_two_runs_at_once_prepare_each_photo_once(ray_cluster, photos, tmp_path):
    contexts = [context_of(photos, tmp_path, name) for name in ("one", "two")]
    threads = [threading.Thread(target=prepared.prepare, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [N_PHOTOS] == [event["n_prepared"] for context in contexts for event in made(context)]
    assert contexts[0].prepared["base"].key == contexts[1].prepared["base"].key


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_one_sentence_and_with_room_again_it_goes_on(ray_cluster, photos, small_disk):
    context = context_of(photos, small_disk, size=128)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_600_000))
    with pytest.raises(UserError, match=r"disk is full \(.* MB free\); free some space and submit again"):
        prepared.prepare(context)
    assert not list(small_disk.glob("*/.draft-*"))
    ballast.unlink()
    with pytest.raises(UserError, match="disk is full"):
        prepared.prepare(context)  # the shards fit now, the array of rows does not
    assert 1 == len(made(context))
