"""The whole loop over a stand-in for the card's copies gives what it gives without."""

import numpy as np
import pytest
import torch

from tests.trainers.overlap.late_copies import LateCopies, our_threads
from trainers.config import Train
from trainers.data import Task
from trainers.inference import load, predict
from trainers.overlap.clock import PARTS
from trainers.overlap.overlap_choice import Overlap, overlap_on
from trainers.training_loop import TrainingDiverged, train


def overlap(**settings):
    return Overlap(LateCopies(), 2, **{"writes_beside": True, **settings})


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 2, 90), rng.integers(0, 2, 90)], 1)
    images = rng.integers(0, 40, (90, 32, 32, 3), dtype=np.uint8)
    for row, (color, light) in enumerate(codes):
        images[row, :, :, color] += np.uint8(200 if light else 90)
    rows = np.arange(90)
    names = [f"s{row}" for row in rows]
    return Task(images, codes, names, {"color": 2, "light": 2}, rows[:70], rows[70:])


def config(**settings):
    return Train.model_validate(
        {
            "model": {
                "backbone": "test_efficientnet",
                "pretrained": False,
                "head": "deep",
                **settings.pop("model", {}),
            },
            "optimizer": {"name": "adam", "lr": 3e-3},
            "duration": "4 epochs",
            "batch_size": 16,
            **settings,
        }
    )


def run(settings, task, folder, *, report=lambda *_: None, **options):
    folder.mkdir(exist_ok=True)
    return train(settings, task, seed=3, report=report, work_dir=folder, threads=1, **options)


def scores(result):
    kept = []
    for epoch in result.history:
        kept.append({name: v for name, v in epoch.items() if not name.endswith("_s")})
    return kept


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": {"policy": "basic", "cutmix": "half"}, "clip_norm": 1.0},
        {"augment": {"policy": "none", "mixup": "online"}, "micro_batch": 6},
        {"model": {"frozen": {"views": 2}}, "balance": "weighted_sampler"},
        {"ema": {"decay": 0.9}, "soup": {"epochs": 3}, "unfreeze": "gradual"},
    ],
    ids=["cutmix", "mixup, micro-batches", "frozen", "averages"],
)
def test_the_same_bits_with_and_without_overlap(task, tmp_path, settings):
    beside = overlap()
    plain = run(config(**settings), task, tmp_path / "a")
    overlapped = run(config(**settings), task, tmp_path / "b", overlap=beside)
    assert scores(plain) == scores(overlapped)
    weights = [tmp_path / name / "weights.safetensors" for name in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert beside.copies.n_sent > 20
    assert not our_threads()


class Killed(Exception):
    pass


@pytest.mark.parametrize("every_s", [0.0, 3600.0], ids=["each epoch", "rarely"])
@pytest.mark.parametrize("n_epochs", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(task, tmp_path, n_epochs, every_s):
    averages = {"ema": {"decay": 0.9}, "soup": {"epochs": 2}}
    settings = config(augment={"policy": "basic", "cutmix": "half"}, **averages)
    whole = run(settings, task, tmp_path / "a")

    def stop(epoch, metrics):
        if epoch == n_epochs:
            raise Killed

    beside = overlap(write_every_s=every_s)
    with pytest.raises(Killed):
        run(settings, task, tmp_path / "b", report=stop, overlap=beside)
    reported = []
    again = run(
        settings,
        task,
        tmp_path / "b",
        report=lambda epoch, _: reported.append(epoch),
        overlap=beside,
    )
    assert [1, 2, 3, 4] == reported
    assert scores(whole) == scores(again)
    weights = [tmp_path / name / "weights.safetensors" for name in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_diverged_loss_is_noticed_two_steps_later_and_named_by_its_own_step(
    task, tmp_path, monkeypatch
):
    steps = []
    step = torch.optim.SGD.step

    def counted(self, *args, **kwargs):
        steps.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    settings = config(optimizer={"name": "sgd", "lr": 1e6})
    named = []
    for beside in (None, overlap()):
        steps.clear()
        with pytest.raises(TrainingDiverged, match=r"step \d+, lr 1e\+06, samples s\d+") as raised:
            run(settings, task, tmp_path / str(len(named)), overlap=beside)
        named.append((str(raised.value), len(steps)))
    (at_once, n_at_once), (late, n_late) = named
    assert at_once == late
    assert n_late <= n_at_once + 2
    assert not list(tmp_path.rglob("last.pt"))


def test_no_step_waits_for_its_own_loss(task, tmp_path):
    beside = overlap()
    run(config(duration="2 epochs"), task, tmp_path, overlap=beside)
    events = beside.copies.events
    first_read = events.index(("wait", 0))
    assert ("read", 2) in events[:first_read]


def test_an_epoch_says_where_its_time_went(task, tmp_path):
    result = run(config(duration="2 epochs"), task, tmp_path, overlap=overlap())
    first, second = result.history
    assert {f"{part}_s" for part in PARTS} <= first.keys()
    assert "start_s" not in second
    for epoch in result.history:
        timed = epoch["data_s"] + epoch["steps_s"] + epoch["evaluation_s"]
        assert timed == pytest.approx(epoch["epoch_s"], abs=0.05)


def test_predictions_are_the_same_through_the_feeder(task, tmp_path):
    run(config(duration="1 epochs"), task, tmp_path)
    model = load(tmp_path)
    plain = predict(model, task.images, batch_size=16)
    beside = overlap()
    np.testing.assert_array_equal(plain, predict(model, task.images, batch_size=16, overlap=beside))
    assert 6 == beside.copies.n_sent


def test_a_cpu_overlaps_nothing_and_scores_in_fp32(task, tmp_path):
    assert Overlap() == overlap_on("cpu")
    run(config(duration="1 epochs", precision="bf16"), task, tmp_path)
    model = load(tmp_path)
    assert "bf16" == model.precision
    probs = predict(model, task.images[:4])
    with torch.no_grad():
        x = torch.from_numpy(task.images[:4]).permute(0, 3, 1, 2)
        expected = model.head.log_probs(model(x)).exp().numpy()
    np.testing.assert_array_equal(expected, probs)
