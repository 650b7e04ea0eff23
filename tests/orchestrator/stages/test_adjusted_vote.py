"""Adjusted answers through select, vote and certificate, on planted predictions."""

import numpy as np
import pytest

from orchestrator.evaluation.probabilities.adjustment import adjusted, cross_fitted
from orchestrator.spec.models import FittedAdjustment, PriorAdjustment
from orchestrator.stages import test_set
from orchestrator.stages.confirm import held_out_predictions
from orchestrator.stages.select import adjusted_arms
from orchestrator.store import tables
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.selection import VoteRule
from tests.orchestrator.stages.planted import TEST_PROBS, plant_world

TWO = "select={policy: robust, members: 2}"
FITTED = "select={policy: robust, members: 2, adjust: fitted}"


def test_without_it_nothing_of_it_is_written(tmp_path):
    selected = plant_world(tmp_path, TWO).select()
    assert (selected.adjusted, selected.adjustments) == (None, {})
    assert "adjusted" not in selected.to_json()["vote"]
    assert "adjusted" not in selected.note


def test_scores_are_those_of_answers_that_were_adjusted_by_other_people(tmp_path):
    world = plant_world(tmp_path, FITTED)
    selected = world.select()
    arms = held_out_predictions(world.env, world.catalog, world.split, world.confirmed)
    for candidate in selected.selection.candidates:
        moved = cross_fitted(arms[candidate.setting], FittedAdjustment(), world.env.schema, seed=0)
        assert candidate.oof_accuracy == pytest.approx(np.mean(moved.preds == moved.targets))
    assert set(adjusted_arms(world.env, arms)) == set(arms)
    assert ", adjusted " in selected.note


def test_new_photos_are_answered_as_the_fit_on_all_people_says(tmp_path, monkeypatch):
    world = plant_world(tmp_path, FITTED)
    monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
    selected = world.select()
    world.vote(selected)
    rows = {row["ImageID"]: row for row in tables.read(world.env.paths.votes).to_pylist()}
    assert selected.members
    for setting in selected.members:
        labels = selected.adjustments[setting]
        assert labels[0].temperature != 1.0
        for name, ones in TEST_PROBS[setting].items():
            each = [adjusted(np.array([1 - p, p]), labels) for p in ones]
            assert rows[name[5:]][f"pred_{setting}"] == np.mean(each, axis=0).argmax()


def test_what_is_written_reads_back_as_what_is_applied(tmp_path):
    world = plant_world(tmp_path, FITTED)
    selected = world.select()
    written = as_record(VoteRule, selected.to_json()["vote"]).adjusted
    assert written.by == {"name": "fitted", "classes": "alike"}
    assert set(written.members) == set(selected.members)
    for setting, labels in written.members.items():
        (label,) = selected.adjustments[setting]
        assert (labels[0].temperature, labels[0].shift) == (label.temperature, label.shift)
    assert written.change.difference is not None


def test_a_prior_that_is_even_changes_no_answer(tmp_path):
    """Everybody has one photo of each class: nothing is to be divided by."""
    world = plant_world(tmp_path, "select={policy: robust, members: 2, adjust: logit_adjustment}")
    plain = plant_world(tmp_path / "plain", TWO).select()
    selected = world.select()
    assert selected.adjusted.change.difference == 0
    assert selected.ensemble.scores.macro_f1 == plain.ensemble.scores.macro_f1
    assert PriorAdjustment().tau == 1.0
