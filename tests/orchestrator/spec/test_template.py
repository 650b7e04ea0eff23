"""`init` writes a spec that `check` accepts, or says in a sentence what is missing."""

import pytest
from click.testing import CliRunner

from orchestrator.cli import main

TABLE = "path,person,kind,age\n" + "".join(
    f"{number}.jpg,p{number // 2},{'cat' if number % 2 else 'dog'},{20 + number}\n"
    for number in range(12)
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos/images").mkdir(parents=True)
    return tmp_path / "photos"


def add_classes(folder, *names):
    for name in names:
        (folder / "images" / name).mkdir()
        for number in range(4):
            (folder / "images" / name / f"{number}.JPG").touch()


def init(*arguments):
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def test_folders_of_classes_give_a_spec_that_check_accepts(folder, tmp_path):
    add_classes(folder, "cat", "no", "Big dog")
    out = tmp_path / "mine.yaml"
    assert 0 == init(folder, "--out", out).exit_code
    assert 'classes: ["Big dog", cat, "no"]' in out.read_text()
    assert "root: photos" in out.read_text()
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert 0 == checked.exit_code, checked.output


def test_a_table_gives_its_labels_bins_and_group(folder, tmp_path):
    (folder / "train.csv").write_text(TABLE)
    for number in range(12):
        (folder / f"images/{number}.jpg").touch()
    out = tmp_path / "mine.yaml"
    assert 0 == init(folder, "--out", out).exit_code
    text = out.read_text()
    assert "kind: {from: column, column: kind, classes: [cat, dog]}" in text
    assert "age: {from: column, column: age, bins: [24, 28]}" in text
    assert "  group: person " in text
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert 0 == checked.exit_code, checked.output


def test_profiles_give_a_label_of_the_stems(folder):
    for person in ("a", "b"):
        (folder / "images" / person).mkdir()
        for stem in ("mask1", "mask2", "normal"):
            (folder / "images" / person / f"{stem}.jpg").touch()
    (folder / "train.csv").write_text("id,path\n1,a\n2,b\n")
    printed = init(folder)
    assert 0 == printed.exit_code
    assert 'photo: {from: stem, classes: {mask: "mask*", normal: normal}}' in printed.output
    assert "layout: profile_folders" in printed.output


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "one folder of photos per class was required"),
        ("path,kind\n", "rows were required, found none"),
        ("path,kind\n1.jpg,cat\n2.jpg,cat\n", "found path, kind"),
    ],
)
def test_a_folder_of_no_layout_is_refused(folder, table, message):
    if table is not None:
        (folder / "train.csv").write_text(table)
    refused = init(folder)
    assert 2 == refused.exit_code
    assert message in refused.output


def test_photos_elsewhere_are_refused(tmp_path):
    refused = init(tmp_path)
    assert 2 == refused.exit_code
    assert "photos below" in refused.output


def test_no_file_is_overwritten(folder, tmp_path):
    add_classes(folder, "cat", "dog")
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    assert 2 == init(folder, "--out", out).exit_code
    assert "mine" == out.read_text()
