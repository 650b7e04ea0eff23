from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest

from data_prep.audit.examination import audit, leak
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.label_schema import Schema
from data_prep.config import Split
from data_prep.split import assign


def audited(contest, *strategies: str, **changes) -> dict:
    data = contest.data(**changes)
    table, schema = build_catalog(data, contest.base), Schema.of(data.labels)
    folds = {
        name: assign(table, schema, Split(strategy=name, val=0.5, seed=1), [], 2)
        for name in strategies
    }
    facts = audit(
        table, folds, schema, labels=data.labels, exclude={name: [] for name in folds}
    ).to_json()
    assert facts == json.loads(json.dumps(facts, allow_nan=False))
    return facts


def said(facts: dict) -> list[str]:
    return [warning["what"] for warning in facts["warnings"]]


def test_photos_are_counted_per_label_class_and_role(contest):
    facts = audited(contest, "profile")
    assert tuple(facts[name] for name in ("n_photos", "n_usable", "n_test", "n_groups")) == (
        54,
        54,
        6,
        12,
    )
    assert facts["counts"]["mask"] == {"wear": 24, "incorrect": 12, "not_wear": 12}
    assert (
        facts["classes"]["wear/male/<30"],
        len(facts["classes"]),
        facts["n_classes_missing"],
        facts["imbalance"],
    ) == (4, 18, 0, 2.0)
    assert facts["group_labels"] == ["gender", "age"]
    assert facts["sizes"] == [{"width": 8, "height": 12, "n": 54}]
    variant = facts["variants"]["profile"]
    assert variant["roles"] == {"train": 24, "val": 24, "test": 6}
    assert variant["groups"] == {"train": 6, "val": 6, "test": 0}
    assert variant["folds"] == {"0": 24, "1": 24}
    assert facts["counts"]["age"] == {
        name: sum(part["age"][name] for part in variant["counts"].values())
        for name in facts["counts"]["age"]
    }


def test_the_leak_of_a_split_is_a_number():
    folds = pa.table(
        {
            "role": ["train", "train", "val", "val", "val", "val", "test"],
            "group": ["a", "b", "a", "c", "d", "e", None],
        }
    )
    assert leak(folds) == 0.25


def test_only_random_leaks(contest):
    facts = audited(contest, "random", "profile", "balanced_profile")
    assert facts["leak"]["random"] > 0.5
    assert [facts["leak"][name] for name in ("profile", "balanced_profile")] == [0, 0]
    leaks = [
        warning
        for warning in facts["warnings"]
        if "groups that are in training too" in warning["what"]
    ]
    assert [warning["do"] for warning in leaks] == ["data.split.strategy: balanced_profile"]
    assert round(facts["leak"]["random"] * 24) == leaks[0]["n"]


def test_corrupt_photos_are_listed_with_their_reasons(contest):
    (contest.images / "000000_male_x_22/mask1.jpg").write_bytes(b"text")
    (contest.base / "eval/images/b.jpg").write_bytes(b"")
    facts = audited(contest, "profile")
    expected = [{"sample_id": "test/b.jpg", "reason": "empty file"},
                {"sample_id": "train/000000_male_x_22/mask1.jpg", "reason": "not an image"}]  # fmt: skip
    assert (2, 52, expected) == (facts["n_quarantined"], facts["n_usable"], facts["quarantined"])
    assert facts["reasons"] == {"empty file": 1, "not an image": 1}


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("train/images/000000_male_x_22/mask1.jpg", "eval/images/a.jpg", "train_and_test"),
        (
            "train/images/000000_male_x_22/mask1.jpg",
            "train/images/000004_male_x_60/mask1.jpg",
            "across_groups",
        ),
        (
            "train/images/000000_male_x_22/mask1.jpg",
            "train/images/000000_male_x_22/mask2.jpg",
            "within_group",
        ),
    ],
)
def test_equal_photos_are_found_where_they_stand(contest, source, target, kind):
    shutil.copy(contest.base / source, contest.base / target)
    facts = audited(contest)
    found = {name: sets["n"] for name, sets in facts["duplicates"].items() if sets["n"]}
    assert {kind: 1, **({"label_conflicts": 1} if kind == "across_groups" else {})} == found
    assert (
        2 == facts["duplicates"][kind]["n_photos"] == len(facts["duplicates"][kind]["examples"][0])
    )


def test_a_group_on_both_sides_of_the_test_set_is_named(contest):
    contest.tests = [
        row | {"who": "000003" if at == 0 else f"t{at}"} for at, row in enumerate(contest.tests)
    ]
    contest.save()
    facts = audited(contest, test={"root": "eval", "group": "who"})
    assert facts["test_groups_in_train"] == ["000003"]
    assert said(facts)[0] == "groups are in both the training and the test set"


def test_warnings_come_worst_first_and_say_what_to_do(contest):
    shutil.copy(contest.images / "000000_male_x_22/mask1.jpg", contest.base / "eval/images/a.jpg")
    shutil.copy(
        contest.images / "000000_male_x_22/mask1.jpg", contest.images / "000000_male_x_22/mask2.jpg"
    )
    (contest.images / "000000_male_x_22/normal.jpg").write_bytes(b"")
    facts = audited(contest, "random")
    order = [
        next(at for at, what in enumerate(said(facts)) if text in what)
        for text in ("test set", "validation photos", "cannot be used")
    ]
    assert sorted(order) == order
    assert all(
        {"kind", "what", "n", "examples", "do"} == set(warning) and warning["n"] and warning["do"]
        for warning in facts["warnings"]
    )


def test_borders_that_lie_close_together_are_not_moved_over_each_other(contest):
    for at, row in enumerate(contest.people):
        row["age"] = (57, 59, 61)[at % 3]
    contest.save()
    facts = audited(contest, labels={"age": {"from": "column", "column": "age", "bins": [58, 60]}})
    assert [
        "compare as variants data.exclude: [{age: [55, 57]}] with data.labels.age.train_bins: [55, 60]",
        "data.labels.age.bins: leave out 58 or 60, they are within 3 of each other",
    ] == [one["do"] for one in facts["warnings"] if one["kind"] == "border"]


def test_a_class_that_a_fold_leaves_without_training_is_named(contest):
    for row in contest.people:
        if row["age"] == 60 and row["id"] != "000011":
            row["age"] = 59
    contest.save()
    facts = audited(contest, "profile")
    gone = facts["variants"]["profile"]["folds_without"]
    assert "age >=60" in [label for labels in gone.values() for label in labels]
    assert any("without a training photo when a fold is held out" in what for what in said(facts))


def test_clean_data_has_no_warnings(contest):
    assert audited(contest, "balanced_profile")["warnings"] == []


def test_variants_that_share_a_split_have_one_warning(contest):
    data = contest.data()
    table, schema = build_catalog(data, contest.base), Schema.of(data.labels)
    folds = assign(table, schema, Split(strategy="random", val=0.5, seed=1), [], 2)
    apart = assign(table, schema, Split(strategy="random", val=0.5, seed=2), [], 2)
    facts = audit(table, {"one": folds, "two": folds, "three": apart}, schema).to_json()
    leaks = [w["what"] for w in facts["warnings"] if w["kind"] == "leak"]
    assert [text.partition(":")[0] for text in leaks] == ["variants one, two", "variant three"]
