"""The report counts adjusted answers where the selection did, and says what the adjustment changed."""

import json

import numpy as np
import pytest

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import align, by_setting
from orchestrator.evaluation.probabilities.adjustment import cross_fitted
from orchestrator.report.confusion_matrices import without_val
from orchestrator.report.load import load
from orchestrator.report.result_section import result
from orchestrator.spec.models import FittedAdjustment
from tests.orchestrator.report.fake_run import write_run

ADJUSTED = {
    "by": {"name": "fitted", "classes": "alike"},
    "seed": 7,
    "change": {"difference": 0.0123, "low": -0.01, "high": 0.03},
    "members": {},
}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def adjust(run, adjusted):
    selection = json.loads((run / "selection.json").read_text())
    selection["vote"]["adjusted"] = adjusted
    (run / "selection.json").write_text(json.dumps(selection))
    return load(run)


def test_confusions_count_answers_that_were_adjusted_by_other_people(run):
    plain = load(run)
    before = plain.answers["oof"]
    after = adjust(run, ADJUSTED).answers["oof"]
    assert after.sample_ids == before.sample_ids
    assert not np.array_equal(after.member_preds, before.member_preds)
    rows = without_val(plain.predictions, plain.folds)
    folds = zip(plain.folds["sample_id"].to_pylist(), plain.folds["group"].to_pylist(), strict=True)
    arms = by_setting(rows, plain.schema.n_classes, dict(folds))
    together = align({name: arms[name] for name in plain.members})
    moved = [
        cross_fitted(arm, FittedAdjustment(), plain.schema, seed=7) for arm in together.values()
    ]
    probs = [arm.mean_probs for arm in moved]
    cast = voting.cast([arm.votes for arm in moved], probs, plain.rule, plain.weights)
    assert after.preds.tolist() == cast.pred.tolist()


def test_the_page_says_what_it_changed(run):
    assert result(load(run))["adjusted"] == ""
    text = result(adjust(run, ADJUSTED))["adjusted"]
    assert text.startswith("Answers are adjusted (fitted), out of fold by the labels of other ")
    assert text.endswith(": the vote changes by +0.012 (-0.010 to +0.030)")


def test_an_adjustment_of_another_version_costs_no_page(run):
    loaded = adjust(run, ADJUSTED | {"by": {"name": "of next year"}})
    assert "oof" in loaded.answers
