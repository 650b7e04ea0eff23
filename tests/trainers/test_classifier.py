import numpy as np
import pytest

from trainers.classifier import TrainingDiverged, train
from trainers.config import Train
from trainers.data import Task
from trainers.predict import load, predict


def quick(head="single", **settings):
    return Train.model_validate(
        {
            "model": {"backbone": "test_efficientnet", "pretrained": False, "head": head},
            "optimizer": {"name": "adam", "lr": 3e-3},
            "duration": "4 epochs",
            "batch_size": 16,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def task():
    """Photos whose colors are their labels: red or green for the first, light or dark for the second."""
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 2, 120), rng.integers(0, 2, 120)], 1)
    images = rng.integers(0, 40, (120, 32, 32, 3), dtype=np.uint8)
    for at, (color, light) in enumerate(codes):
        images[at, :, :, color] += np.uint8(200 if light else 90)
    rows = np.arange(120)
    return Task(images, codes, [f"s{at}" for at in rows], {"color": 2, "light": 2}, rows[:90], rows[90:])


@pytest.mark.parametrize("head", ["single", "shallow", "deep"])
def test_every_head_learns_and_predicts_from_its_folder_what_it_validated(task, tmp_path, head):
    result = train(quick(head), task, seed=1, report=lambda epoch, metrics: None, work_dir=tmp_path, threads=1)
    assert result.metrics["val_macro_f1"] > 0.6  # chance is 0.25
    probs = predict(load(tmp_path), task.images[task.val])
    assert probs.shape == (30, 4)
    np.testing.assert_allclose(1.0, probs.sum(1), rtol=1e-5)
    target = task.targets[task.val] @ [2, 1]
    assert result.metrics["val_accuracy"] == pytest.approx(np.mean(probs.argmax(1) == target))


class Killed(Exception):
    pass


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(task, tmp_path):
    config = quick(augment={"policy": "basic", "cutmix": "half"})
    whole = train(config, task, seed=3, report=lambda *a: None, work_dir=_new(tmp_path / "a"), threads=1)

    def stop(epoch, metrics):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, task, seed=3, report=stop, work_dir=_new(tmp_path / "b"), threads=1)
    heard = []
    again = train(config, task, seed=3, report=lambda epoch, _: heard.append(epoch), work_dir=tmp_path / "b", threads=1)
    assert heard == [1, 2, 3, 4]
    assert _scores(whole) == _scores(again)
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_ends_the_training_with_its_place(task, tmp_path):
    config = quick(optimizer={"name": "sgd", "lr": 1e6})
    with pytest.raises(TrainingDiverged, match=r"step \d+, lr 1e\+06, samples s\d+"):
        train(config, task, seed=0, report=lambda *a: None, work_dir=tmp_path, threads=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "cross_entropy", "balance": "class_weights"},
        {"loss": "label_smoothing", "schedule": {"name": "cosine", "warmup": "2 steps"}},
        {"loss": "f1", "balance": "weighted_sampler"},
        {"augment": {"policy": "strong", "mixup": "online"}},
        {"augment": {"policy": "contest", "cutmix": {"name": "random", "p": 1.0}}},
        {"precision": "bf16"},
        {"schedule": {"name": "step", "every": 1}, "duration": "3 steps"},
    ],
)
def test_every_setting_trains_to_finite_scores(task, tmp_path, settings):
    result = train(
        quick("shallow", **{"duration": "1 epochs", **settings}),
        task,
        seed=0,
        report=lambda *a: None,
        work_dir=tmp_path,
        threads=1,
    )
    assert result.epochs == 1
    assert np.isfinite(list(result.metrics.values())).all()


def _new(path):
    path.mkdir()
    return path


def _scores(result):
    return [{name: value for name, value in epoch.items() if name != "epoch_s"} for epoch in result.history]
