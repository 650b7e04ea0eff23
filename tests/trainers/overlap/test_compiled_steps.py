"""`train.compile`: whole batches go through compiled code, everything else stays as it is."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from data_prep.section_base import identity
from trainers.config import Train
from trainers.data import Task
from trainers.overlap.compiled_steps import Compiled
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


def test_a_graph_takes_whole_batches_alone():
    graphed = Compiled(torch.nn.Identity(), is_graphed=True)
    plain = Compiled(torch.nn.Identity())
    assert graphed.takes(16, micro=16, n_batch=16)
    assert not graphed.takes(8, micro=8, n_batch=16)  # gradients would have to be added up
    assert plain.takes(8, micro=8, n_batch=16)
    assert not plain.takes(7, micro=8, n_batch=16)


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


CACHE_HITS = """
import torch
from torch._dynamo.utils import counters
from trainers.overlap.compiled_steps import compiled_net
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
compiled_net(network, "default")(torch.ones(2, 4)).sum().backward()
hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
print(hits)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_another_process_on_the_node_takes_compiled_code_from_the_cache(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CACHE_HITS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        hits.append(int(done.stdout.split()[-1]))
    assert 0 == hits[0] < hits[1]


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
