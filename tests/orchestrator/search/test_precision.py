from data_prep.catalog.labels import Schema
from orchestrator.search import precision
from orchestrator.spec.load import read
from orchestrator.spec.models import TrialShare
from orchestrator.store.ledger import Ledger
from tests.orchestrator.stages.planted import QUICKSTART
from trainers.config import Train, remarks
from trainers.device import probe

SCHEMA = Schema({"a": ["x", "y"]})


def arm(precision, backbone="resnet18"):
    experiment = read(QUICKSTART, check_roots=False)
    changes = {"precision": precision, "model": {"backbone": backbone}}
    train = Train.model_validate(changes)
    return experiment.arms["plain"].model_copy(update={"train": train})


def test_auto_is_probed_once_per_run_and_backbone_and_found_again_after_a_restart(
    tmp_path, monkeypatch
):
    probed = []

    def measure(arm, schema, share):
        probed.append(arm.train.model.backbone)
        return {"fp32": 2.0, "bf16": 1.0}

    monkeypatch.setattr(precision, "_probe", measure)
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            chosen = [
                precision.choose_precision(arm(*wanted), SCHEMA, TrialShare(), ledger)
                for wanted in (("auto",), ("fp32",), ("auto", "resnet34"))
            ]
            assert ["bf16", "fp32", "bf16"] == chosen
    assert ["resnet18", "resnet34"] == probed


def test_a_probe_times_every_precision_of_the_device():
    seconds = probe(arm("auto", "test_efficientnet").train.model, {"a": 2}, size=32, batch_size=4)
    assert {"fp32", "bf16"} == set(seconds)
    assert min(seconds.values()) > 0


def test_what_is_rarely_wanted_is_told_with_its_reason():
    def told(**augment):
        return " ".join(remarks(Train.model_validate({"augment": augment})))

    assert "resembles neither" in told(mixup="offline")
    assert not told(mixup="offline", policy="none")
    assert not told(mixup="online")
