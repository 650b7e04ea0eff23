import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.hypotheses import Claim, judge, parse
from orchestrator.select import choose, finalists, rank
from orchestrator.stats import Oof

BASE = {
    "low_rounded": 0.5,
    "worst_class_recall": 0.2,
    "total_variation": 0.1,
    "n_params": 10,
    "search_score": 0.6,
    "variant": "v",
}


def test_robust_order_goes_down_its_list():
    rows = [
        {**BASE, "setting": name, **changes}
        for name, changes in (
            ("f", {}),
            ("e", {}),
            ("d", {"n_params": 9}),
            ("c", {"total_variation": 0.09}),
            ("b", {"worst_class_recall": 0.3}),
            ("a", {"low_rounded": 0.51, "worst_class_recall": 0.0}),
        )
    ]
    assert [row["setting"] for row in rank(rows, "robust")] == ["a", "b", "c", "d", "e", "f"]


def test_every_variant_has_a_finalist_and_the_rest_are_the_best():
    ranking = [("s1", "a", 0.9), ("s2", "a", 0.8), ("s3", "a", 0.7), ("s4", "b", 0.1), ("s1", "a", 0.2)]
    assert finalists(ranking, 3, ["a", "b"]) == ["s1", "s2", "s4"]
    assert finalists(ranking, 1, ["a", "b"]) == ["s1", "s4"]


def test_fewer_candidates_than_members_is_said():
    found = choose([{**BASE, "setting": "a"}], "robust", 3)
    assert (found["members"], found["short_of"]) == (["a"], "1 members instead of 3: there are no more candidates")


def test_an_explicit_list_takes_the_best_of_each_variant_in_its_order():
    rows = [
        {**BASE, "setting": "x", "variant": "a", "search_score": 0.1},
        {**BASE, "setting": "y", "variant": "a"},
        {**BASE, "setting": "z", "variant": "b"},
    ]
    assert choose(rows, ["b", "a"], 5)["members"] == ["z", "y"]
    with pytest.raises(UserError, match="required one of robust, validation, leaderboard, diverse"):
        rank(rows, "best")


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("a > b", Claim("a", "b")),
        ("a>b", None),
        (" a > b on accuracy", Claim("a", "b", "accuracy")),
        ("a > b on f1", None),
    ],
)
def test_claims_read_like_sentences(text, claim):
    if claim is None and "on" in text:
        with pytest.raises(ValueError, match="a metric out of"):
            parse(text)
    elif claim is not None:
        assert claim == parse(text)


def test_a_planted_effect_is_supported_its_reverse_refuted_and_none_undecided():
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 3, 300), [f"g{at // 5}" for at in range(300)]

    def arm(skill):
        preds = np.where(rng.random(300) < skill, targets, rng.integers(0, 3, 300))[None]
        return Oof([f"s{at}" for at in range(300)], targets, preds, groups, None, 3)

    rows = judge(
        ["good > bad", "bad > good", "same > same2"],
        {"good": arm(0.9), "bad": arm(0.4), "same": arm(0.6), "same2": arm(0.6)},
        seed=0,
    )
    assert [row["verdict"] for row in rows] == ["supported", "refuted", "undecided"]
    assert rows[0]["n_groups"] == 60
