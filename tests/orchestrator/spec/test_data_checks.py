"""`check` opens the tables: what is wrong with the data is told with its line, before any work."""

import csv
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from tests.data_prep.conftest import jpeg

SPEC = """\
name: leaves
data:
  source: {{layout: table, root: set, table: t.csv, path: photo, images: photos}}
  labels:
    state: {{from: column, column: state, classes: {classes}}}
  group: {group}
  split: {{val: 0.25}}
{more}
confirm: {{finalists: 1, seeds: [0], folds: {folds}}}
"""


@pytest.fixture
def leaves(tmp_path):
    """Nine plants with two photos each, dry or wet; a function that checks a spec about them."""
    (tmp_path / "set/photos").mkdir(parents=True)
    rows = []
    for number in range(18):
        name = f"leaf{number}.jpg"
        (tmp_path / "set/photos" / name).write_bytes(jpeg(number))
        plant = f"plant {number // 2}"
        rows.append({"photo": name, "plant": plant, "state": ("dry", "wet")[number // 2 % 2]})

    def check(*arguments, rows=rows, classes="[dry, wet]", group="plant", folds=3, more=""):
        with (tmp_path / "set/t.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = SPEC.format(classes=classes, group=group, folds=folds, more=more)
        (tmp_path / "s.yaml").write_text(text)
        return CliRunner().invoke(main, ["check", str(tmp_path / "s.yaml"), *arguments])

    check.rows = rows
    return check


def test_sound_data_are_summed_up(leaves):
    checked = leaves()
    assert 0 == checked.exit_code, checked.output
    assert "18 photos in 9 groups of 2 (data.group: plant)" in checked.output
    assert "state: dry 10, wet 8" in checked.output


@pytest.mark.parametrize(
    ("changes", "line", "text"),
    [
        ({"group": "plnat"}, 6, "found 'plnat'; columns are photo, plant, state .* mean 'plant'"),
        ({"classes": "[dry, moist]"}, 5, "8 of 18 have not: leaf2.jpg: value 'wet' is none of dry"),
        ({"classes": "[dry, wet, dead]"}, 5, "none of dead .dry 10, wet 8, dead 0"),
        (
            {"classes": "[dry]"},
            5,
            "two classes or more were required, found .*nothing to tell apart",
        ),
        ({"folds": 12}, 9, "found 9 groups for 12 folds; set confirm.folds: 9 or less"),
        ({"group": "{from: name, pattern: 'p(?P<group>.)'}"}, 6, "18 have none: leaf0.jpg"),
        ({"more": "variants: {a: {data.exclude: [{stat: dry}]}}"}, 3, "'stat'; there are photo,"),
    ],
)
def test_what_a_later_stage_would_refuse_is_told_with_its_line(leaves, changes, line, text):
    checked = leaves(**changes)
    assert 2 == checked.exit_code
    assert f"s.yaml:{line}:" in checked.output
    flat = " ".join(checked.output.split())
    assert re.search(text, flat), flat


def test_a_class_of_one_group_is_told_with_what_helps(leaves):
    rows = [dict(row) for row in leaves.rows]
    rows[3]["state"] = "dead"
    checked = leaves(rows=rows, classes="[dry, wet, dead]")
    assert 2 == checked.exit_code
    assert "class dead has 1 photo(s) of one group" in checked.output
    assert "data.unlabelled: leave_out" in checked.output
    leave_out = leaves("--set", "data.unlabelled=leave_out", rows=rows)
    assert 0 == leave_out.exit_code, leave_out.output
    assert "1 file is left out, such as: no class of state" in leave_out.output


def test_photos_that_lack_a_label_are_counted_with_the_heads_that_need_all(leaves):
    rows = [row | {"size": ("small", "large")[int(row["photo"][4:-4]) % 2]} for row in leaves.rows]
    rows[2]["size"] = ""
    more = "train: {model: {backbone: resnet18}}\nvariants:\n  a: {}\n  b: {train.model.head: deep}"
    labels = "[dry, wet]}\n    size: {from: column, column: size, classes: [small, large]"
    checked = leaves("--set", "data.unlabelled=keep", rows=rows, classes=labels, more=more)
    assert 0 == checked.exit_code, checked.output
    assert (
        "photos that lack a label: 1 (size 1). They train the labels they have;" in checked.output
    )
    assert (
        "variant `a`: its head answers all labels at once, so the photo that lacks a label does not "
        "train it; use head shallow or deep"
    ) in checked.output
    more += "\n"
    held_out = leaves(
        *("--set", "data.unlabelled=keep", "--set", "data.test={hold_out: 0.3}"),
        rows=rows,
        classes=labels,
        more=more,
        folds=2,
    )
    assert 0 == held_out.exit_code, held_out.output
    assert "except those whose group is in the test set, which are left out;" in held_out.output


def test_rows_without_their_file_are_named_and_left_out_unless_they_are_many(leaves, tmp_path):
    (tmp_path / "set/photos/leaf4.jpg").unlink()
    checked = leaves()
    assert 0 == checked.exit_code, checked.output
    assert (
        "row 6 of t.csv names leaf4.jpg, which is not in photos/ (1 of 18); left" in checked.output
    )
    assert "17 photos in 9 groups" in checked.output
    assert "1 file is left out, such as: the file is missing" in checked.output
    (tmp_path / "set/photos/leaf9.jpg").unlink()
    checked = leaves()
    assert 2 == checked.exit_code
    flat = " ".join(checked.output.split())
    assert "names leaf4.jpg, which is not in photos/ (2 of 18; also row 11: leaf9.jpg)" in flat


def test_a_table_of_one_class_is_one_sentence(leaves):
    rows = [row | {"state": "dry"} for row in leaves.rows]
    checked = leaves(rows=rows)
    assert 2 == checked.exit_code
    assert "two classes or more were required, found 18, all of class dry; add" in checked.output


def test_looking_at_tables_imports_nothing_heavy():
    code = (
        "import sys, orchestrator.spec.data_checks; "
        "print([name for name in ('numpy', 'pyarrow', 'PIL', 'torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_one_group_is_one_sentence(leaves):
    rows = [row | {"plant": "p"} for row in leaves.rows]
    checked = leaves(rows=rows)
    assert "at least 2 groups were required for training and validation, found 1" in checked.output


def test_offline_looks_at_no_data(leaves, tmp_path):
    (tmp_path / "set/photos").rename(tmp_path / "elsewhere")
    missing = leaves()
    assert 2 == missing.exit_code
    assert "name the folder below the root in data.source.images" in missing.output
    assert 0 == leaves("--offline").exit_code


def test_wrong_and_doubtful_answers_are_told(leaves, tmp_path):
    test = (
        "\n  test: {root: set, images: photos, table: a.csv, id: photo, label: ans}\n  exclude: []"
    )
    answers = tmp_path / "set/a.csv"
    answers.write_text("photo,ans\n" + "".join(f"leaf{number}.jpg,dry\n" for number in range(9)))
    spec_of = {"more": "resources: {}"}
    checked = leaves(**spec_of)
    assert "placeholder" not in checked.output
    text = (
        (tmp_path / "s.yaml")
        .read_text()
        .replace("  split: {val: 0.25}", f"  split: {{val: 0.25}}{test}")
    )
    (tmp_path / "s.yaml").write_text(text)
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "s.yaml")])
    assert 0 == checked.exit_code, checked.output
    assert (
        "all 9 answers of a.csv are one class (dry): a placeholder of a contest?" in checked.output
    )
    answers.write_text("photo,ans\nleaf0.jpg,drie\n")
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "s.yaml")])
    assert 2 == checked.exit_code
    assert "data.test.label: a class from 0 to 1" in checked.output
