"""`train.compile`: whole batches go through compiled code, everything else stays as it is."""

import shutil

import numpy as np
import pytest
import torch

from data_prep.section_base import identity
from trainers.compute_settings import compiled
from trainers.config import Train
from trainers.data import Task
from trainers.training_loop import train


def config(**settings):
    model = {"backbone": "test_efficientnet", "pretrained": False}
    base = {"model": model, "augment": {"policy": "none"}, "duration": "2 epochs", "batch_size": 16}
    return Train.model_validate({**base, **settings})


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (50, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(50)
    codes = rng.integers(0, 2, (50, 1))
    return Task(images, codes, [str(row) for row in rows], {"color": 2}, rows[:40], rows[40:])


def test_off_is_the_default_and_in_no_key():
    assert "off" == config().compile
    assert identity(config()) == identity(config(compile="off"))
    assert "compile" not in identity(config())
    assert "on" == identity(config(compile="on"))["compile"]


@pytest.mark.parametrize(
    ("wanted", "device", "n_steps", "compiles"),
    [
        ("off", "cuda", 10**6, False),
        ("auto", "cpu", 10**6, False),
        ("auto", "cuda", 100, False),
        ("auto", "cuda", 10**4, True),
        ("on", "cpu", 1, True),
    ],
)
def test_auto_compiles_long_trainings_on_a_card_alone(wanted, device, n_steps, compiles):
    network = torch.nn.Linear(2, 2)
    made = compiled(network, wanted, device, n_steps)
    assert compiles == (made is not None)
    if made is not None:
        assert {id(p) for p in made.parameters()} == {id(p) for p in network.parameters()}


def test_whole_micro_batches_are_compiled_and_a_smaller_one_is_not(task, tmp_path, monkeypatch):
    sizes = []

    def compile_later(network, **settings):
        def call(x):
            sizes.append(len(x))
            return network(x)

        return call

    plain = train(config(), task, seed=0, report=ignore, work_dir=tmp_path / "a", threads=1)
    monkeypatch.setattr(torch, "compile", compile_later)
    wanted = config(compile="on", micro_batch=8)
    train(wanted, task, seed=0, report=ignore, work_dir=tmp_path / "b", threads=1)
    assert [8] * 10 == sizes  # 16 + 16 + 8 photos an epoch, validation not among them
    sizes.clear()
    same = train(
        config(compile="on"), task, seed=0, report=ignore, work_dir=tmp_path / "c", threads=1
    )
    assert [16, 16] * 2 == sizes  # the last batch has 8
    assert losses(plain) == losses(same)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_compiled_code_trains_to_the_same_losses_up_to_rounding(task, tmp_path):
    settings = {"augment": {"policy": "none", "cutmix": "half"}}
    plain = train(
        config(**settings), task, seed=0, report=ignore, work_dir=tmp_path / "a", threads=1
    )
    fast = train(
        config(compile="on", **settings),
        task,
        seed=0,
        report=ignore,
        work_dir=tmp_path / "b",
        threads=1,
    )
    np.testing.assert_allclose(losses(plain), losses(fast), rtol=2e-2)
    assert losses(plain) != losses(fast)  # other kernels: it was compiled


def ignore(epoch, metrics):
    """Take no report."""


def losses(result):
    return [epoch["train_loss"] for epoch in result.history]
