"""Photos that are augmented in processes: the same bits, in order, and what ends how."""

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from tests.trainers.overlap.late_copies import LateCopies
from trainers import training_loop
from trainers.config import Train
from trainers.data import Task
from trainers.overlap import loader_processes
from trainers.overlap.loader_processes import LoaderProcesses, Work
from trainers.overlap.overlap_choice import Overlap
from trainers.photos import augmentation
from trainers.photos.augmentation import sample_seeds
from trainers.training_loop import train

N = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (N, 32, 32, 3), dtype=np.uint8))
    return np.load(path, mmap_mode="r")


def works(n, size=6):
    rng = np.random.default_rng(1)
    for epoch in range(1, n + 1):
        rows = rng.permutation(N)[:size]
        yield Work(rows, sample_seeds(0, epoch, rows))


def test_photos_have_the_bits_of_threads_and_come_in_order_and_the_processes_stay(images):
    augment = augmentation.build("basic")
    with LoaderProcesses(images, "basic", n_processes=2, batch_size=6) as processes:
        for n_batches in (9, 3, 1):
            expected = [augment(images[work.rows], work.seeds) for work in works(n_batches, 7)]
            made = [batch.copy() for batch in processes.batches(works(n_batches, 7))]
            np.testing.assert_array_equal(expected, made)
    before = loader_processes._started(2)
    with LoaderProcesses(images, "strong", n_processes=2, batch_size=6) as processes:
        assert 3 == len(list(processes.batches(works(3))))
    assert before is loader_processes._started(2)


def test_an_epoch_that_is_left_early_leaves_nothing_to_the_next_one(images):
    augment = augmentation.build("basic")
    with LoaderProcesses(images, "basic", n_processes=2, batch_size=6) as processes:
        left = processes.batches(works(9))
        next(left)
        left.close()
        (work,) = works(1, 5)
        (made,) = processes.batches([work])
        np.testing.assert_array_equal(augment(images[work.rows], work.seeds), made)


def test_an_operation_that_cannot_be_used_is_an_error_of_the_training(images):
    policy = [{"name": "Normalize", "p": 1}]
    processes = LoaderProcesses(images, policy, n_processes=2, batch_size=6)
    with processes, pytest.raises(ValueError, match="an operation returns float32 values"):
        next(processes.batches(works(3)))


def test_a_process_that_dies_is_an_error_and_the_next_training_gets_others(images):
    before = set(psutil.Process().children())
    loader_processes._started.cache_clear()
    with LoaderProcesses(images, "basic", n_processes=1, batch_size=6) as processes:
        batches = processes.batches(works(9))
        next(batches)
        (process,) = set(psutil.Process().children()) - before
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a process that augments photos has died"):
            list(batches)
    with LoaderProcesses(images, "basic", n_processes=1, batch_size=6) as processes:
        assert 3 == len(list(processes.batches(works(3))))


def test_they_import_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import albumentations, trainers.overlap.loader_processes"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_training_over_processes_ends_with_the_bits_of_one_without(images, tmp_path, monkeypatch):
    rows = np.arange(N)
    codes = np.random.default_rng(0).integers(0, 2, (N, 1))
    task = Task(images, codes, [str(row) for row in rows], {"a": 2}, rows[:30], rows[30:])
    model = {"backbone": "test_efficientnet", "pretrained": False}
    augment = {"policy": "basic", "cutmix": "half"}
    config = Train.model_validate(
        {"model": model, "augment": augment, "duration": "2 epochs", "batch_size": 8}
    )

    def losses(name, overlap=None):
        result = train(
            config,
            task,
            seed=0,
            report=lambda epoch, metrics: None,
            work_dir=tmp_path / name,
            threads=1,
            overlap=overlap,
        )
        return [epoch["train_loss"] for epoch in result.history]

    plain = losses("plain")
    original = training_loop._processes
    asked = []

    def with_loaders(config, task, n_loaders):
        asked.append(n_loaders)
        return original(config, task, 2)

    monkeypatch.setattr(training_loop, "_processes", with_loaders)
    assert plain == losses("processes")
    assert plain == losses("late", Overlap(LateCopies(), loss_lag=2))
    assert [0, 0] == asked  # on a CPU nothing is made ahead
