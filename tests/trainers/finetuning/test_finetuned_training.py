"""The loop with what fine-tuning adds: one model comes out, and a restart changes no bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainers import checkpoint
from trainers.config import Train
from trainers.data import Task
from trainers.inference import load, predict
from trainers.training_loop import train

SETTINGS = {
    "ema": {"ema": {"decay": 0.9}},
    "soup": {"soup": {"epochs": 3}},
    "head first": {"unfreeze": "head_first", "optimizer": {"name": "adamw", "layer_decay": 0.8}},
    "gradual": {"unfreeze": "gradual"},
    "upper": {"unfreeze": {"name": "upper", "share": 0.4}, "ema": {"decay": 0.9}},
    "one cycle": {"schedule": "one_cycle"},
    "warm-up": {"schedule": {"name": "reduce_on_plateau", "patience": 0, "warmup": "7 steps"}},
    "frozen": {
        "ema": {"decay": 0.9},
        "soup": {"epochs": 3},
        "optimizer": {"name": "sgd", "lr": 0.05, "decay_norms": False},
    },
    "all": {
        "ema": {"decay": 0.9},
        "soup": {"epochs": 2},
        "unfreeze": "gradual",
        "schedule": "one_cycle",
        "optimizer": {"name": "adamw", "lr": 3e-3, "layer_decay": 0.7, "decay_norms": False},
        "augment": {"policy": "basic", "cutmix": "half"},
        "clip_norm": 1.0,
        "early_stop": 3,
        "precision": "bf16",
    },
}


def config(name):
    settings = {
        "model": {
            "backbone": "test_efficientnet",
            "pretrained": False,
            "head": "deep",
            "frozen": {"views": 2} if name == "frozen" else None,
        },
        "optimizer": {"name": "adam", "lr": 3e-3},
        "duration": "3 epochs",
        "batch_size": 16,
        **SETTINGS[name],
    }
    return Train.model_validate(settings)


@pytest.fixture(scope="module")
def task():
    """Photos whose colors are their labels, with noise in the labels, so that epochs differ."""
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 2, 96), rng.integers(0, 2, 96)], 1)
    images = rng.integers(0, 120, (96, 32, 32, 3), dtype=np.uint8)
    for row, (color, light) in enumerate(codes):
        images[row, :, :, color] += np.uint8(60 if light else 30)
    rows = np.arange(96)
    return Task(
        images, codes, [f"s{n}" for n in rows], {"color": 2, "light": 2}, rows[:64], rows[64:]
    )


class Killed(Exception):
    pass


def quiet(epoch, metrics):
    """Ignore the report."""


def run(name, task, folder, report=quiet):
    folder.mkdir(exist_ok=True)
    return train(config(name), task, seed=3, report=report, work_dir=folder, threads=1)


def scores(result):
    kept = []
    for metrics in [*result.history, result.metrics]:
        kept.append({key: value for key, value in metrics.items() if not key.endswith("_s")})
    return kept


@pytest.mark.parametrize("name", SETTINGS)
def test_cut_after_an_epoch_and_gone_on_equals_uncut_bit_for_bit(task, tmp_path, name):
    whole = run(name, task, tmp_path / "a")

    def stop(epoch, metrics):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        run(name, task, tmp_path / "b", stop)
    again = run(name, task, tmp_path / "b")
    assert scores(whole) == scores(again)
    assert whole.soup == again.soup
    files = [(tmp_path / folder / "weights.safetensors").read_bytes() for folder in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["ema", "soup", "frozen", "all"])
def test_the_saved_model_predicts_what_was_scored(task, tmp_path, name):
    result = run(name, task, tmp_path / "a")
    model = load(tmp_path / "a")
    probs = predict(model, task.images[task.val])
    target = task.targets[task.val] @ [2, 1]
    assert result.metrics["val_accuracy"] == pytest.approx(np.mean(probs.argmax(1) == target))
    best = max(metrics["val_macro_f1"] for metrics in result.history)
    assert result.metrics["val_macro_f1"] >= best
    assert scores(run(name, task, tmp_path / "a")) == scores(result)  # started once more


def test_the_saved_weights_are_the_averaged_ones_and_the_state_has_both(task, tmp_path):
    run("ema", task, tmp_path / "a")
    state = checkpoint.load_state(tmp_path / "a")
    saved = load_file(tmp_path / "a/weights.safetensors")
    name = "head.layers.color.0.weight"
    assert not torch.equal(state["model"][name], state["average"][name])
    if checkpoint.best_epoch(state["history"]) == len(state["history"]):
        assert torch.equal(saved[name], state["average"][name])
    assert not any(torch.equal(saved[key], state["model"][key]) for key in saved if key == name)


def test_a_part_that_rests_keeps_its_weights(task, tmp_path):
    first = {}

    def keep(epoch, metrics):
        first[epoch] = checkpoint.load_state(tmp_path / "a")["model"]

    run("gradual", task, tmp_path / "a", keep)
    stem, head = "backbone.conv_stem.weight", "head.layers.color.0.weight"
    assert torch.equal(first[1][stem], first[2][stem])
    assert not torch.equal(first[1][head], first[2][head])
    last = "backbone.conv_head.weight"
    assert not torch.equal(first[1][last], first[2][last])


def test_a_frozen_backbone_keeps_its_bits_in_a_soup(task, tmp_path):
    result = run("frozen", task, tmp_path / "a")
    saved = load_file(tmp_path / "a/weights.safetensors")
    epoch = load_file(tmp_path / f"a/weights-{result.best_epoch}.safetensors")
    for name, value in epoch.items():
        if name.startswith("backbone."):
            assert torch.equal(value, saved[name])
