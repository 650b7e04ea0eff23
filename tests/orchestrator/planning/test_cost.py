import re
from pathlib import Path

import pytest

from orchestrator.planning.cost import gpu_hours, training_s
from orchestrator.spec.load import read
from orchestrator.store.artifacts import Store

SPEC = Path(__file__).resolve().parents[3] / "experiments/quickstart.yaml"  # four epochs a trial


def finished(store, key, backbone, *seconds, **model):
    train = {"model": {"backbone": backbone, **model}}
    with store.draft(
        "trial", key * 64, params={"train": train, "seed": 0, "fold": None}, inputs={}
    ) as draft:
        draft.result["history"] = [{"epoch_s": took} for took in seconds]


@pytest.fixture
def experiment():
    return read(SPEC, check_roots=False)


def test_a_plan_costs_what_earlier_trials_of_its_backbone_took(experiment, tmp_path):
    store = Store(tmp_path)
    assert training_s(experiment, store, 17) is None
    finished(store, "a", "tf_efficientnet_lite0", 9.0, 2.0, 2.0)
    finished(store, "b", "tf_efficientnet_lite0", 4.0)
    finished(store, "c", "resnet18", 50.0)
    finished(store, "d", "tf_efficientnet_lite0", 0.01, frozen={"views": 1})
    finished(store, "e", "tf_efficientnet_lite0", 0.02, head={"name": "frozen_deep"})
    assert (17 * 4 * 3.0, 2) == training_s(experiment, store, 17)


def test_a_backbone_that_never_ran_here_has_no_cost(experiment, tmp_path):
    finished(Store(tmp_path), "a", "resnet18", 50.0)
    assert training_s(experiment, Store(tmp_path), 17) is None


def test_the_contest_s_own_settings_cost_gpu_hours_on_a_measured_card(experiment):
    full = read(SPEC.parent / "contest/full.yaml", check_roots=False)
    told = gpu_hours(full, 56, 18_900)
    hours = 56 * 30 * 18_900 / 632 / 3600
    assert f"56 trainings on 18900 photos take at most about {hours:.1f} GPU hours" in told
    assert "on an NVIDIA H200, where 632 samples a second were measured" in told
    assert "on a thousand photos" in gpu_hours(full, 56, None)
    assert gpu_hours(experiment, 17, 1000) is None  # on CPUs


def test_backbones_that_were_not_measured_cost_what_their_multiply_adds_let_guess(experiment):
    full = read(SPEC.parent / "contest/backbones.yaml", check_roots=False)
    told = gpu_hours(full, 91, 18_900)
    low, high = map(float, re.search(r"about ([0-9.]+) to ([0-9.]+) GPU hours", told).groups())
    measured = 91 * 30 * 18_900 / 632 / 3600  # were all of them efficientnet_b4
    assert low < high < 2 * measured
    assert "guessed from the multiply-adds of densenet121, efficientnet_b0," in told
    assert "efficientnet_b4" not in told
    own = read(
        SPEC.parent / "contest/full.yaml", ["train.model.backbone=convnext_tiny"], check_roots=False
    )
    assert gpu_hours(own, 56, 18_900) is None
