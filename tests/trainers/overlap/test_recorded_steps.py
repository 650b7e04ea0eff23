"""On a card the steps are recorded once and replayed.

CUDA graphs need a card. `Recorder` stands in for torch.cuda.make_graphed_callables with what a graph does to its
surroundings: it runs the network three times first, refuses a context that keeps casts, reads its input from one place
in one type, and writes its outputs and gradients to the same memory each time. What the tests claim over it is about
the loop: which batches are replayed, that no gradient is added to one that is overwritten, and that the passes before
the recording leave nothing behind. That CUDA replays what it recorded is for `make gpu-check` to show.
"""

import numpy as np
import pytest
import torch

from trainers import training_loop
from trainers.config import Train
from trainers.data import Task
from trainers.model import build
from trainers.overlap import compiled_steps
from trainers.overlap.compiled_steps import mode_of, recorded_net
from trainers.preflight.step_times import DEFAULT, GRAPHS, RECORDED, ModeTimes, StepTimes
from trainers.training_loop import train


class Recorder:
    def __init__(self):
        self.n_replays = 0
        self.n_recordings = 0

    def __call__(self, module, sample, *, allow_unused_input):
        (static_x,) = sample
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        self.n_recordings += 1
        plain = module.forward
        if not module.training:
            module.forward = self.forward_only(plain, static_x)
            return module
        for _ in range(3):
            logits = plain(static_x)
            sum(values.sum() for values in logits.values()).backward()
        module.zero_grad(set_to_none=True)
        parameters = [p for p in module.parameters() if p.requires_grad]
        static_grads = [torch.zeros_like(p) for p in parameters]
        recorder = self

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, *_):
                recorder.n_replays += 1
                static_x.copy_(x)
                with torch.enable_grad():
                    ctx.logits = plain(static_x)
                return tuple(values.detach() for values in ctx.logits.values())

            @staticmethod
            def backward(ctx, *grads):
                computed = torch.autograd.grad(tuple(ctx.logits.values()), parameters, grads)
                for static, grad in zip(static_grads, computed, strict=True):
                    static.copy_(grad)
                return None, *[static.detach() for static in static_grads]

        def replay(x):
            names = list(plain_names)
            return dict(zip(names, Replay.apply(x, *parameters), strict=True))

        plain_names = list(logits)
        module.forward = replay
        return module

    def forward_only(self, plain, static_x):
        assert not torch.is_grad_enabled()
        static = plain(static_x)

        def replay(x):
            self.n_replays += 1
            static_x.copy_(x)
            for name, values in plain(static_x).items():
                static[name].copy_(values)
            return static

        return replay


@pytest.fixture
def recorder(monkeypatch):
    stand_in = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)
    monkeypatch.setattr(training_loop, "mode_of", recorded_where_auto)
    return stand_in


def recorded_where_auto(wanted, device, n_steps, times=None, *, is_split=False):
    """Take this CPU for a card where a test says `auto`, however short the training is."""
    return None if wanted == "off" else mode_of("off", "cuda", 10**6, is_split=is_split)


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(60)
    codes = rng.integers(0, 2, (60, 2))
    names = [str(row) for row in rows]
    return Task(images, codes, names, {"color": 2, "light": 2}, rows[:40], rows[40:])


def config(**settings):
    model = {"backbone": "test_efficientnet", "pretrained": False, **settings.pop("model", {})}
    base = {
        "model": model,
        "augment": {"policy": "basic"},
        "duration": "2 epochs",
        "batch_size": 16,
    }
    return Train.model_validate({**base, **settings})


def losses(task, folder, **settings):
    folder.mkdir()
    result = train(
        config(**settings), task, seed=0, report=lambda *_: None, work_dir=folder, threads=1
    )
    return [(epoch["train_loss"], epoch["val_loss"]) for epoch in result.history]


@pytest.mark.parametrize(
    ("settings", "n_replays"),
    [
        ({}, 4),  # 16 + 16 + 8 photos an epoch
        ({"augment": {"policy": "none", "mixup": "online"}}, 0),  # mixed photos are no bytes
        ({"model": {"head": "shallow"}, "clip_norm": 0.5}, 4),
        ({"model": {"frozen": {"views": 1}}}, 4),
        ({"unfreeze": "head_first", "ema": {"decay": 0.5}}, 4),  # recorded again for all layers
        ({"optimizer": {"name": "adamw", "layer_decay": 0.5}, "soup": {"epochs": 2}}, 4),
        ({"micro_batch": 8}, 0),  # gradients are added up
        ({"batch_size": 64}, 0),  # no batch is whole
    ],
    ids=[
        "plain",
        "mixup",
        "three branches",
        "frozen",
        "head first",
        "layers",
        "micro-batches",
        "small",
    ],
)
def test_whole_batches_are_replayed_and_the_losses_stay(
    task, tmp_path, recorder, settings, n_replays
):
    plain = losses(task, tmp_path / "a", **settings)
    assert 0 == recorder.n_recordings
    assert plain == losses(task, tmp_path / "b", compile="auto", **settings)
    assert n_replays == recorder.n_replays


def test_a_recording_leaves_the_statistics_of_batchnorm_as_they_were(recorder):
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    with_dict = torch.nn.Module()
    with_dict.net = network
    with_dict.forward = lambda x: {"joint": network(x)}
    x = torch.randn(8, 4) + 3
    recorded_net(with_dict, x, "cpu", "fp32")
    assert [0.0] * 4 == network[0].running_mean.tolist()
    assert 0 == network[0].num_batches_tracked


def test_a_smaller_batch_is_scored_by_the_recording_too(recorder):
    network = build(config().model, {"color": 2, "light": 3}, size=32).eval()
    photos = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    with torch.no_grad():
        recorded = recorded_net(network, photos[:6].clone(), "cpu", "fp32")
        for part in (photos[:6], photos[6:], photos[:1]):
            torch.testing.assert_close(network(part)["joint"], recorded(part)["joint"])
    assert 3 == recorder.n_replays
    assert not network.training


def test_what_cannot_be_recorded_is_trained_without(task, tmp_path, recorder, monkeypatch, capfd):
    plain = losses(task, tmp_path / "a")

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    assert plain == losses(task, tmp_path / "b", compile="auto")
    message = "not recorded as a CUDA graph: CUDA out of memory."
    assert [message] == capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("wanted", "device", "n_steps", "is_split", "mode"),
    [
        ("off", "cuda", 10**6, False, RECORDED),
        ("off", "cuda", 50, False, None),
        ("off", "cpu", 10**6, False, None),
        ("auto", "cpu", 10**6, False, None),
        ("auto", "cuda", 50, False, None),
        ("auto", "cuda", 10**4, False, RECORDED),
        ("auto", "cuda", 10**4, True, None),
        ("on", "cpu", 1, False, DEFAULT),
        ("on", "cuda", 1, True, DEFAULT),
    ],
)
def test_a_card_records_all_but_the_shortest_trainings(wanted, device, n_steps, is_split, mode):
    assert mode == mode_of(wanted, device, n_steps, is_split=is_split)


def test_where_steps_were_timed_the_times_decide():
    modes = {
        RECORDED: ModeTimes(3, 0.045),
        DEFAULT: ModeTimes(60, 0.05),
        GRAPHS: ModeTimes(90, 0.03),
    }
    times = StepTimes(0.07, modes)
    assert mode_of("auto", "cuda", 100, times) is None
    assert RECORDED == mode_of("auto", "cuda", 1000, times)
    assert GRAPHS == mode_of("auto", "cuda", 10**4, times)
    assert mode_of("auto", "cuda", 10**4, times, is_split=True) is None
    assert mode_of("auto", "cuda", 10**4, StepTimes(0.07, {})) is None
    assert mode_of("auto", "cpu", 10**4, times) is None
    assert DEFAULT == mode_of("on", "cuda", 1, times)


def test_a_mode_of_torch_compile_shares_the_parameters():
    network = torch.nn.Linear(2, 2)
    for mode in (DEFAULT, GRAPHS):
        made = compiled_steps.compiled(network, mode, lambda: torch.ones(2, 2), "cpu", "fp32")
        assert (mode == GRAPHS) == made.is_graphed
        assert {id(p) for p in made.net.parameters()} == {id(p) for p in network.parameters()}
