"""Steps are timed once per run, where compiling them may repay."""

import pytest

from data_prep.catalog.label_schema import Schema
from orchestrator.search import compile_probe
from orchestrator.search.card_sharing.capacity import size_of
from orchestrator.search.compile_probe import known_times, time_steps
from orchestrator.spec.load import read
from orchestrator.spec.models import TrialShare
from orchestrator.store.ledger import Ledger
from tests.orchestrator.stages.planted import QUICKSTART
from trainers.config import Train
from trainers.preflight.step_times import ModeTimes, StepTimes

SCHEMA = Schema({"a": ["x", "y"]})
TIMES = StepTimes(0.07, {"default": ModeTimes(60.0, 0.05)})
CARD = TrialShare(gpu=1)


def arm(**train):
    experiment = read(QUICKSTART, check_roots=False)
    settings = {"model": {"backbone": "resnet18"}, "compile": "auto", "batch_size": 32, **train}
    train = Train.model_validate({"duration": "30 epochs", **settings})
    return experiment.arms["plain"].model_copy(update={"train": train})


@pytest.fixture
def asked(monkeypatch):
    names = []

    def measure(train, schema, pixels, share):
        names.append((train.model.backbone, train.precision, pixels))
        return TIMES

    monkeypatch.setattr(compile_probe, "_time_on_worker", measure)
    return names


def test_steps_are_timed_once_and_known_after_a_restart(asked, tmp_path):
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            time_steps(arm(), "bf16", SCHEMA, CARD, ledger, n_photos=18_900)
            train = arm().train.model_copy(update={"precision": "bf16"})
            size = size_of(train, arm().prep.size)
            assert TIMES == known_times(size, "cuda", ledger)
            assert known_times(size, "cpu", ledger) is None
            assert known_times(size_of(train, 999), "cuda", ledger) is None
    assert [("resnet18", "bf16", arm().prep.size)] == asked


@pytest.mark.parametrize(
    ("wanted", "share", "n_photos"),
    [
        (arm(compile="on"), CARD, 18_900),
        (arm(), TrialShare(), 18_900),  # on a CPU
        (arm(), CARD, 500),  # 480 steps
        (arm(model={"backbone": "resnet18", "frozen": {"views": 1}}), CARD, 18_900),
    ],
)
def test_nothing_is_timed_where_compiling_cannot_repay(asked, tmp_path, wanted, share, n_photos):
    with Ledger(tmp_path) as ledger:
        time_steps(wanted, "fp32", SCHEMA, share, ledger, n_photos=n_photos)
        assert [] == ledger.events
    assert [] == asked
