"""The vote on planted predictions of five test photos; expectations are computed by hand."""

import json

import pytest

from orchestrator.stages import test_set
from orchestrator.store import tables
from orchestrator.store.event_types import LabelsOpened
from tests.orchestrator.stages.planted import plant_world

TWO = "select={policy: robust, members: 2}"
PUBLIC = "data.test={root: eval, table: info.csv, id: ImageID, label: ans, public: 0.5}"


@pytest.fixture
def world_of(tmp_path, monkeypatch):
    """Make a world whose members answer test photos as planted."""

    def make(*changes, **facts):
        world = plant_world(tmp_path, TWO, *changes, **facts)
        monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
        return world

    return make


def test_every_photo_gets_its_answer_ties_by_summed_probability_then_by_rank(world_of):
    """t1: one says 1 with .6, two says 0 with .9. t2: .7 against .7, so the better member decides."""
    world = world_of()
    voted = world.vote(world.select())
    rows = tables.read(world.env.paths.votes).to_pylist()
    assert rows == [
        {"sample_id": "test/t0", "ImageID": "t0", "pred": 0, "votes": 2, "tie": False,
         "outcome": "voted", "pred_one": 0, "pred_two": 0},
        {"sample_id": "test/t1", "ImageID": "t1", "pred": 0, "votes": 1, "tie": True,
         "outcome": "tie", "pred_one": 1, "pred_two": 0},
        {"sample_id": "test/t2", "ImageID": "t2", "pred": 1, "votes": 1, "tie": True,
         "outcome": "tie", "pred_one": 1, "pred_two": 0},
        {"sample_id": "test/t3", "ImageID": "t3", "pred": 0, "votes": 0, "tie": False,
         "outcome": "quarantined: truncated", "pred_one": None, "pred_two": None},
        {"sample_id": "test/t4", "ImageID": "t4", "pred": 1, "votes": 2, "tie": False,
         "outcome": "voted", "pred_one": 1, "pred_two": 1},
    ]  # fmt: skip
    assert world.env.paths.submission.read_text() == "ImageID,ans\nt0,0\nt1,0\nt2,1\nt3,0\nt4,1\n"
    # class 0: 1 of 1 found, named 3 times; class 1: 2 of 4 found, named twice
    assert voted.test.macro_f1.estimate == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert voted.test.accuracy.estimate == pytest.approx(3 / 5)
    assert not voted.test.macro_f1.too_narrow
    assert voted.test.macro_f1.n_groups == 3
    assert voted.predictions.num_rows == 4 * 4, "two members, two checkpoints, four readable photos"
    assert set(voted.predictions["target"].to_pylist()) == {None}


def test_test_labels_are_opened_once_and_by_the_vote(world_of):
    world = world_of()
    world.vote(world.select())
    opened = [event for event in world.env.ledger.events if isinstance(event, LabelsOpened)]
    assert [(event.part, event.by) for event in opened] == [("whole", "vote")]
    labels = tables.read(world.env.paths.test_labels).to_pylist()
    assert [row["label"] for row in labels] == [0, 1, 1, 1, 1]


def test_without_test_labels_there_is_an_answer_and_no_score(world_of):
    world = world_of("data.test={root: eval, table: info.csv, id: ImageID}")
    voted = world.vote(world.select())
    assert (voted.test, voted.board, voted.scores_to_json()) == (None, (), {})
    assert world.env.paths.submission.read_text().count("\n") == 6
    assert not world.env.paths.test_labels.exists()


def test_photos_of_unknown_people_make_the_interval_too_narrow_and_it_says_so(world_of):
    world = world_of(groups=[None] * 5)
    assert world.vote(world.select()).test.macro_f1.too_narrow


def test_a_board_scores_the_vote_and_its_members_on_both_halves(world_of, monkeypatch):
    """Public are t0, t2 and t4. On t1 and t3 every answer but one's on t1 is wrong."""
    world = world_of(PUBLIC)
    public = frozenset({"test/t0", "test/t2", "test/t4"})
    monkeypatch.setattr(test_set, "public_half", lambda *_: public)
    voted = world.vote(world.select())
    rows = [
        (row.who, row.public_accuracy, row.public_macro_f1, row.private_accuracy)
        for row in voted.board
    ]
    assert rows == [
        ("ensemble", 1.0, 1.0, 0.0),
        ("one", 1.0, 1.0, 0.5),
        ("two", pytest.approx(2 / 3), pytest.approx((2 / 3 + 2 / 3) / 2), 0.0),
    ]
    assert (voted.test.part, voted.public.part) == ("private", "public")
    assert (voted.test.accuracy.estimate, voted.public.accuracy.estimate) == (0.0, 1.0)
    facts = json.loads(json.dumps(voted.scores_to_json()))
    assert list(facts) == ["public", "test", "board"]
    assert "public_score" not in facts["board"][0]
    parts = tables.read(world.env.paths.test_labels)["part"].to_pylist()
    assert parts == ["public", "private", "public", "private", "public"]


def test_a_board_goes_by_the_score_of_the_spec(world_of, monkeypatch):
    world = world_of(PUBLIC, "score=balanced_accuracy")
    public = frozenset({"test/t0", "test/t2", "test/t4"})
    monkeypatch.setattr(test_set, "public_half", lambda *_: public)
    board = world.vote(world.select()).scores_to_json()["board"]
    # of the public classes 0, 1 and 1, member two misses one photo of the second class
    assert [row["public_score"] for row in board] == [1.0, 1.0, 0.75]
    assert board[2]["public_macro_f1"] == pytest.approx(2 / 3)


def test_a_public_half_does_not_begin_the_count_of_looks_again(tmp_path, monkeypatch):
    """The private half is a part of labels that a run without halves has scored."""
    keys = set()
    for place, changes in enumerate(([], [PUBLIC])):
        world = plant_world(tmp_path / str(place), TWO, *changes)
        monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
        keys.add(world.vote(world.select()).labels_key)
    assert len(keys) == 1
