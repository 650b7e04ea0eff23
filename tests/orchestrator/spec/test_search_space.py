import random

import optuna
import pytest
from pydantic import ValidationError

from orchestrator.spec.search_space import (
    Search,
    apply,
    assignments,
    grid,
    holds_point,
    order,
    suggest,
)

HEADS = {
    "train.h.name": {"choice": ["single", "deep"]},
    "train.h.hidden": {"int": [8, 64], "log": True, "when": {"train.h.name": "deep"}},
    "train.h.drop": {
        "float": [0.0, 0.5],
        "when": {"train.h.name": ["deep"], "train.h.hidden": [8, 16, 32, 64]},
    },
}


def space(entries):
    return Search.model_validate({"space": entries}).space


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"int": [3, 2]}}, "low <= high"),
        ({"a": {"float": [0.0, 1.0], "log": True}}, "begins above 0"),
        ({"a": {"choice": []}}, "at least 1"),
        ({"a": {"float": [0.0, 1.0], "step": 0.0}}, "step above 0"),
        ({"a": {"choice": [1], "when": {"b": 1}}}, "not in the space"),
        ({"a": {"choice": [1, 1]}}, "must differ"),
        ({"a": {"choice": [1], "when": {"b": 9}}, "b": {"choice": [1]}}, "none of"),
        ({"a": {"low": 1}}, "one of choice, int, float"),
        (
            {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}},
            "circles",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(entries, message):
    with pytest.raises(ValidationError, match=message):
        space(entries)


def test_conditions_come_first_and_decide():
    heads = space(dict(reversed(HEADS.items())))
    assert order(heads)[0] == "train.h.name"
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [suggest(study.ask(), heads) for _ in range(40)]
    assert {"single", "deep"} == {point["train.h.name"] for point in points}
    assert all(("train.h.hidden" in point) == (point["train.h.name"] == "deep") for point in points)


def test_a_grid_lists_conditional_points_once():
    points = grid(space({"h": {"choice": ["a", "b"]}, "k": {"int": [1, 3], "when": {"h": "b"}}}))
    assert points == [{"h": "a"}, {"h": "b", "k": 1}, {"h": "b", "k": 2}, {"h": "b", "k": 3}]


def test_assignments_touch_every_corner():
    points = assignments(space(HEADS), limit=64, rng=random.Random(0))
    assert {8, 64} == {point["train.h.hidden"] for point in points if "train.h.hidden" in point}
    assert {"train.h.name": "single"} in points


def test_another_name_is_another_component():
    base = {"train": {"head": {"name": "deep", "hidden": 8}, "loss": "focal"}}
    assert apply(base, {"train.head.name": "single"})["train"]["head"] == {"name": "single"}
    assert apply(base, {"train.head.hidden": 9})["train"]["head"] == {"name": "deep", "hidden": 9}
    assert apply(base, {"train.loss.gamma": 1})["train"]["loss"] == {"name": "focal", "gamma": 1}
    assert base["train"]["head"] == {"name": "deep", "hidden": 8}


def test_a_variant_may_have_its_own_space():
    search = Search.model_validate(
        {
            "space": {"train.a": {"choice": [1, 2]}, "train.b": {"float": [0.0, 1.0]}},
            "variant_spaces": {
                "x": {"train.b": None, "train.c": {"int": [1, 3], "when": {"train.a": 2}}}
            },
        }
    )
    assert (["train.a", "train.b"], ["train.a", "train.c"]) == (
        list(search.space_of("other")),
        list(search.space_of("x")),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"start": [{"train.z": 1}]},
            "'train.z' is not in the space; the space has train.a, train.b",
        ),
        ({"start": [{"train.a": 7}]}, "train.a is 7, which the space does not contain"),
        ({"start": [{"train.b": 2.0}]}, "train.b is 2.0, which the space does not contain"),
        ({"scheduler": {"name": "asha", "grace": "500 steps"}}, "grace"),
        ({"limits": {}}, "one of wall, gpu_hours, target"),
        ({"limits": {"wall": "90"}}, "wall"),
        (
            {"variant_spaces": {"x": {"train.c": {"choice": [1], "when": {"train.q": 1}}}}},
            "not in the space",
        ),
        (
            {"folds": 8, "scheduler": "asha"},
            "wilcoxon or none was required beside folds, found asha",
        ),
        ({"scheduler": "wilcoxon"}, "folds was required, found none"),
        ({"folds": 4, "scheduler": "wilcoxon"}, "more than 4 were required .* found 4"),
        ({"folds": 3, "scheduler": {"name": "wilcoxon", "p": 0.2}}, "more than 3 were required"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"objectives": ["parameters"]}, r"\[score\] or \[score, parameters\] was required"),
        ({"objectives": ["score", "latency"]}, "parameters"),
        (
            {"objectives": ["score", "parameters"], "scheduler": "median"},
            "none was required beside several objectives, found median",
        ),
        (
            {"objectives": ["score", "parameters"], "scheduler": "wilcoxon", "folds": 8},
            "none was required beside several objectives, found wilcoxon",
        ),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(change, message):
    entries = {"train.a": {"choice": [1, 2]}, "train.b": {"float": [0.0, 1.0]}}
    with pytest.raises(ValidationError, match=message):
        Search.model_validate({"space": entries, **change})


def test_a_point_lies_in_a_space_with_its_conditions():
    heads = space(HEADS | {"train.k": {"int": [2, 8], "step": 2}})
    assert holds_point(heads, {"train.h.name": "single", "train.k": 4})
    assert holds_point(
        heads, {"train.h.name": "deep", "train.h.hidden": 16, "train.h.drop": 0.1, "train.k": 2}
    )
    assert not holds_point(heads, {"train.h.name": "single", "train.h.hidden": 16, "train.k": 4})
    assert not holds_point(heads, {"train.h.name": "single", "train.k": 5})
    assert not holds_point(heads, {"train.h.name": "single"})


def test_a_number_in_a_path_is_a_place_in_a_list():
    base = {"policy": [{"name": "Flip", "p": 0.5}, {"name": "Blur", "p": 0.1}]}
    assert {"policy": [{"name": "Flip", "p": 0.5}, {"name": "Blur", "p": 0.7}]} == apply(
        base, {"policy.1.p": 0.7}
    )
    assert {"name": "Blur", "p": 0.1} == base["policy"][1]
    assert {"policy": {"2": {"p": 1}}} == apply(
        base, {"policy.2.p": 1}
    )  # no such place: a check refuses the whole
