"""A worker's process on a GPU, as far as a CPU can show it: the card's memory is a number here.

A process is kept or given up by such numbers alone, so the rule holds on a card. What numbers a card gives after a trial, only
`make gpu-check` shows (rows `memory_after_...`).
"""

import subprocess
import sys

import pytest

from orchestrator.search import process_leftovers
from orchestrator.search.process_leftovers import (
    MAX_CARD_GROWTH_BYTES,
    MAX_GROWTH_BYTES,
    ProcessState,
)
from orchestrator.search.trial_process import Child


@pytest.fixture
def memory(monkeypatch):
    """What the process has, on the host and on the card."""
    bytes_ = {"host": 10**9, "card": 10**6}
    monkeypatch.setattr(process_leftovers, "private_bytes", lambda: bytes_["host"])
    return bytes_


def test_kernels_that_the_first_trial_loads_cost_no_process_and_later_growth_does(memory):
    state = ProcessState(card_bytes=lambda: memory["card"])
    memory["host"] += 3 * MAX_GROWTH_BYTES
    assert [] == state.differences()
    memory["host"] += MAX_GROWTH_BYTES // 2
    assert [] == state.differences()
    memory["host"] += MAX_GROWTH_BYTES
    (change,) = state.differences()
    assert change.startswith("memory grown by 805 MB")


def test_on_a_cpu_the_first_growth_counts(memory):
    state = ProcessState()
    memory["host"] += 3 * MAX_GROWTH_BYTES
    assert 1 == len(state.differences())


def test_what_a_trial_keeps_on_the_card_costs_the_process(memory):
    state = ProcessState(card_bytes=lambda: memory["card"])
    memory["card"] += MAX_CARD_GROWTH_BYTES // 2
    assert [] == state.differences()
    memory["card"] += MAX_CARD_GROWTH_BYTES
    assert ["the GPU's memory grown by 101 MB"] == state.differences()


def test_a_parent_that_has_opened_cuda_forks_no_trial(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    child = Child(lambda spec, report: None)
    with pytest.raises(RuntimeError, match="found one that has opened it"):
        child.start(None, "a")
    assert 0 == child.n_forks


@pytest.mark.slow
def test_what_a_worker_loads_opens_no_cuda():
    """Everything that would begin CUDA in the parent raises instead."""
    code = """
import importlib, torch
def opened(*args, **kwargs):
    raise SystemExit("CUDA was opened")
for name in ("_lazy_init", "init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, opened)
torch._C._cuda_getDeviceCount = opened
from orchestrator.run.cluster_session import LOADED_TO_PREPARE
from orchestrator.search.trial_process import TRAINING_MODULES, Child
to_prepare = [name for names in LOADED_TO_PREPARE.values() for name in names]
for name in [*to_prepare, *TRAINING_MODULES]:
    importlib.import_module(name)
def body(spec, report):
    report(1, {"val_macro_f1": 0.5})
child = Child(body)
child.start(None, "a")
print(child.next())
child.kill()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Reported" in done.stdout, done.stderr
