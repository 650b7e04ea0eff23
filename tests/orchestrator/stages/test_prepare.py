"""The prepare stage on a real store and a real Ray cluster, with steps that need no network."""

import errno
import json
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from data_prep.catalog.batch_inspection import CHUNK
from data_prep.catalog.photo_inspection import inspect_chunk
from data_prep.errors import MachineError
from data_prep.preparation.shards import write_index
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.cluster import ray_tasks
from orchestrator.planning.plan import make_plan
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage_keys import search_key
from orchestrator.spec.load import read as read_spec
from orchestrator.stages import STAGES, catalog, prepare
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.event_types import (
    ArtifactDamaged,
    RunResumed,
    RunStarted,
    ShardWritten,
    TrialStarted,
)
from orchestrator.store.ledger import Ledger, read
from orchestrator.store.run_dir import RunPaths

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
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (64, 48, 3), np.uint8)).save(
            path
        )
    return root


class Run:
    """A run whose catalog is made, as it is when the driver comes to prepare."""

    def __init__(self, root, store, name="one", size=32):
        spec = root / f"{name}.yaml"
        spec.write_text(SPEC.format(name=name, size=size))
        experiment, self.store = read_spec(spec), Store(store)
        plan = make_plan(experiment, self.store, STAGES)
        self.paths = RunPaths(self.store.root / "runs" / plan.run_id)
        self.paths.root.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.paths.root).__enter__()
        self.ledger.append(RunStarted())
        console = Reporter(quiet=True)
        self.env = Env(
            experiment, plan.files, self.store, self.paths, self.ledger, console, 2.0, 0.0
        )
        self.catalog = catalog.run(self.env)

    def prepare(self):
        self.prepared = prepare.run(self.env, self.catalog)
        return self.prepared.outcome

    @property
    def shards(self):
        return self.prepared.shards["base"]

    @property
    def rows(self):
        return self.prepared.rows["base"]


def made(context):
    return [event for event in read(context.paths.events) if isinstance(event, ShardWritten)]


def test_a_flipped_bit_in_a_shard_is_found_and_that_shard_is_made_again(
    ray_cluster, photos, tmp_path
):
    context = Run(photos, tmp_path)
    assert "SUCCEEDED" == context.prepare()
    artifact = context.shards
    (shard,) = artifact.path.glob("shard-*.parquet")
    good = shard.read_bytes()
    broken = bytearray(good)
    broken[len(good) // 2] ^= 1
    shard.write_bytes(broken)
    assert "SUCCEEDED" == context.prepare()
    assert good == (context.shards.path / shard.name).read_bytes()
    shard.write_bytes(good[:-100])
    assert "SUCCEEDED" == context.prepare()
    assert "CACHED" == context.prepare()
    assert 3 == len(made(context))
    assert 2 * 2 == sum(
        isinstance(event, ArtifactDamaged) for event in read(context.paths.events)
    ), "the shard and its link"


def test_a_flipped_bit_in_the_rows_or_in_kept_features_is_never_trained_on(
    ray_cluster, photos, tmp_path
):
    context = Run(photos, tmp_path)
    context.prepare()
    rows = context.rows.path / "rows.npy"
    with context.store.draft(
        "features", "f", params={}, inputs={"photos": context.shards.key}
    ) as draft:
        np.save(draft.path / "features.npy", np.ones(1000, np.float32))
    good = rows.read_bytes()
    for path in (rows, context.store.root / "features/f/features.npy"):
        broken = bytearray(path.read_bytes())
        broken[-100] ^= 1
        path.write_bytes(broken)
    assert "CACHED" == context.prepare()
    assert good == rows.read_bytes()
    assert context.store.find("features", "f") is None


def test_prep_json_counts_and_shows_and_warns_where_one_class_fails_more_often(
    ray_cluster, photos, tmp_path, monkeypatch
):
    context = Run(photos, tmp_path)
    monkeypatch.setitem(
        prepare._FAILURES, "no face", lambda crop: crop.sample_id.startswith("train/a/")
    )
    context.prepare()
    (one,) = json.loads(context.paths.prep.read_text())["sets"]
    assert (["base"], N_PHOTOS, N_PHOTOS // 2) == (
        one["variants"],
        one["counts"]["photos"],
        one["counts"]["no face"],
    )
    assert ["ordinary", "ordinary"] == [film["kind"] for film in one["sheet"]]
    assert {3} == {len(film["frames"]) for film in one["sheet"]}
    (warning,) = one["warnings"]
    assert warning.startswith(
        "no face: 100% of kind a (40 of 40), 0% of b (0 of 40). This preparation is biased"
    )


def test_two_runs_at_once_prepare_each_photo_once(ray_cluster, photos, tmp_path):
    contexts = [Run(photos, tmp_path, name) for name in ("one", "two")]
    threads = [threading.Thread(target=context.prepare) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [N_PHOTOS] == [event.n_prepared for context in contexts for event in made(context)]
    assert contexts[0].shards.key == contexts[1].shards.key


def test_a_data_folder_that_goes_away_fails_the_stage_and_costs_no_photo(
    ray_cluster, photos, tmp_path
):
    root = shutil.copytree(photos, tmp_path / "copy")
    context = Run(root, tmp_path / "store")
    images = root / "data/images"
    images.rename(tmp_path / "unmounted")
    images.mkdir()  # a mount point without its disk
    with pytest.raises(
        MachineError,
        match=r"^\S+/data/images: a disk that answers was required, found: the folder is",
    ):
        context.prepare()
    images.rmdir()
    with pytest.raises(MachineError, match="submit again, what is finished is kept"):
        context.prepare()
    (tmp_path / "unmounted").rename(images)
    context.prepare()
    assert {} == context.shards.result["quarantined"]


def test_what_was_lost_by_chance_is_tried_again_by_a_later_run_under_another_key(
    ray_cluster, photos, tmp_path
):
    root = shutil.copytree(photos, tmp_path / "copy")
    first, photo = Run(root, tmp_path / "store"), root / "data/images/a/0.jpg"
    photo.rename(tmp_path / "away.jpg")
    assert "SUCCEEDED" == first.prepare()
    assert ["train/a/0.jpg"] == list(first.shards.result["quarantined"])
    assert "CACHED" == first.prepare()
    (tmp_path / "away.jpg").rename(photo)
    assert "CACHED" == first.prepare(), "a run keeps its photos"
    later = Run(root, tmp_path / "store", "later")
    assert "SUCCEEDED" == later.prepare()
    assert {} == later.shards.result["quarantined"]
    assert [(1, N_PHOTOS - 1)] == [(event.n_prepared, event.n_copied) for event in made(later)]
    assert first.shards.key != later.shards.key
    assert first.rows.key != later.rows.key
    keys = {
        search_key(run.env.experiment, run.catalog.content, run.prepared.keys)
        for run in (first, later)
    }
    assert 2 == len(keys)


def map_here(function, items, *, name, on_bucket):
    assert ("catalog", False) == (name, on_bucket)
    return map(function, items)


def test_more_time_is_a_reason_to_try_again_within_a_run():
    def settled(timeout_s, **result):
        facts = {"result": {"timeout_s": 60, **result}, "finished": 2.0}
        shard = Artifact("shard", "k", None, facts)
        return prepare._is_settled(shard, photos_since=1.0, timeout_s=timeout_s)

    lost = {"by_chance": ["train/a/0.jpg"]}
    assert [True, True, False] == [settled(one, **lost) for one in (30, 60, 61)]
    assert settled(61, by_chance=[])


def test_photos_that_were_forbidden_are_looked_at_again_by_a_later_run(
    photos, tmp_path, monkeypatch
):
    """Rights are no part of the fingerprint. The test's user may read everything, so the open is made to fail."""
    monkeypatch.setattr(ray_tasks, "ray_map", map_here)
    real = open

    def forbid(path, *settings, **more):
        if str(path).endswith("a/0.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *settings, **more)

    monkeypatch.setattr("builtins.open", forbid)
    quarantined = Run(photos, tmp_path).catalog.quarantined
    assert {"train/a/0.jpg": "unreadable: Permission denied"} == quarantined
    monkeypatch.setattr("builtins.open", real)
    assert {} == Run(photos, tmp_path, "later").catalog.quarantined


def test_a_run_looks_at_its_photos_again_when_it_is_started_again_until_trials_rest_on_them(
    photos, tmp_path
):
    context = Run(photos, tmp_path)
    first = context.env.photos_since
    context.ledger.append(RunResumed())
    assert context.env.photos_since > first
    context.ledger.append(
        TrialStarted(trial_id="s-base-0000", phase="search", variant="base", setting="s", key="k")
    )
    assert first == context.env.photos_since


def test_two_runs_at_once_read_each_photo_once(photos, tmp_path, monkeypatch):
    read_chunks = []

    def slow(function, items, *, name, on_bucket):
        for item in items:
            read_chunks.append(function)
            yield function(item)
            time.sleep(0.2)

    monkeypatch.setattr(ray_tasks, "ray_map", slow)
    found = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(Run(photos, tmp_path, name)))
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2 == len(found), "neither failed"
    assert -(-N_PHOTOS // CHUNK) == read_chunks.count(inspect_chunk)


def test_a_torn_older_preparation_costs_nothing_but_its_help(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tasks, "ray_map", map_here)
    context, steps = Run(photos, tmp_path), {"size": 8}
    for key in ("a", "b", "c"):
        with context.store.draft("prepare", key, params={"steps": steps}, inputs={}) as draft:
            if key != "c":
                write_index(draft.path, n_shards=1, steps=steps, size=8)
    assert {"a", "b"} == {donor.folder.name for donor in prepare._donors(context.env, steps)}


def test_a_run_stops_where_more_photos_are_lost_than_the_spec_allows(ray_cluster, photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "copy")
    context = Run(root, tmp_path / "store")
    for path in (root / "data/images/a").iterdir():
        path.unlink()
    (root / "data/images/b/1.jpg").unlink()
    with pytest.raises(
        UserError,
        match=r"prep\.max_lost: at most 50% of the photos may be lost, 51% are \(41 of 80: unreadable: No",
    ):
        context.prepare()


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_one_sentence_and_with_room_again_it_goes_on(
    ray_cluster, photos, small_disk
):
    context = Run(photos, small_disk, size=128)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_600_000))
    with pytest.raises(
        UserError, match=r"disk is full \(.* MB free\); free some space and submit again"
    ):
        context.prepare()
    assert not list(small_disk.glob("*/.draft-*"))
    ballast.unlink()
    with pytest.raises(UserError, match="disk is full"):
        context.prepare()  # the shards fit now, the array of rows does not
    assert 1 == len(made(context))
