"""Trainings with named policies, erasing and draws by group: resumed bit for bit, also frozen."""

from dataclasses import replace

import numpy as np
import pytest

from trainers.config import Train
from trainers.data import Mixable, Task
from trainers.training_loop import train

N = 60


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    rows = np.arange(N)
    codes = np.stack([rng.integers(0, 2, N), rng.integers(0, 2, N)], 1)
    images = rng.integers(0, 255, (N, 32, 32, 3), dtype=np.uint8)
    group = rows // 4
    mixable = Mixable(codes[:, 1] == 0, codes[:, 0], group)
    names = [f"s{row}" for row in rows]
    return Task(images, codes, names, {"a": 2, "b": 2}, rows[:44], rows[44:], mixable, groups=group)


def run(config, task, folder, stop_after=None):
    folder.mkdir(exist_ok=True)
    reported = []

    def report(epoch, metrics):
        reported.append(metrics["train_loss"])
        if epoch == stop_after:
            raise Killed

    train(config, task, seed=3, report=report, work_dir=folder, threads=1)
    return reported


SETTINGS = {
    "rand_augment": {"augment": {"policy": "rand_augment", "erasing": {}}},
    "trivial_augment": {"augment": {"policy": "trivial_augment", "cutmix": "half"}},
    "aug_mix": {"augment": {"policy": "aug_mix", "mixup": "online"}},
    "groups": {"group_photos": 1, "balance": "weighted_sampler"},
    "groups, blends": {"group_photos": 2, "augment": {"policy": "basic", "mixup": "offline"}},
    "frozen views": {
        "group_photos": 1,
        "augment": {"policy": "rand_augment", "erasing": {}},
        "model": {"frozen": {"views": 2}},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(task, tmp_path, name):
    settings = dict(SETTINGS[name])
    model = {"backbone": "test_efficientnet", "pretrained": False, "head": "shallow"}
    settings["model"] = model | settings.get("model", {})
    config = Train.model_validate({"duration": "3 epochs", "batch_size": 8, **settings})
    whole = run(config, task, tmp_path / "a")
    with pytest.raises(Killed):
        run(config, task, tmp_path / "b", stop_after=1)
    assert whole == run(config, task, tmp_path / "b")
    a, b = ((tmp_path / folder / "weights.safetensors").read_bytes() for folder in "ab")
    assert a == b
    without = config.model_copy(update={"augment": Train().augment, "group_photos": None})
    assert whole != run(without, replace(task, groups=None), tmp_path / "c")
