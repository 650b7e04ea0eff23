"""When compiling repays: the rule, and what is measured for it."""

import pytest
import torch

from trainers.config import Train
from trainers.overlap import compiled_steps
from trainers.preflight import step_times
from trainers.preflight.step_times import (
    DEFAULT,
    GRAPHS,
    RECORDED,
    ModeTimes,
    StepTimes,
    fastest_mode,
    measure_step_times,
)


@pytest.mark.parametrize(
    ("n_steps", "modes", "mode"),
    [
        (1000, {DEFAULT: ModeTimes(60, 0.02)}, DEFAULT),  # 80 s against 100 s
        (600, {DEFAULT: ModeTimes(60, 0.02)}, None),  # 72 s against 60 s
        (750, {DEFAULT: ModeTimes(60, 0.02)}, None),  # equal: nothing is gained
        (10**6, {DEFAULT: ModeTimes(60, 0.1)}, None),  # compiled steps are no faster
        (10**6, {}, None),  # no mode trains here
        (1000, {DEFAULT: ModeTimes(60, 0.02), GRAPHS: ModeTimes(75, 0.01)}, DEFAULT),  # 80, 85 s
        (2000, {DEFAULT: ModeTimes(60, 0.02), GRAPHS: ModeTimes(75, 0.01)}, GRAPHS),  # 100, 95 s
    ],
)
def test_the_mode_is_taken_in_which_a_training_ends_first(n_steps, modes, mode):
    assert mode == fastest_mode(n_steps, StepTimes(0.1, modes))


def config(**settings):
    model = {"backbone": "test_efficientnet", "pretrained": False}
    return Train.model_validate({"model": model, "batch_size": 8, **settings})


@pytest.fixture
def compile_as(monkeypatch):
    """Let each mode of torch.compile be a function of the network."""

    def set_to(**modes):
        def compile_later(network, *, dynamic, mode):
            return modes[mode.replace("-", "_")](network)

        monkeypatch.setattr(torch, "compile", compile_later)
        monkeypatch.setattr(step_times, "_N_STEPS", 10)

    return set_to


class Stale(torch.nn.Module):
    """Trains nothing: its gradients never arrive, as those of a graph with wrong addresses."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(x)
        return {name: branch.detach().requires_grad_() for name, branch in logits.items()}


def fails(network):
    raise RuntimeError("torch cannot record this")


def measured(**settings):
    return measure_step_times(config(**settings), {"a": 3, "b": 2}, size=32, device="cpu")


def test_a_mode_counts_if_it_trains_as_eager_steps_do(compile_as):
    compile_as(default=lambda network: network, reduce_overhead=lambda network: network)
    times = measured()
    assert {GRAPHS} == set(times.modes)
    assert {RECORDED} == set(times.refused)  # a CPU has no CUDA graphs
    assert min(times.eager_s, times.modes[GRAPHS].step_s, times.modes[GRAPHS].compile_s) > 0


def test_a_mode_that_does_not_train_or_cannot_be_compiled_is_left_out(compile_as):
    compile_as(default=fails, reduce_overhead=Stale)
    times = measured()
    assert {} == times.modes
    assert "RuntimeError: torch cannot record this" == times.refused[DEFAULT]
    assert times.refused[GRAPHS].startswith("its loss fell to ")


def test_split_batches_are_no_matter_for_graphs(compile_as):
    compile_as(default=lambda network: network, reduce_overhead=lambda network: network)
    times = measured(micro_batch=4)
    assert ({DEFAULT}, {GRAPHS, RECORDED}) == (set(times.modes), set(times.refused))


def test_a_graph_is_told_where_a_step_begins(compile_as, monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    compile_as(default=lambda network: network, reduce_overhead=lambda network: network)
    network = torch.nn.Linear(2, 2)
    compiled_steps.compiled_net(network, DEFAULT)(torch.ones(1, 2))
    assert [] == marks
    compiled_steps.compiled_net(network, GRAPHS)(torch.ones(1, 2))
    assert [1] == marks
