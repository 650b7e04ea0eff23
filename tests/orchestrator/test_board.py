import pytest

from data_prep.errors import DataError
from orchestrator.board import public_half
from orchestrator.select import choose, give_scores, rank

BASE = {"low_rounded": 0.5, "worst_class_recall": 0.2, "total_variation": 0.1, "n_params": 10, "search_score": 0.6}


def test_the_public_half_is_a_function_of_the_names_and_never_splits_a_group():
    samples = [f"test/{at:03}" for at in range(70)]
    groups = {sample: f"p{at // 7}" for at, sample in enumerate(samples)}
    public = public_half(samples, groups, 0.5)
    assert public == public_half(list(reversed(samples)), groups, 0.5)
    assert len({groups[sample] for sample in public}) == 5
    assert {groups[s] for s in public}.isdisjoint(groups[s] for s in samples if s not in public)
    assert len(public_half(samples, None, 0.3)) == 21
    assert public_half(samples, groups, None) == frozenset()


def test_one_group_cannot_be_halved():
    with pytest.raises(DataError, match=r"data\.test\.public"):
        public_half(["test/a", "test/b"], {"test/a": "p", "test/b": "p"}, 0.5)


def candidates(**scores):
    return [{**BASE, "setting": name, "variant": name, "board_score": score} for name, score in scores.items()]


def test_a_leaderboard_ranks_by_what_it_saw_and_chooses_nobody_it_has_not_seen():
    rows = candidates(a=0.5, b=None, c=0.7, d=0.5)
    assert [row["setting"] for row in rank(rows, "leaderboard")] == ["c", "a", "d", "b"]
    found = choose(rows, "leaderboard", 4)
    assert (found["members"], found["weights"]) == (["c", "a", "d"], [1, 1, 1])
    assert found["short_of"].startswith("3 members instead of 4")
    assert "peek" in found["rule"]


def test_scores_typed_in_by_hand_go_to_the_best_finalist_of_their_variant():
    rows = [
        {**BASE, "setting": "x", "variant": "a", "search_score": 0.1},
        {**BASE, "setting": "y", "variant": "a", "search_score": 0.9},
        {**BASE, "setting": "z", "variant": "b"},
    ]
    given = {row["setting"]: row["board_score"] for row in give_scores(rows, {"a": 0.79})}
    assert given == {"x": None, "y": 0.79, "z": None}


def test_a_diverse_choice_keeps_its_votes():
    rows = [
        {**BASE, "setting": name, "variant": name, "low_rounded": low}
        for name, low in (("a", 0.6), ("b", 0.5), ("c", 0.4))
    ]
    found = choose(rows, "diverse", 3, ["c", "a", "c"])
    assert (found["members"], found["weights"], found["short_of"]) == (["a", "c"], [1, 2], None)
    assert [row["reason"].split(";")[0] for row in found["candidates"]] == [
        "added 1 times",
        "added 0 times",
        "added 2 times",
    ]
