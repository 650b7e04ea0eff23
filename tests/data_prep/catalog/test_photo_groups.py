"""Groups out of columns, names and folders; photos that no label fits."""

import unicodedata

import pytest
from pydantic import ValidationError

from data_prep.catalog.answers_table import placeholder, read_answers
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.labelled_photos import read_rows, summary
from data_prep.catalog.labels_of_test_photos import order_of_test_photos
from data_prep.catalog.photo_groups import group_words
from data_prep.errors import DataError
from tests.data_prep.conftest import AGE, GENDER, write_csv

KIND = {"kind": {"from": "folder", "classes": ["healthy", "ill"]}}
PLANTS = (
    "ill/plant-3_top.jpg",
    "ill/plant-12 b.jpg",
    "healthy/plant-3_a.jpg",
    "healthy/plant-4.png",
)


@pytest.fixture
def plants(contest):
    """Photos of plants in class folders, their numbers in the names."""
    for number, name in enumerate(PLANTS):
        contest.photo(f"plants/{name}", number)

    def data(group, **changes):
        source = {"layout": "class_folders", "root": "plants", "images": "."}
        return contest.data(source=source, labels=KIND, test=None, group=group, **changes)

    return data


def groups(data, base):
    table = build_catalog(data, base)
    names = [sample.partition("/")[2] for sample in table["sample_id"].to_pylist()]
    return dict(zip(names, table["group"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"from": "name", "pattern": r"plant-(?P<group>\d+)"}, ["3", "12", "3", "4"]),
        ({"from": "name", "pattern": r"^(?P<group>[^_ ]+)"}, ["plant-3", "plant-12", "plant-3", "plant-4"]),
        ({"from": "name", "pattern": r"(?P<group>.+/plant-\d+)"}, ["ill/plant-3", "ill/plant-12", "healthy/plant-3", "healthy/plant-4"]),
        ({"from": "folder"}, ["ill", "ill", "healthy", "healthy"]),
        ({"from": "folder", "separator": "l", "part": 0}, ["i", "i", "hea", "hea"]),
    ],
)  # fmt: skip
def test_a_group_is_read_from_the_name_or_the_folder(plants, contest, rule, expected):
    assert dict(zip(PLANTS, expected, strict=True)) == groups(plants(rule), contest.base)


def test_photos_outside_the_rule_are_named(plants, contest):
    rule = {"from": "name", "pattern": r"plant-(?P<group>\d\d)"}
    with pytest.raises(DataError, match=r"data\.group: a part of the name .*3 have none: healthy"):
        build_catalog(plants(rule), contest.base)
    with pytest.raises(DataError, match=r"a part of the folder.*4 have none"):
        build_catalog(plants({"from": "folder", "part": 5}), contest.base)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"from": "name", "pattern": "plant-(\\d+)"}, "a part named group was required"),
        ({"from": "name", "pattern": "(?P<group>"}, "a regular expression was required"),
        ({"from": "exif"}, "'name', 'folder'"),
        ({"from": "name"}, "pattern"),
    ],
)
def test_a_rule_that_names_no_group_is_refused(plants, rule, text):
    with pytest.raises(ValidationError, match=text):
        plants(rule)


def test_a_missing_column_is_named_with_the_nearest(contest):
    with pytest.raises(DataError, match=r"found 'gendre'; columns are .*did you mean 'gender'"):
        read_rows(contest.data(group="gendre"), contest.base)


def test_blanks_and_unicode_forms_make_no_other_group(contest):
    for number, row in enumerate(contest.people):
        name = f"Zoë {number // 4}"
        forms = (name, f" {name}", f"{name}\t ", unicodedata.normalize("NFD", name))
        row["who"] = forms[number % 4]
    contest.save()
    table = build_catalog(contest.data(group="who"), contest.base)
    assert {"Zoë 0", "Zoë 1", "Zoë 2", None} == set(table["group"].to_pylist())


def test_the_rule_of_names_groups_the_test_photos_too(contest):
    rule = {"from": "name", "pattern": "^(?P<group>.)"}
    table = build_catalog(contest.data(group=rule), contest.base)
    of = dict(zip(table["sample_id"].to_pylist(), table["group"].to_pylist(), strict=True))
    assert "a" == of["test/a.jpg"]


# labels


def test_photos_without_a_label_are_left_out_by_one_line(contest):
    contest.people[3]["gender"] = ""
    contest.people[4]["gender"] = "unknown"
    contest.save()
    with pytest.raises(DataError, match=r"data\.labels\.gender.*8 of 48 .*`unlabelled: leave_out`"):
        build_catalog(contest.data(), contest.base)
    table = build_catalog(contest.data(unlabelled="leave_out"), contest.base)
    lost = [status for status in table["status"].to_pylist() if status != "ok"]
    empty = "left out: no class of gender: the value is empty"
    unknown = "left out: no class of gender: value 'unknown' is none of male, female"
    assert [4, 4] == [lost.count(empty), lost.count(unknown)]
    assert 54 - 8 == len(table) - len(lost)


def test_a_key_does_not_change_by_a_field_that_came_later(contest):
    assert "unlabelled" not in contest.data().model_dump()
    assert "leave_out" == contest.data(unlabelled="leave_out").model_dump()["unlabelled"]


def test_na_is_a_class_where_the_spec_says_so(contest):
    for number, row in enumerate(contest.people):
        row["gender"] = ("NA", "null")[number % 2]
    contest.save()
    label = GENDER | {"classes": ["NA", "null"]}
    rows = read_rows(contest.data(labels={"gender": label}), contest.base)
    assert "gender: NA 24, null 24" in summary(contest.data(labels={"gender": label}), rows)


# answers


def test_answers_of_one_class_are_called_placeholders(contest):
    contest.tests = [row | {"ans": 7} for row in contest.tests]
    contest.save()
    text = placeholder(contest.data(), contest.base)
    assert "all 6 answers of info.csv are one class (incorrect/male/30-59): a placeholder" in text
    contest.tests[0]["ans"] = 8
    contest.save()
    assert placeholder(contest.data(), contest.base) is None
    assert placeholder(contest.data(test={"root": "eval"}), contest.base) is None


def test_answers_may_stand_in_a_column_per_label(contest):
    ages = (20, 30, 59, 60, 61, 10)
    for row, age in zip(contest.tests, ages, strict=True):
        row |= {"sex": "female", "years": age}
    contest.save()
    test = {"root": "eval", "label": ["sex", "years"]}
    data = contest.data(labels={"gender": GENDER, "age": AGE}, test=test)
    expected = [3 + code for code in (0, 1, 1, 2, 2, 0)]
    assert expected == [read_answers(data, contest.base)[f"{name}.jpg"] for name in "cabfed"]
    data = contest.data(test={"root": "eval", "label": ["sex", "years"]})
    with pytest.raises(DataError, match=r"one per label \(mask, gender, age\) was required"):
        read_answers(data, contest.base)


def test_answers_with_gaps_of_a_spreadsheet_are_whole_numbers(contest):
    contest.tests = [row | {"ans": f"{row['ans']}.0"} for row in contest.tests]
    contest.save()
    assert [0, 1, 2, 3, 4, 5] == sorted(read_answers(contest.data(), contest.base).values())


def test_the_same_row_twice_is_called_that(contest):
    folder = {"layout": "table", "root": "eval", "table": "info.csv", "path": "ImageID"}
    labels = {"ans": {"from": "column", "column": "ans", "classes": list("012345")}}
    data = contest.data(source=folder, test=None, labels=labels, group="sample_id")
    write_csv(contest.base / "eval/info.csv", [*contest.tests, contest.tests[2]])
    with pytest.raises(
        DataError, match=r"1 are there twice \(the same row stands there again\): 'b"
    ):
        read_rows(data, contest.base)
    write_csv(contest.base / "eval/info.csv", [*contest.tests, contest.tests[2] | {"ans": 5}])
    with pytest.raises(DataError, match=r"1 are there twice \(with other cells for 'b\.jpg'\)"):
        read_rows(data, contest.base)


def test_a_folder_without_a_table_may_be_the_test_set(contest):
    for number, name in enumerate(("x/1.jpg", "x/y/2.png", "3.tif")):
        contest.photo(f"more/new/{name}", 300 + number)
    contest.photo("more/new/.hidden.jpg", 1)
    contest.photo("more/new/notes.txt", 1)
    test = {"root": "more", "images": "new", "layout": "folder"}
    table = build_catalog(contest.data(test=test), contest.base)
    names = [name for name in table["sample_id"].to_pylist() if name.startswith("test/")]
    assert ["test/3.tif", "test/x/1.jpg", "test/x/y/2.png"] == names
    with pytest.raises(ValidationError, match="layout folder has no labels"):
        contest.data(test=test | {"label": "folder"})


def test_class_folders_may_be_the_test_set(contest):
    for number, kind in enumerate(("male", "female", "female")):
        contest.photo(f"more/val/{kind}/{number}.jpg", 300 + number)
    contest.photo("more/val/stray.jpg", 1)
    test = {"root": "more", "images": "val", "layout": "class_folders", "label": "folder"}
    data = contest.data(labels={"gender": GENDER}, test=test)
    expected = {"male/0.jpg": 0, "female/1.jpg": 1, "female/2.jpg": 1}
    assert expected == read_answers(data, contest.base)
    assert 3 == len(order_of_test_photos(data, contest.base, build_catalog(data, contest.base)))
    contest.photo("more/val/other/9.jpg", 1)
    with pytest.raises(DataError, match=r"1 have none: test/other/9\.jpg: 'other'"):
        read_answers(data, contest.base)


@pytest.mark.parametrize(
    ("column", "one", "many"),
    [
        ("person", "person", "people"),
        ("plant_id", "plant", "plants"),
        ("ProductID", "product", "products"),
        ("patient", "patient", "patients"),
        ("family no", "family", "families"),
        ("mother.box", "mother box", "mother boxes"),
        ("id", "group", "groups"),
        ("sample_id", "group", "groups"),
        ("part in the name of the photo", "group", "groups"),
        ("plant in the name of the photo", "plant", "plants"),
        ("folder of the photo", "group", "groups"),
        ("사람", "group", "groups"),
    ],
)
def test_a_group_is_called_what_its_column_says(column, one, many):
    assert group_words(column) == (one, many)
    assert group_words(column).Many[0].isupper()
