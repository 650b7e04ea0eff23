import json

from data_prep.catalog.label_schema import Schema
from orchestrator.search import numeric_precision
from orchestrator.spec.load import read
from orchestrator.spec.models import TrialShare
from orchestrator.store.ledger import EVENTS, Ledger
from tests.orchestrator.stages.planted import QUICKSTART
from trainers.config import Train, remarks

SCHEMA = Schema({"a": ["x", "y"]})


def arm(numeric_precision, backbone="resnet18"):
    experiment = read(QUICKSTART, check_roots=False)
    changes = {"precision": numeric_precision, "model": {"backbone": backbone}}
    train = Train.model_validate(changes)
    return experiment.arms["plain"].model_copy(update={"train": train})


def test_auto_is_chosen_once_per_run_and_backbone_and_found_again_after_a_restart(
    tmp_path, monkeypatch
):
    asked = []

    def choose(arm, schema, share):
        asked.append(arm.train.model.backbone)
        return "bf16"

    monkeypatch.setattr(numeric_precision, "_choose_on_worker", choose)
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            chosen = [
                numeric_precision.choose_precision(arm(*wanted), SCHEMA, TrialShare(), ledger)
                for wanted in (("auto",), ("fp32",), ("auto", "resnet34"))
            ]
            assert ["bf16", "fp32", "bf16"] == chosen
    assert ["resnet18", "resnet34"] == asked


def test_the_ledger_of_an_older_run_names_the_precision_that_its_stopwatch_chose(tmp_path):
    record = {"n": 0, "time": 1.0, "event": "precision", "backbone": "resnet18", "device": "cpu"}
    size = arm("auto").prep.size
    measured = {"size": size, "seconds": {"fp32": 2.0, "fp16": 1.0}, "chosen": "fp16"}
    (tmp_path / EVENTS).write_text(json.dumps(record | measured) + "\n")
    with Ledger(tmp_path) as ledger:
        assert "fp16" == numeric_precision.choose_precision(
            arm("auto"), SCHEMA, TrialShare(), ledger
        )


def test_what_is_rarely_wanted_is_told_with_its_reason():
    def remarks_on(**augment):
        return " ".join(remarks(Train.model_validate({"augment": augment})))

    assert "resembles neither" in remarks_on(mixup="offline")
    assert not remarks_on(mixup="offline", policy="none")
    assert not remarks_on(mixup="online")
