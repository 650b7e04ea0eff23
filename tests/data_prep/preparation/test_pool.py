"""The pool on a real Ray cluster: dead workers, hanging and poisonous photos, and that no photo is lost or prepared twice."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.catalog.images import decode, encode
from data_prep.prep_config import Prep
from data_prep.preparation import pool
from data_prep.preparation.photo_steps import Prepared
from data_prep.preparation.pool import PoolError, ShardTask, prepare_shards
from data_prep.preparation.shards import read_shard
from data_prep.weights.registry import WeightsError

pytestmark = pytest.mark.ray
PREP = Prep.model_validate_json('{"steps": [{"name": "resize", "size": 8}]}')
POISON = (0, 250, 0)
HANG = (0, 0, 250)
FAIL = (250, 0, 0)


class Stub:
    """Prepares a photo into one pixel of its colour, or does what the colour says.

    The pool's promises (every photo once, quarantine, dead workers) do not depend on what a preparation does.
    """

    warnings = ("models run on the CPU",)

    def __call__(self, data, *, always, watch):
        color = tuple(map(int, decode(data)[0, 0]))
        time.sleep(0.01)
        if color == FAIL:
            raise ValueError("a step fails")
        if color == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        if color == HANG:
            time.sleep(3600)
        return Prepared(encode(np.full((4, 4, 3), color, np.uint8)), None, None, None, None, ["ok"])


def make_stub(prep, threads):
    return Stub()


def no_weights(prep, threads):
    raise WeightsError("weights x: put the file there")


def crash(prep, threads):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class Node:
    """A second node of the cluster, two processors more, until it is killed."""

    def __init__(self, address):
        command = [
            Path(sys.executable).with_name("ray"),
            "start",
            f"--address={address}",
            "--num-cpus=2",
            "--block",
        ]
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [*command, "--disable-usage-stats"], env=environment, **quiet
        )

    def kill(self):
        process = psutil.Process(self.process.pid)
        for member in [process, *process.children(recursive=True)]:
            member.kill()
        self.process.wait()


def write(folder, name, color):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(buffer, "PNG")
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    return (
        f"train/{name}",
        str(folder / f"{name}.png"),
        hashlib.sha256(buffer.getvalue()).hexdigest(),
    )


@pytest.fixture
def tasks(tmp_path):
    """Ninety photos, each of its own colour, in three shards."""
    rows = [write(tmp_path, f"{i:03}", (i, 10, 10)) for i in range(90)]
    return [ShardTask(number, rows[number::3]) for number in range(3)]


def run(tasks, folder, **settings):
    folder.mkdir()
    return list(prepare_shards(tasks, PREP, folder, **{"cpus": 1, "make": make_stub} | settings))


def quarantined(results):
    return [photo for result in results for photo in result.quarantined]


def contents(results):
    return {result.path.name: result.path.read_bytes() for result in results}


def test_killed_workers_change_no_byte(cluster, tasks, tmp_path):
    calm = run(tasks, tmp_path / "calm")
    counts = []

    def killer(n_done):
        counts.append(n_done)
        if n_done in {20, 45, 70}:
            os.kill(next(iter(workers())), signal.SIGKILL)

    wild = run(tasks, tmp_path / "wild", progress=killer)
    assert contents(calm) == contents(wild)
    assert (90, []) == (counts[-1], quarantined(wild))


def workers():
    # never those of another cluster on this machine
    processes = psutil.Process().children(recursive=True)
    return [process.pid for process in processes if is_worker(process)]


def is_worker(process):
    try:
        return "ray::PrepWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return False


def test_photos_that_kill_hang_or_fail_are_quarantined_and_every_other_one_is_prepared(
    cluster, tasks, tmp_path
):
    bad = [
        write(tmp_path, name, color)
        for name, color in (("kills", POISON), ("hangs", HANG), ("fails", FAIL))
    ]
    tasks[1] = ShardTask(1, [*tasks[1].rows[:10], *bad, *tasks[1].rows[10:]])
    said = []
    results = run(tasks, tmp_path / "out", timeout_s=1.5, say=said.append)
    reasons = dict(quarantined(results))
    assert {
        "train/kills": "crashed the worker 3 times",
        "train/hangs": "took longer than 1.5 s 2 times",
        "train/fails": "ValueError: a step fails",
    } == reasons
    prepared = [
        name for result in results for name in read_shard(result.path)["sample_id"].to_pylist()
    ]
    assert sorted(
        name for task in tasks for name, *_ in task.rows if name not in reasons
    ) == sorted(prepared)
    assert ["models run on the CPU"] == said


def test_an_answer_that_comes_while_its_late_worker_is_killed_counts_and_the_pool_goes_on(
    cluster, tasks, tmp_path, monkeypatch
):
    killed = []
    start_workers = pool._Pool._start_workers

    def kill_answered(self):
        """Do what the pool does to a late worker, just after its answer has come."""
        for worker in self._workers:
            if worker.calls and not killed:
                self._ray.wait([worker.calls[0].reply])
                killed.append(worker)
                worker.is_late = True
                self._ray.kill(worker.actor)

    def start_or_fail(self):
        for worker in self._workers:
            assert worker.calls or not worker.is_late, "the pool would wait for ever"
        start_workers(self)

    monkeypatch.setattr(pool, "_MAX_CALLS", 1)  # a second call would tell of the kill
    monkeypatch.setattr(pool, "_CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(pool._Pool, "_kill_late_workers", kill_answered)
    monkeypatch.setattr(pool._Pool, "_start_workers", start_or_fail)
    results = run(tasks, tmp_path / "out", n_workers=1)
    assert (1, []) == (len(killed), quarantined(results))
    assert len(tasks) == len(results)


def test_a_node_that_joins_is_used_and_one_that_dies_loses_no_photo(cluster, tasks, tmp_path):
    node, n_busy = [], []

    def start_and_kill(n_done):
        if n_done == 5:
            node.append(Node(cluster))
        if len(node) == 1:
            n_busy.append(len(workers()))
            if n_busy[-1] > 2:
                node.append(node[0].kill())
            time.sleep(0.15)  # there are photos left when the node is there

    many = [ShardTask(number, tasks[number % 3].rows) for number in range(24)]
    results = run(many, tmp_path / "out", progress=start_and_kill)
    assert len(node) == 2, (
        f"a worker on the second node, and the node was killed; found {max(n_busy)} workers"
    )
    prepared = [
        name for result in results for name in read_shard(result.path)["sample_id"].to_pylist()
    ]
    assert sorted(name for task in many for name, *_ in task.rows) == sorted(prepared)


def test_missing_weights_end_it_with_their_sentence_and_dying_starts_with_another(
    cluster, tasks, tmp_path
):
    with pytest.raises(WeightsError, match="put the file there"):
        run(tasks, tmp_path / "a", make=no_weights)
    with pytest.raises(PoolError, match="must load the models, 3 in a row died"):
        run(tasks, tmp_path / "b", make=crash)
