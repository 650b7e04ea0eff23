"""A frozen feature map does not move, and its features are computed once."""

import numpy as np
import pytest
import torch

from trainers.checkpoint import load_weights
from trainers.config import Train
from trainers.data import Task
from trainers.feature_cache import PLAIN, FeatureCache, View, kept_features
from trainers.inference import predict
from trainers.model import build
from trainers.settings.model import Model
from trainers.training_loop import train

SIZES = {"color": 2, "light": 2}


def config(head, **settings):
    return Train.model_validate(
        {
            "model": {
                "backbone": "test_efficientnet",
                "pretrained": False,
                "head": head,
                "frozen": settings.pop("frozen", None),
            },
            "optimizer": {"name": "adam", "lr": 3e-3},
            "augment": {
                "policy": settings.pop("policy", "none"),
                "cutmix": settings.pop("cutmix", "none"),
            },
            "duration": "2 epochs",
            "batch_size": 16,
            **settings,
        }
    )


A_C = {"name": "frozen_deep", "from": "A", "projection": 16, "hidden": 8}


def quiet(epoch, metrics):
    """Ignore the report."""


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, (60, 2))
    images = rng.integers(0, 40, (60, 32, 32, 3), dtype=np.uint8)
    images[np.arange(60), :, :, codes[:, 0]] += 150
    rows = np.arange(60)
    return Task(images, codes, [f"s{row}" for row in rows], SIZES, rows[:40], rows[40:])


@pytest.fixture(scope="module")
def source(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("A")
    train(
        config("single", duration="3 epochs"),
        task,
        seed=1,
        report=quiet,
        work_dir=folder,
        threads=1,
    )
    return load_weights(folder)[0]


@pytest.mark.parametrize("cutmix", ["none", "half"])  # through the bank, and through the backbone
def test_a_frozen_feature_map_is_bitwise_unchanged_after_training_its_statistics_included(
    task, source, tmp_path, cutmix
):
    train(
        config(A_C, cutmix=cutmix),
        task,
        seed=1,
        report=quiet,
        work_dir=tmp_path,
        threads=1,
        source=source,
    )
    after = load_weights(tmp_path)[0]
    backbone = [name for name in source if name.startswith("backbone.")]
    assert any("running_mean" in name for name in backbone)
    for name in backbone:
        assert torch.equal(source[name], after[name]), name


def test_a_backbone_that_is_not_frozen_moves_with_its_statistics(task, source, tmp_path):
    train(config("shallow"), task, seed=1, report=quiet, work_dir=tmp_path, threads=1)
    after = load_weights(tmp_path)[0]
    assert not any(
        torch.equal(source[name], after[name])
        for name in source
        if name.endswith("bn1.running_mean")
    )


def test_the_head_trains_to_the_same_scores_with_kept_features_and_without(
    task, source, tmp_path, monkeypatch
):
    results = []
    for name in ("cache", "backbone"):
        (tmp_path / name).mkdir()
        if name == "backbone":
            monkeypatch.setattr(
                "trainers.training_loop.NoMixUp", type("Nothing", (), {})
            )  # as if photos were mixed
        results.append(
            train(
                config(A_C),
                task,
                seed=1,
                report=quiet,
                work_dir=tmp_path / name,
                threads=1,
                source=source,
            )
        )
    for first, other in zip(*(result.history for result in results), strict=True):
        assert first["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert first["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


def test_features_are_computed_once_per_weights_samples_and_view(task, source, tmp_path):
    kept, n_computed = {}, []

    def keep(identity, compute, *, wait=True):
        if (name := str(identity)) not in kept:
            n_computed.append(identity["view"])
            kept[name] = compute()
        return kept[name]

    for number, hidden in enumerate((8, 12)):  # two trials of a search over heads
        (tmp_path / str(number)).mkdir()
        head = A_C | {"hidden": hidden}
        settings = {"policy": "basic", "frozen": {"views": 2}, "duration": "5 epochs"}
        train(
            config(head, **settings),
            task,
            seed=1,
            report=quiet,
            work_dir=tmp_path / str(number),
            threads=1,
            source=source,
            feature_store=keep,
        )
    assert [[0, 1, "basic"], [None, 0, "none"], [1, 1, "basic"]] == n_computed


def test_folds_and_predictions_share_features_and_the_test_set_waits_until_it_is_asked_for(task):
    n_computed = []
    kept = {}

    def keep(identity, compute, *, wait=True):
        name = str(identity)
        if name not in kept:
            kept[name] = compute()
            n_computed.append(len(kept[name]))
        return kept[name]

    rows = np.arange(len(task.images))
    ids = [f"{'test' if row % 3 == 0 else 'train'}/{row:03}" for row in rows]
    training = rows[rows % 3 > 0]
    torch.manual_seed(0)
    frozen = Model(backbone="test_efficientnet", pretrained=False, frozen={"views": 1})
    model = build(frozen, SIZES).eval()
    for fold in (0, 1):  # each holds out other photos
        held = training % 2 == fold
        task_of_fold = Task(task.images, task.targets, ids, SIZES, training[~held], training[held])
        FeatureCache(model, task_of_fold, None, keep)(training[:4])
    assert n_computed == [len(training)]

    features = kept_features(model, task.images, ids, keep)
    probs = predict(model, task.images, rows, features=features)
    assert n_computed == [len(training), len(rows) - len(training)]
    np.testing.assert_allclose(probs, predict(model, task.images, rows), rtol=1e-4)


def test_other_weights_samples_or_views_are_other_features(task):
    seen = []

    def keep(identity, compute, *, wait=True):
        seen.append(str(sorted(identity.items())))
        return compute()

    torch.manual_seed(0)
    model = build(Model(backbone="test_efficientnet", pretrained=False), SIZES).eval()
    views = [
        PLAIN,
        View(0, 1, "basic"),
        View(1, 1, "basic"),
        View(0, 2, "basic"),
        View(0, 1, "strong"),
    ]
    for view in views:
        FeatureCache(model, task, None, keep)(task.train[:2], view)
    renamed = [f"other/{name}" for name in task.sample_ids]
    others = Task(task.images, task.targets, renamed, SIZES, task.train, task.val)
    FeatureCache(model, others, None, keep)(task.train[:2], PLAIN)
    next(model.backbone.buffers()).add_(1)
    FeatureCache(model, task, None, keep)(task.train[:2], PLAIN)
    assert len(views) + 2 == len(set(seen))


def test_a_pretrained_backbone_may_be_frozen_below_any_head(task, tmp_path):
    result = train(
        config("deep", frozen={"views": 1}),
        task,
        seed=1,
        report=quiet,
        work_dir=tmp_path,
        threads=1,
    )
    assert np.isfinite(result.metrics["val_loss"])


def test_a_source_with_another_backbone_is_refused(task, source, tmp_path):
    other = {name: value for name, value in source.items() if "bn1" not in name}
    with pytest.raises(ValueError, match="the source's backbone must be the same"):
        train(config(A_C), task, seed=1, report=quiet, work_dir=tmp_path, threads=1, source=other)


def test_a_policy_that_is_a_list_has_features_of_its_own(task, tmp_path):
    flip = [{"name": "HorizontalFlip", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 0.5}]
    settings = config("single", frozen={"views": 1}, policy=flip)
    train(settings, task, seed=1, report=quiet, work_dir=tmp_path, threads=1)
    assert "weights.safetensors" in {path.name for path in tmp_path.iterdir()}


def test_blocks_that_another_process_computes_are_waited_for_last(task, monkeypatch):
    monkeypatch.setattr("trainers.feature_cache._BLOCK", 20)
    torch.manual_seed(0)
    model = build(Model(backbone="test_efficientnet", pretrained=False), SIZES).eval()
    asked = []

    def keep(identity, compute, *, wait=True):
        is_busy = not asked  # the first block is being computed elsewhere
        asked.append(wait)
        return None if is_busy else compute()

    rows = np.arange(len(task.images))
    features = FeatureCache(model, task, None, keep)(rows)
    assert asked == [False, False, False, True]
    np.testing.assert_array_equal(features, FeatureCache(model, task)(rows))
