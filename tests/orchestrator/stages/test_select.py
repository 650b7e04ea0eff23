"""The choice of members on a planted table of predictions; expectations are computed by hand.

The vote of all three settings is wrong on photo 0 of person 6 alone. Of class 0 it finds 6 of 7
and names nothing else so: F1 is 12/13. Of class 1 it finds all 7 among 8 answers: 14/15.
"""

import pytest

from orchestrator.base.errors import UserError
from orchestrator.store.events import LabelsOpened
from tests.orchestrator.stages.planted import plant_world

VOTE = (12 / 13 + 14 / 15) / 2


def test_the_robust_choice_and_its_scores_are_those_of_the_planted_predictions(tmp_path):
    selected = plant_world(tmp_path, "select={policy: robust, members: 3}").select()
    assert selected.members == ["one", "two", "three"]
    ensemble = selected.ensemble
    assert ensemble.scores.macro_f1.estimate == pytest.approx(VOTE)
    assert ensemble.scores.accuracy.estimate == pytest.approx(13 / 14)
    agreement = [[14, 8, 6], [8, 14, 4], [6, 4, 14]]
    assert ensemble.agreement == [pytest.approx([n / 14 for n in row]) for row in agreement]
    # one and three, and two and three: the confident errors of three win their ties
    adds = [contribution.adds.difference for contribution in ensemble.marginal]
    assert adds == pytest.approx([3 / 13 + 3 / 15, 3 / 13 + 3 / 15, 0])
    assert ensemble.gain.over == "one"
    assert ensemble.gain.test.difference == pytest.approx(1 / 13 + 1 / 15)
    # people 0 to 2 are answered with .617, people 3 to 6 with .733 or .9; one answer of .9 is wrong
    sure = 6 * (0.9 + 0.9 + 0.05) / 3 + 6 * (0.9 + 0.4 + 0.9) / 3
    calibration = (12 - sure + abs(2 * 0.9 - 1)) / 14
    assert ensemble.scores.calibration_error == pytest.approx(calibration)
    first = selected.selection.candidates[0]
    assert first.oof_macro_f1 == pytest.approx((10 / 13 + 12 / 15) / 2)
    assert (first.worst_class, first.worst_class_recall) == (0, pytest.approx(5 / 7))
    assert first.total_variation == pytest.approx(1 / 14)
    assert selected.winner_setting == "one"
    assert selected.winner.naive == pytest.approx(first.oof_macro_f1)
    assert selected.winner.n_candidates == 3


def test_select_opens_no_test_label(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    world.select()
    assert not [event for event in world.env.ledger.events if isinstance(event, LabelsOpened)]


def test_a_setting_with_a_failed_trial_is_no_candidate(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    failed = world.confirmed.checkpoints["one"][1]
    object.__setattr__(failed.ended, "status", "FAILED")
    selected = world.select()
    assert selected.members == ["two", "three"]
    assert selected.selection.short_of.startswith("2 members instead of 3")


def test_no_finalist_at_all_is_an_error_that_says_what_was_required(tmp_path):
    world = plant_world(tmp_path)
    for trial in world.confirmed.trials:
        object.__setattr__(trial.ended, "status", "FAILED")
    with pytest.raises(UserError, match="finalists with out-of-fold predictions"):
        world.select()


def test_a_leaderboard_ranks_by_the_public_half_and_its_look_is_written_down(tmp_path, monkeypatch):
    """Setting three answers every test photo right; out of fold it is the worst."""
    from orchestrator.stages import test_set

    world = plant_world(
        tmp_path,
        "select={policy: leaderboard, members: 1}",
        "data.test={root: eval, table: info.csv, id: ImageID, label: ans, public: 0.5}",
    )
    monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
    monkeypatch.setattr(test_set, "public_half", lambda *_: frozenset({"test/t0", "test/t1"}))
    selected = world.select()
    board = {c.setting: c.board_score for c in selected.selection.candidates}
    assert board == {"three": 1.0, "one": 1.0, "two": pytest.approx(1 / 3)}
    assert selected.members == ["one"], "equal scores go by name"
    assert selected.to_json()["peeks"] == {
        "by": "the public half of the test set",
        "n_candidates": 3,
        "n_photos": 2,
    }
    opened = [event for event in world.env.ledger.events if isinstance(event, LabelsOpened)]
    assert [(event.part, event.by) for event in opened] == [("public", "select")]
