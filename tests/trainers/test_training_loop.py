import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainers import checkpoint, training_loop
from trainers.config import Train
from trainers.data import Mixable, Task, epoch_order
from trainers.heads import Branches
from trainers.inference import load, predict
from trainers.metrics import Objective
from trainers.model import Classifier
from trainers.objectives.losses import Targets, branch_loss
from trainers.overlap.feeder import Batch
from trainers.settings.loss import Focal, SoftF1
from trainers.training_loop import OutOfMemory, TrainingDiverged, _Backward, train

GOLDEN = 0.4149935579  # in float64; kernels of CPUs differ by 4e-8 of it, in float32 by 6e-3


def quiet(epoch, metrics):
    """Ignore the report."""


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
    for row, (color, light) in enumerate(codes):
        images[row, :, :, color] += np.uint8(200 if light else 90)
    rows = np.arange(120)
    mixable = Mixable(codes[:, 1] == 0, codes[:, 0], rows // 2)
    return Task(
        images,
        codes,
        [f"s{row}" for row in rows],
        {"color": 2, "light": 2},
        rows[:90],
        rows[90:],
        mixable,
    )


@pytest.mark.parametrize(
    "head", ["single", "shallow", "deep", {"name": "deep", "joint": "existing"}], ids=str
)
def test_every_head_learns_and_predicts_from_its_folder_what_it_validated(task, tmp_path, head):
    result = train(quick(head), task, seed=1, report=quiet, work_dir=tmp_path, threads=1)
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
    whole = train(config, task, seed=3, report=quiet, work_dir=_new(tmp_path / "a"), threads=1)

    def stop(epoch, metrics):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, task, seed=3, report=stop, work_dir=_new(tmp_path / "b"), threads=1)
    reported = []
    again = train(
        config,
        task,
        seed=3,
        report=lambda epoch, _: reported.append(epoch),
        work_dir=tmp_path / "b",
        threads=1,
    )
    assert reported == [1, 2, 3, 4]
    assert _scores(whole) == _scores(again)
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (
        tmp_path / "b/weights.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def partly(task):
    """The same task, where every third training photo lacks a label, the first or the second."""
    targets = task.targets.copy()
    targets[0:90:6, 0] = -1
    targets[3:90:6, 1] = -1
    return replace(task, targets=targets)


def test_a_head_of_one_joint_class_trains_as_if_photos_that_lack_a_label_were_not_there(
    task, partly, tmp_path
):
    rows = np.flatnonzero((partly.targets >= 0).all(1))
    complete = replace(task, train=rows[rows < 90])
    for name, given in (("a", partly), ("b", complete)):
        folder = _new(tmp_path / name)
        train(quick(duration="1 epochs"), given, seed=3, report=quiet, work_dir=folder, threads=1)
    a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_branches_learn_from_photos_that_lack_the_other_label_and_resume_bit_for_bit(
    partly, tmp_path
):
    # every photo lacks one label: each branch has photos of its own
    targets = partly.targets.copy()
    targets[0:90:2, 0] = -1
    targets[1:90:2, 1] = -1
    apart = replace(partly, targets=targets)
    config = quick("deep", augment={"policy": "basic", "cutmix": {"name": "half", "p": 0.5}})
    whole = train(config, apart, seed=3, report=quiet, work_dir=_new(tmp_path / "a"), threads=1)
    assert whole.metrics["val_macro_f1"] > 0.6  # chance is 0.25

    def stop(epoch, metrics):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, apart, seed=3, report=stop, work_dir=_new(tmp_path / "b"), threads=1)
    again = train(config, apart, seed=3, report=quiet, work_dir=tmp_path / "b", threads=1)
    assert _scores(whole) == _scores(again)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_state_is_told_and_the_training_starts_again(task, tmp_path, capfd, damage):
    config, reported = quick(duration="2 epochs"), []
    whole = train(config, task, seed=3, report=quiet, work_dir=tmp_path, threads=1)
    state = tmp_path / "last.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes({"flip": content, "cut": content[:-100], "empty": b""}[damage])
    again = train(
        config,
        task,
        seed=3,
        report=lambda epoch, _: reported.append(epoch),
        work_dir=tmp_path,
        threads=1,
    )
    assert ([1, 2], _scores(whole)) == (reported, _scores(again))
    assert (
        f"{state} is damaged (its sha256 is another); the training starts again"
        in capfd.readouterr().err
    )


def test_a_state_with_any_flipped_byte_is_not_gone_on_with(tmp_path):
    state = {"model": {"weight": torch.arange(4.0)}, "step": 3}
    checkpoint.save_state(tmp_path, state)
    assert 3 == checkpoint.load_state(tmp_path)["step"]
    path, content = tmp_path / "last.pt", (tmp_path / "last.pt").read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :])
        assert checkpoint.load_state(tmp_path) is None


def test_stopped_inside_an_epoch_and_resumed_equals_uninterrupted(task, tmp_path, monkeypatch):
    config = quick(
        augment={"policy": "none", "mixup": "offline"}, micro_batch=8, duration="3 epochs"
    )
    whole = train(config, task, seed=3, report=quiet, work_dir=_new(tmp_path / "a"), threads=1)
    step, steps = torch.optim.Adam.step, []

    def stop(self, *args):
        steps.append(1)
        if len(steps) == 11:  # of eight in an epoch
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    with pytest.raises(Killed):
        train(config, task, seed=3, report=quiet, work_dir=_new(tmp_path / "b"), threads=1)
    monkeypatch.undo()
    again = train(config, task, seed=3, report=quiet, work_dir=tmp_path / "b", threads=1)
    assert _scores(whole) == _scores(again)
    assert (tmp_path / "a/weights.safetensors").read_bytes() == (
        tmp_path / "b/weights.safetensors"
    ).read_bytes()


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def five_steps(task, folder, weight_decay=5e-4):
    optimizer = {"name": "adam", "lr": 3e-3, "weight_decay": weight_decay}
    augment = {"policy": "none", "cutmix": "half"}
    settings = {"duration": "5 steps", "augment": augment, "clip_norm": 1.0}
    config = quick("deep", optimizer=optimizer, **settings)
    result = train(config, task, seed=11, report=quiet, work_dir=_new(folder), threads=1)
    return result.history[0]["train_loss"]


def test_five_steps_give_the_golden_loss(task, tmp_path, float64):
    """A change of the loop that keeps its meaning keeps this number; another one raises the trial's version."""
    assert GOLDEN == pytest.approx(five_steps(task, tmp_path / "a"), rel=1e-6)


def test_a_changed_loop_does_not_give_the_golden_loss(task, tmp_path, float64, monkeypatch):
    other_decay = five_steps(task, tmp_path / "a", weight_decay=6e-4)
    monkeypatch.setattr(
        training_loop,
        "epoch_order",
        lambda *args, **kwargs: epoch_order(*args, **kwargs)[::-1].copy(),
    )
    other_order = five_steps(task, tmp_path / "b")
    for loss in (other_decay, other_order):
        assert abs(loss - GOLDEN) > 1e-3


def test_a_batch_in_micro_batches_has_the_gradient_of_the_whole(task):
    torch.manual_seed(0)
    net = Branches({"joint": ("color", "light")}, {"joint": torch.nn.Linear(8, 4)})
    x, y = torch.randn(11, 8), Targets(torch.randint(0, 4, (11, 1)), torch.ones(11, 1))
    results = []
    for micro in (11, 4, 2):
        net.zero_grad()
        backward = _Backward(
            net,
            {"joint": branch_loss(Focal(), None)},
            {},
            "cpu",
            "fp32",
            torch.amp.GradScaler("cpu", enabled=False),
        )
        loss = backward(Batch(np.arange(11), x, {"joint": y}), micro).item()
        results.append((loss, net.layers["joint"].weight.grad.clone()))
    for loss, gradient in results[1:]:
        assert results[0][0] == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(results[0][1], gradient)


def test_no_score_for_a_while_ends_the_training(task, tmp_path):
    config = quick(early_stop=2, duration="30 epochs", optimizer={"name": "adam", "lr": 1e-9})
    result = train(config, task, seed=0, report=quiet, work_dir=tmp_path, threads=1)
    assert 2 == result.epochs - result.best_epoch
    assert result.epochs < 30


@pytest.fixture
def small_memory(monkeypatch):
    """A device that holds so many photos at once, and says so as CUDA does."""

    def set_to(n_photos):
        forward = Classifier.forward

        def limited(self, x):
            if self.training and len(x) > n_photos:
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            return forward(self, x)

        monkeypatch.setattr(Classifier, "forward", limited)

    return set_to


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(task, tmp_path, small_memory):
    small_memory(6)
    config = quick("shallow", batch_size=32, duration="2 epochs")
    result = train(config, task, seed=1, report=quiet, work_dir=_new(tmp_path / "a"), threads=1)
    assert 4 == result.micro_batch
    assert [4, 4] == [epoch["train_micro_batch"] for epoch in result.history]
    asked = quick("shallow", batch_size=32, duration="2 epochs", micro_batch=4)
    again = train(asked, task, seed=1, report=quiet, work_dir=_new(tmp_path / "b"), threads=1)
    assert result.history[0]["train_loss"] == pytest.approx(
        again.history[0]["train_loss"], rel=1e-3
    )


def test_memory_for_not_even_two_photos_ends_the_training_cleanly(task, tmp_path, small_memory):
    small_memory(1)
    with pytest.raises(OutOfMemory, match="a micro-batch of 2 photos was tried"):
        train(quick(), task, seed=1, report=quiet, work_dir=tmp_path, threads=1)


def test_loss_f1_is_refused_with_a_micro_batch_because_the_gradients_do_not_add_up(task):
    net = Branches({"joint": ("color", "light")}, {"joint": torch.nn.Linear(8, 4)})
    x, y = torch.randn(16, 8), Targets(torch.randint(0, 4, (16, 1)), torch.ones(16, 1))
    scaler, gradients = torch.amp.GradScaler("cpu", enabled=False), []
    for micro in (16, 8):
        net.zero_grad()
        losses = {"joint": branch_loss(SoftF1(), None)}
        batch = Batch(np.arange(16), x, {"joint": y})
        _Backward(net, losses, {}, "cpu", "fp32", scaler)(batch, micro)
        gradients.append(net.layers["joint"].weight.grad.clone())
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[0].norm()
    with pytest.raises(ValueError, match="micro_batch 8 is smaller than batch_size 16; remove"):
        quick(loss="f1", micro_batch=8)
    assert quick(loss="f1", micro_batch=16).micro_batch == 16


def test_loss_f1_ends_where_the_memory_does_not_hold_the_batch(task, tmp_path, small_memory):
    config = quick(loss="f1")
    small_memory(6)
    with pytest.raises(OutOfMemory, match="needs the whole batch of 16 photos at once"):
        train(config, task, seed=1, report=quiet, work_dir=tmp_path, threads=1)
    with pytest.raises(OutOfMemory, match="needs the whole batch of 16 photos at once"):
        train(config, task, seed=1, report=quiet, work_dir=tmp_path, threads=1, micro_batch=8)


def test_a_score_that_is_not_finite_names_the_samples(task, tmp_path, monkeypatch):
    def broken(self, x):
        logits = forward(self, x)
        return (
            logits
            if self.training
            else {name: value * float("nan") for name, value in logits.items()}
        )

    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", broken)
    with pytest.raises(
        TrainingDiverged, match=r"val loss is nan at step 6, lr 0\.003, samples s90, s91, .*s119"
    ):
        train(quick(), task, seed=1, report=quiet, work_dir=tmp_path, threads=1)


def test_a_loss_that_is_not_finite_ends_the_training_with_its_place(task, tmp_path):
    config = quick(optimizer={"name": "sgd", "lr": 1e6})
    with pytest.raises(TrainingDiverged, match=r"step \d+, lr 1e\+06, samples s\d+"):
        train(config, task, seed=0, report=quiet, work_dir=tmp_path, threads=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "cross_entropy", "balance": "class_weights"},
        {"loss": "label_smoothing", "schedule": {"name": "cosine", "warmup": "2 steps"}},
        {"loss": "f1", "balance": "weighted_sampler"},
        {"augment": {"policy": "strong", "mixup": "online"}},
        {"augment": {"policy": "contest", "cutmix": {"name": "random", "p": 1.0}}},
        {"precision": "bf16"},
        {"precision": "auto"},
        {"micro_batch": 6, "clip_norm": 1.0},
        {"augment": {"policy": "none", "mixup": "offline"}},
        {
            "augment": {"policy": "none", "mixup": "offline", "cutmix": "half"},
            "balance": "weighted_sampler",
        },
        {"loss": {"name": "focal", "alpha": {"light": [1, 3]}}},
        {"schedule": {"name": "step", "every": 1}, "duration": "3 steps"},
    ],
)
def test_every_setting_trains_to_finite_scores(task, tmp_path, settings):
    result = train(
        quick("shallow", **{"duration": "1 epochs", **settings}),
        task,
        seed=0,
        report=quiet,
        work_dir=tmp_path,
        threads=1,
    )
    assert result.epochs == 1
    assert np.isfinite(list(result.metrics.values())).all()


def _new(path):
    path.mkdir()
    return path


def _scores(result):
    return [
        {name: value for name, value in epoch.items() if not name.endswith("_s")}
        for epoch in result.history
    ]


def test_memory_that_a_step_frees_is_kept_for_the_next():
    """The kernel zeroes a page when it is touched first; a step that gets its pages back touches none first."""
    code = """
import resource, torch
from trainers.compute_settings import keep_freed_memory
assert keep_freed_memory()
def step():
    for _ in range(20):
        torch.empty(4_000_000).fill_(1.0)  # 16 MB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # 78,000 pages otherwise


def test_the_best_epoch_is_that_of_the_score_that_is_asked_for(task, tmp_path):
    wanted = Objective("balanced_accuracy", ["light"])
    kept = train(quick("shallow"), task, seed=0, report=quiet, work_dir=tmp_path, objective=wanted)
    scores = [metrics["val_score"] for metrics in kept.history]
    assert scores.index(max(scores)) + 1 == kept.best_epoch
    truth = task.targets[task.val]
    answers = predict(load(tmp_path), task.images, task.val).argmax(1)
    recalls = [np.mean(answers[truth[:, 1] == k] % 2 == k) for k in (0, 1)]
    assert np.mean(recalls) == pytest.approx(max(scores))


def test_a_score_of_labels_that_a_head_does_not_answer_is_refused():
    pair = (np.array([0, 1]), np.array([0, 0]))
    assert Objective("accuracy", ["a", "b"]).score({"a": pair}, pair) == 0.5
    with pytest.raises(ValueError, match=r"a head that answers b was required, found one .* a"):
        Objective("accuracy", ["b"]).score({"a": pair}, pair)
