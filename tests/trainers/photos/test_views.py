"""Views of a photo: what is seen, and that every way to predict takes their mean."""

import numpy as np
import pytest
import torch

from trainers.config import Train
from trainers.data import Task
from trainers.feature_cache import kept_features
from trainers.inference import export_onnx, load, predict
from trainers.photos.views import PLAIN_VIEW, TestView, seen, views_of
from trainers.settings.model import Views
from trainers.training_loop import train

BOTH = {"flip": True, "margins": [0.1]}


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 2, 40), rng.integers(0, 2, 40)], 1)
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(40)
    return Task(images, codes, [f"s{row}" for row in rows], {"a": 2, "b": 2}, rows[:30], rows[30:])


def trained(task, folder, views, frozen=None):
    model = {"backbone": "test_efficientnet", "pretrained": False, "head": "shallow"}
    model |= {"views": views, "frozen": frozen}
    config = Train.model_validate(
        {"model": model, "duration": "1 epochs", "batch_size": 10, "augment": {"policy": "none"}}
    )
    folder.mkdir()
    train(config, task, seed=0, report=lambda *_: None, work_dir=folder, threads=1)
    return load(folder)


def test_views_are_the_photo_first_then_its_margins_then_all_of_them_mirrored():
    assert (PLAIN_VIEW,) == views_of(None)
    assert (PLAIN_VIEW, TestView(0.0, is_mirrored=True)) == views_of(Views())
    assert 6 == len(set(views_of(Views(margins=[0.05, 0.1]))))
    assert 2 == len(views_of(Views(flip=False, margins=[0.1])))


def test_a_margin_is_cut_off_and_the_rest_fills_the_photo():
    photo = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    photo[:, :, 2:-2, 2:-2] = 100
    torch.testing.assert_close(torch.full((1, 3, 20, 20), 100.0), seen(photo, TestView(0.1)))
    assert seen(photo, PLAIN_VIEW) is photo
    ramp = torch.arange(20, dtype=torch.uint8).expand(1, 3, 20, 20)
    torch.testing.assert_close(ramp.flip(3), seen(ramp, TestView(is_mirrored=True)))


@pytest.mark.parametrize("frozen", [None, {"views": 1}], ids=["trained", "frozen"])
def test_the_answer_is_the_mean_over_views_with_kept_features_too(task, tmp_path, frozen):
    model = trained(task, tmp_path / "a", BOTH, frozen)
    answers = []
    for view in model.views:
        x = seen(torch.from_numpy(task.images).permute(0, 3, 1, 2), view)
        with torch.no_grad():
            answers.append(model.head.log_probs(model(x)).exp().numpy())
    assert 4 == len(answers)
    expected = np.mean(answers, axis=0)
    probs = predict(model, task.images)
    np.testing.assert_allclose(expected, probs, atol=1e-5)
    assert np.abs(probs - answers[0]).max() > 1e-4
    features = kept_features(model, task.images, task.sample_ids, lambda _, make, wait=True: make())
    assert (features is None) == (frozen is None)
    if features is not None:
        kept = predict(model, task.images, features=features)
        np.testing.assert_allclose(expected, kept, atol=1e-5)


def test_a_training_is_the_same_with_and_without_views(task, tmp_path):
    trained(task, tmp_path / "a", BOTH)
    trained(task, tmp_path / "b", None)
    a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_an_onnx_file_takes_the_mean_too(task, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained(task, tmp_path / "a", BOTH)
    export_onnx(tmp_path / "a", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for n in (1, 7):
        (probs,) = session.run(["probabilities"], {"photos": task.images[:n]})
        np.testing.assert_allclose(predict(model, task.images[:n]), probs, atol=1e-4)
