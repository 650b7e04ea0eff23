"""The choice of members on a planted table of predictions; expectations are computed by hand.

The vote of all three settings is wrong on photo 0 of person 6 alone. Of class 0 it finds 6 of 7
and names nothing else so: F1 is 12/13. Of class 1 it finds all 7 among 8 answers: 14/15.
"""

import csv
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from orchestrator.base.errors import UserError
from orchestrator.evaluation.race import RaceResult, Stopped
from orchestrator.stages import certificate, hypotheses, test_set
from orchestrator.stages.report import write_joined
from orchestrator.store.event_types import LabelsOpened
from orchestrator.store.run_dir import RunPaths
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
    peeks = selected.to_json()["peeks"]
    assert (peeks["by"], peeks["n_candidates"], peeks["n_photos"]) == (
        "the public half of the test set",
        3,
        2,
    )
    opened = [event for event in world.env.ledger.events if isinstance(event, LabelsOpened)]
    assert [(event.part, event.by) for event in opened] == [("public", "select")]


def with_roles(world, role_of):
    """Give photos other roles than train, by sample id."""
    folds = world.split.folds["a"]
    roles = [role_of.get(sample, "train") for sample in folds["sample_id"].to_pylist()]
    changed = folds.set_column(folds.column_names.index("role"), "role", pa.array(roles))
    world.split = replace(world.split, folds=dict.fromkeys(("a", "b"), changed))
    return world


def test_the_score_over_kept_photos_stands_beside_the_headline(tmp_path):
    """Photo 0 of person 6 is the only wrong one: without it all is right."""
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    assert world.select().ensemble.diagnosis.kept is None
    kept = with_roles(world, {"train/6/0.jpg": "excluded"}).select().ensemble.diagnosis.kept
    assert (kept.n_photos, kept.macro_f1.estimate) == (1, 1.0)
    assert kept.macro_f1.n_samples == 13


def test_photos_lost_in_preparation_count_as_wrong(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    folds = world.split.folds["a"]
    more = {"sample_id": "train/7/0.jpg", "group": "p7", "label": 0, "role": "train"}
    folds = pa.concat_tables([folds, pa.Table.from_pylist([more], folds.schema)])
    world.split = replace(world.split, folds=dict.fromkeys(("a", "b"), folds))
    world.prepared.shards["b"].result["quarantined"] = {"train/7/0.jpg": "no face"}
    lost = world.select().ensemble.diagnosis.lost
    assert lost.n_photos == 1
    # one more photo of class 0 that nobody finds: 6 of 8
    assert lost.macro_f1.estimate == pytest.approx((12 / 14 + 14 / 15) / 2)
    assert lost.macro_f1.n_groups == 8


def test_subgroups_of_named_columns_are_scored(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}", "subgroups=[camera]")
    table = world.catalog.table
    cameras = ["x" if i < 12 else "y" for i in range(len(table))]
    vars(world.catalog)["table"] = table.append_column("camera", pa.array(cameras))
    rows = {
        (row.column, row.value): row.macro_f1.estimate
        for row in world.select().ensemble.diagnosis.subgroups
    }
    assert rows["camera", "x"] == 1.0
    assert rows["mask", "wear"] == pytest.approx(12 / 13)
    assert rows["camera", "y"] == pytest.approx((0 + 2 / 3) / 2)


def test_a_finalist_that_the_race_stopped_is_a_candidate_and_no_member(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    stopped = Stopped("one", 1, 1, "two", -0.3, 0.004, 0.03)
    world.confirmed = replace(world.confirmed, race=RaceResult(3, 1, 1, 12, 2, (stopped,)))
    selected = world.select()
    assert selected.members == ["two", "three"]
    assert selected.ensemble.corrected.n_candidates == 3
    last = selected.selection.candidates[-1]
    assert (last.setting, last.stopped_after) == ("one", 1)
    assert last.reason == "stopped by the race after 1 of the seeds"


def test_temperatures_are_handed_on_where_the_spec_asks_for_them(tmp_path):
    policy = "select={policy: robust, members: 2}"
    plain = plant_world(tmp_path / "plain", policy).select().to_json()
    assert "temperatures" not in plain["vote"]
    asked = plant_world(tmp_path / "asked", policy, "vote.calibrate=true").select().to_json()
    assert list(asked["vote"]["temperatures"]) == ["mask"]
    assert asked["members"] == plain["members"]
    assert asked["ensemble"]["oof"] == plain["ensemble"]["oof"]


def test_all_suspects_are_a_file_of_the_run(tmp_path):
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    selected = world.select()
    write_joined(world.env.paths, None, selected, None)
    with world.env.paths.suspects.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["group"] for row in rows] == ["p6"]
    assert (rows[0]["given"], rows[0]["suggested"]) == ("wear", "bare")
    assert rows[0]["photos"] == "train/6/0.jpg"
    assert selected.ensemble.diagnosis.label_noise.without.estimate == 1.0


def test_a_choice_by_the_public_half_is_corrected_there(tmp_path, monkeypatch):
    """The score that chose was left as it is. Here two of three candidates tie on two people."""
    world = plant_world(
        tmp_path,
        "select={policy: leaderboard, members: 1}",
        "data.test={root: eval, table: info.csv, id: ImageID, label: ans, public: 0.5}",
    )
    monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
    public = frozenset({"test/t1", "test/t2", "test/t4"})
    monkeypatch.setattr(test_set, "public_half", lambda *_: public)
    selected = world.select()
    corrected = selected.peeks.corrected
    score = next(c.board_score for c in selected.selection.candidates if c.chosen)
    assert corrected.naive == pytest.approx(score)
    assert corrected.n_candidates == 3
    assert "The public half chose among 3 candidates" in selected.findings[-1]
    assert selected.to_json()["peeks"]["corrected"]["estimate"] == corrected.estimate


def test_looks_at_test_labels_are_counted_where_training_photos_changed(tmp_path, monkeypatch):
    """They were counted by a hash of all photos: with one more photo nobody had looked before."""
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
    first = world.vote(world.select())
    assert certificate._n_other_looks(world.env.paths, first.labels_key) == 0
    other = RunPaths(world.env.paths.root.parent / "other")
    other.root.mkdir()
    world.env = replace(world.env, paths=other)
    world.catalog.artifact.manifest["result"]["content"] = "of other training photos"
    assert world.catalog.content == "of other training photos"
    again = world.vote(world.select())
    assert certificate._n_other_looks(other, again.labels_key) == 1
    answers = world.test_probs["one"]
    world.test_probs["one"] = {sample: [0.1, 0.1] for sample in answers}
    world.vote(world.select())
    world.test_probs["one"] = answers
    assert (
        certificate._n_other_looks(RunPaths(tmp_path / "store/runs/third"), first.labels_key) == 2
    )


def test_the_headline_and_its_correction_are_on_the_same_photos(tmp_path):
    """One member answered fewer photos: the headline was on those of all members, the correction
    on those of all candidates.
    """
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    rows = world.confirmed.predictions
    is_lost = pc.and_(
        pc.equal(rows["setting"], "three"), pc.starts_with(rows["sample_id"], "train/5/")
    )
    world.confirmed = replace(world.confirmed, predictions=rows.filter(pc.invert(is_lost)))
    selected = world.select()
    assert "three" not in selected.members
    headline = selected.ensemble.scores.macro_f1
    assert headline.n_samples == 12
    assert selected.ensemble.corrected.naive == pytest.approx(headline.estimate)
    assert {c.n_samples for c in selected.selection.candidates} == {12}


@pytest.mark.parametrize("strategy", ["balanced_profile", "random"])
@pytest.mark.parametrize("search", ["null", "{trials: 3}"])
def test_people_who_chose_settings_are_not_counted(tmp_path, search, strategy):
    """An arm of 40 settings was supported against an equal one in .095 where .05 are due."""
    world = plant_world(
        tmp_path,
        f"search={search}",
        "select={policy: robust, members: 2}",
        f"data.split.strategy={strategy}",
        "hypotheses=[a > b]",
    )
    folds = world.split.folds["a"]
    roles = [
        "val" if sample == "train/0/0.jpg" else "train" for sample in folds["sample_id"].to_pylist()
    ]
    people = [sample.split("/")[1] for sample in folds["sample_id"].to_pylist()]
    table = pa.table(
        {
            "sample_id": folds["sample_id"],
            "group": [f"p{p}" for p in people],
            "label": folds["label"],
            "role": roles,
        }
    )
    world.split = replace(world.split, folds=dict.fromkeys(("a", "b"), table))
    score = world.select().ensemble.scores.macro_f1
    left_out = {"null": 0, "{trials: 3}": 1 if strategy == "random" else 2}
    assert score.n_samples == 14 - left_out[search]
    hypotheses.run(world.env, world.catalog, world.split, world.searched, world.confirmed)
    (claim,) = json.loads(world.env.paths.hypotheses.read_text())
    assert claim["n_samples"] == 14 - left_out[search]
    said = certificate._people(world.env)
    assert ("are not scored" in said) == (search != "null")


def test_the_gain_is_corrected_for_the_choice_of_the_best_member(tmp_path):
    """The best member was chosen on the photos that scored it, so the gain looked too small."""
    world = plant_world(tmp_path, "select={policy: robust, members: 3}")
    gain = world.select().ensemble.gain
    facts = gain.to_json()
    assert gain.bias > 0.01
    for name in ("difference", "low", "high"):
        assert facts[f"corrected_{name}"] == pytest.approx(facts[name] + gain.bias)


def test_the_gain_on_one_person_is_not_tested_and_not_corrected(tmp_path):
    """Nobody is out of the bag of one person, and there is no variance between people."""
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    keep = pc.starts_with(world.confirmed.predictions["sample_id"], "train/3/")
    predictions = world.confirmed.predictions.filter(keep)
    world.confirmed = replace(world.confirmed, predictions=predictions)
    ensemble = world.select().ensemble
    assert (ensemble.corrected.estimate, ensemble.corrected.optimism) == (None, None)
    gain = ensemble.gain.to_json()
    assert (gain["reason"], gain["p_value"]) == ("needs 2 groups or more", None)
    assert gain["corrected_difference"] == gain["difference"]
    assert (gain["corrected_low"], gain["corrected_high"]) == (None, None)


def test_another_score_ranks_candidates_and_is_the_headline(tmp_path):
    """Macro F1 stays beside it, and the rule, the note and the correction name the score."""
    plain = plant_world(tmp_path / "plain", "select={policy: robust, members: 2}").select()
    assert "score" not in plain.to_json()
    world = plant_world(tmp_path / "other", "select={policy: robust, members: 2}", "score=accuracy")
    selected = world.select()
    facts = selected.to_json()
    assert facts["score"] == "accuracy"
    assert "interval of out-of-fold accuracy" in facts["rule"]
    assert "out-of-fold accuracy" in selected.note
    oof = facts["ensemble"]["oof"]
    assert oof["score"] == oof["accuracy"]
    first = selected.selection.candidates[0]
    assert first.score == pytest.approx(first.oof_accuracy)
    assert first.oof_macro_f1 != first.score
    assert facts["candidates"][0]["oof_score"] == first.score
    assert selected.ensemble.corrected.naive == pytest.approx(oof["score"]["estimate"])
    assert selected.ensemble.marginal[0].score is not None
