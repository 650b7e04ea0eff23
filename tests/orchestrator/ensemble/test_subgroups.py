import numpy as np
import pytest

from orchestrator.ensemble.subgroups import subgroup_intervals
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.predictions import Predictions


def vote(targets, preds, groups, n_classes=2):
    ids = [f"s{i}" for i in range(len(targets))]
    return Predictions(ids, np.array(targets), np.array([preds]), n_classes, list(groups))


def crowd(rng, n_people=40, skill=(0.95, 0.6)):
    """People of two cameras, four photos each; the second camera is read badly."""
    targets = rng.integers(0, 2, 4 * n_people)
    owners = np.repeat(np.arange(n_people), 4)
    cameras = owners % 2
    right = rng.random(len(targets)) < np.array(skill)[cameras]
    arm = vote(targets, np.where(right, targets, 1 - targets), [f"g{o}" for o in owners])
    return arm, cameras


def test_each_value_has_the_score_of_its_own_photos():
    arm, cameras = crowd(np.random.default_rng(0))
    names = ["good" if camera == 0 else "bad" for camera in cameras]
    bad, good = subgroup_intervals(arm, {"camera": names}, seed=0)
    assert (bad.value, good.value) == ("bad", "good")
    index = np.flatnonzero(cameras == 1)
    assert bad.macro_f1 == interval(arm.take(index), seed=0)
    assert bad.accuracy.estimate == pytest.approx(
        np.mean(arm.preds[0][index] == arm.targets[index])
    )
    assert bad.macro_f1.high < good.macro_f1.low
    assert (bad.macro_f1.n_groups, bad.macro_f1.n_samples) == (20, 80)


def test_a_subgroup_has_the_score_of_the_spec_where_that_is_another():
    arm, cameras = crowd(np.random.default_rng(0))
    names = ["good" if camera == 0 else "bad" for camera in cameras]
    plain = subgroup_intervals(arm, {"camera": names}, seed=0)
    assert "score" not in plain[0].to_json()
    bad, _ = subgroup_intervals(arm, {"camera": names}, seed=0, metric="balanced_accuracy")
    part = arm.take(np.flatnonzero(cameras == 1))
    assert bad.score == interval(part, metric="balanced_accuracy", seed=0)
    assert (bad.macro_f1, bad.to_json()["score"]["low"]) == (plain[0].macro_f1, bad.score.low)


def test_photos_of_one_class_are_marked_because_their_f1_means_nothing():
    arm, _ = crowd(np.random.default_rng(0))
    names = ["yes" if target else "no" for target in arm.targets]
    no, yes = subgroup_intervals(arm, {"mask": names}, seed=0)
    assert (no.to_json()["is_one_class"], yes.is_one_class) == (True, True)
    (whole,) = subgroup_intervals(arm, {"camera": ["a"] * len(names)}, seed=0)
    assert "is_one_class" not in whole.to_json()


def test_a_subgroup_of_fewer_than_seven_people_says_so():
    arm, _ = crowd(np.random.default_rng(1), n_people=13)
    owners = np.array([int(name[1:]) for name in arm.groups])
    few, enough = subgroup_intervals(
        arm, {"side": np.where(owners < 6, "few", "more").tolist()}, seed=0
    )
    assert (few.macro_f1.too_few_people, few.macro_f1.n_groups) == (True, 6)
    assert (few.accuracy.too_few_people, enough.accuracy.too_few_people) == (True, False)


def test_labels_keep_the_order_of_their_classes():
    arm = vote([0, 0, 1, 1], [0, 1, 1, 1], "abcd")
    found = subgroup_intervals(
        arm,
        {"age": [">=60", "<30", "<30", "30-59"]},
        seed=0,
        orders={"age": ["<30", "30-59", ">=60"]},
    )
    assert [row.value for row in found] == ["<30", "30-59", ">=60"]


def test_a_column_of_many_numbers_is_cut_into_quarters():
    ages = list(range(20, 60)) * 2
    arm = vote([0, 1] * 40, [0, 1] * 40, map(str, range(80)))
    found = subgroup_intervals(arm, {"years": ages}, seed=0)
    assert [row.value for row in found] == [
        "below 29.8",
        "29.8 to below 39.5",
        "39.5 to below 49.2",
        "49.2 and above",
    ]
    assert [row.accuracy.n_samples for row in found] == [20, 20, 20, 20]


def test_of_many_texts_the_frequent_ones_are_kept_and_no_photo_is_counted_twice():
    places = [f"place {i % 20 if i < 80 else i % 3}" for i in range(100)] + [None]
    arm = vote([0, 1] * 50 + [0], [0, 1] * 50 + [0], map(str, range(101)))
    found = subgroup_intervals(arm, {"place": places}, seed=0)
    assert len(found) == 12
    assert found[-1].value == "9 other values"
    assert sum(row.accuracy.n_samples for row in found) == 100
