from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data_prep.catalog.label_schema import Schema, class_names
from data_prep.config import Label
from data_prep.errors import DataError
from data_prep.label_codes import code_of, read_codes

CONTEST = Schema(
    {
        "mask": ["wear", "incorrect", "not_wear"],
        "gender": ["male", "female"],
        "age": ["<30", "30-59", ">=60"],
    }
)
label = TypeAdapter(Label).validate_python
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def of_sizes(sizes: list[int]) -> Schema:
    return Schema({f"l{at}": [f"c{code}" for code in range(size)] for at, size in enumerate(sizes)})


def test_the_contest_code_is_mask_6_gender_3_age():
    assert 2 * 6 + 1 * 3 + 2 == CONTEST.encode([2, 1, 2]) == CONTEST.n_classes - 1
    assert CONTEST.decode(8) == (1, 0, 2)
    assert CONTEST.class_name(8) == "incorrect/male/>=60"


@given(SIZES)
def test_every_class_of_every_schema_survives_a_round_trip(sizes):
    schema = of_sizes(sizes)
    labels = np.arange(schema.n_classes)
    codes = schema.decode(labels)
    assert (schema.n_classes, len(sizes)) == codes.shape
    assert np.array_equal(labels, schema.encode(codes))
    assert [schema.decode(int(value)) for value in labels[:50]] == [
        tuple(row) for row in codes[:50].tolist()
    ]
    assert math.prod(sizes) == len({tuple(row) for row in codes.tolist()})


@pytest.mark.parametrize("codes", [[3, 0, 0], [0, -1, 0], [0, 0], np.array([[0, 0, 0], [0, 0, 3]])])
def test_codes_out_of_range_are_refused(codes):
    with pytest.raises(ValueError, match="required"):
        CONTEST.encode(codes)
    with pytest.raises(ValueError, match="classes from 0 to 17"):
        CONTEST.decode(18)


@pytest.mark.parametrize(
    ("bins", "names"),
    [
        ([30, 60], ["<30", "30-59", ">=60"]),
        ([30], ["<30", ">=30"]),
        ([30, 31], ["<30", "30", ">=31"]),
        ([0.5, 1], ["<0.5", "0.5-<1", ">=1"]),
        (
            [1e6, 1000001, 1000002, 3e6],
            ["<1000000", "1000000", "1000001", "1000002-2999999", ">=3000000"],
        ),
        (
            [0.1, 0.1000001, 0.1000002],
            ["<0.1", "0.1-<0.1000001", "0.1000001-<0.1000002", ">=0.1000002"],
        ),
        ([-1e20, 1e20], ["<-1e+20", "-1e+20-1e+20", ">=1e+20"]),
    ],
)
def test_bins_are_named_by_what_they_hold(bins, names):
    assert names == class_names(label({"from": "column", "column": "age", "bins": bins}))


@pytest.mark.parametrize(
    ("value", "code"), [("29", 0), (29.9, 0), ("30", 1), (59, 1), ("60", 2), ("1e3", 2)]
)
def test_bins_are_left_closed(value, code):
    assert code == code_of(label({"from": "column", "column": "age", "bins": [30, 60]}), value)


@pytest.mark.parametrize("value", [None, "", "old", "nan", float("inf")])
def test_a_value_that_is_no_number_has_no_bin(value):
    assert isinstance(code_of(label({"from": "column", "column": "age", "bins": [30]}), value), str)


def test_codes_come_from_stems_folders_and_columns():
    rules = {
        "mask": label({"from": "stem", "classes": {"on": ["mask*", "m[0-9]"], "off": "normal"}}),
        "sex": label({"from": "folder", "part": 1, "classes": ["male", "female"]}),
        "tone": label({"from": "folder", "part": 2, "separator": "_", "bins": [5]}),
        "safe": label({"from": "column", "column": "safe", "classes": ["false", "true"]}),
    }
    found = read_codes(
        rules,
        ["deep/1_female_4/mask.x.JPG", "2_male_5/m7.png", "2_male_5/normal"],
        {"safe": [True, False, "true"]},
    )
    assert found == [[0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 1]]


def test_photos_without_a_class_are_named_with_the_rule():
    rule = {"mask": label({"from": "stem", "classes": {"on": "mask*", "off": "normal"}})}
    with pytest.raises(
        DataError, match=r"data\.labels\.mask: .*on: mask\*.*4 of 5.*p/a\.jpg.*p/b.*p/c.*and 1 more"
    ) as raised:
        read_codes(rule, ["p/a.jpg", "p/b.jpg", "p/c.jpg", "p/d.jpg", "p/mask1.jpg"], {})
    assert "p/d" not in str(raised.value)


def test_photos_with_two_classes_are_errors():
    rule = {
        "mask": label({"from": "stem", "classes": {"wear": "*mask*", "incorrect": "incorrect*"}})
    }
    with pytest.raises(DataError, match="fits wear and incorrect"):
        read_codes(rule, ["p/incorrect_mask.jpg"], {})


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            {"from": "column", "column": "sex", "classes": ["m", "f"]},
            "one of gender was required, found 'sex'",
        ),
        ({"from": "column", "column": "gender", "classes": ["m", "f"]}, "'male' is none of m, f"),
        ({"from": "folder", "part": 3, "classes": ["m", "f"]}, "folder part 3.*empty"),
    ],
)
def test_a_rule_that_fits_nothing_says_what_is_there(rule, text):
    with pytest.raises(DataError, match=text):
        read_codes({"sex": label(rule)}, ["1_a/x.jpg"], {"gender": ["male"]})


@pytest.mark.parametrize(
    ("classes", "value", "code"),
    [
        ([0, 1], "1", 1),
        ([0, 1], 1.0, 1),
        (["0", "1"], "0.0", 0),
        ([-1, 1], "-1.0", 0),
        ([0.0, 0.5], "0", 0),
        ([True, False], "TRUE", 0),
        ([True, False], False, 1),
        (["007", "7"], "007", 0),
        (["007", "7"], 7, 1),
        (["NA", "nan"], "NA", 0),
        (["caf\u00e9", "bar"], "cafe\u0301", 0),
        (["2024-01-01", "2024-02-01"], "2024-02-01", 1),
    ],
)
def test_a_value_is_the_class_that_a_reader_takes_it_for(classes, value, code):
    assert code == code_of(label({"from": "column", "column": "x", "classes": classes}), value)


@pytest.mark.parametrize("value", ["01", "1.5", "one", "", None, "1 "])
def test_other_numbers_are_no_class(value):
    rule = label({"from": "column", "column": "x", "classes": [0, 1]})
    assert isinstance(code_of(rule, value), str)


def test_blanks_around_a_class_are_named():
    rule = label({"from": "column", "column": "x", "classes": ["red", "blue"]})
    assert "blanks around it" in code_of(rule, "red ")
