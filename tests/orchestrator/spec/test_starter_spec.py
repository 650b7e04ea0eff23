"""`init` writes a spec that `check` accepts, or says in a sentence what is missing."""

import csv
import io
import itertools

import pytest
from click.testing import CliRunner

from orchestrator.cli import main

TABLE = "path,person,kind,age\n" + "".join(
    f"{number}.jpg,p{number // 2},{'cat' if number // 2 % 2 else 'dog'},{20 + number}\n"
    for number in range(12)
)


@pytest.fixture
def folder(tmp_path):
    """A folder for photos, and `init` and `check` on it."""
    place = tmp_path / "photos"
    place.mkdir()
    return place


def add(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def add_table(place, rows, encoding="utf-8"):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    place.write_text(text.getvalue(), encoding=encoding)


def init(*arguments):
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def accepted(folder):
    """Write a spec for a folder, check it, and return its text."""
    out = folder.parent / "mine.yaml"
    written = init(folder, "--out", out)
    assert 0 == written.exit_code, written.output
    checked = CliRunner().invoke(main, ["check", str(out)])
    assert 0 == checked.exit_code, checked.output
    return out.read_text()


def printed(folder):
    """Return the spec that `init` prints."""
    done = init(folder)
    assert 0 == done.exit_code, done.output
    return done.output


def refused(folder):
    """Return the one sentence that `init` ends with."""
    done = init(folder)
    assert 2 == done.exit_code, done.output
    assert 1 == len(done.output.strip().splitlines())
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


# folders


def test_folders_of_classes_give_a_spec_that_check_accepts(folder):
    for name, number in itertools.product(("cat", "no", "Big dog", "꽃"), range(4)):
        add(folder, f"images/{name}/{number}.JPG")
    text = accepted(folder)
    assert 'classes: ["Big dog", cat, "no", "꽃"]' in text
    assert "root: photos" in text
    assert "#     images/cat/   4 photos" in text
    assert "group: sample_id" in text


def test_an_image_folder_is_read_where_it_is(folder):
    for name, number in itertools.product(("oak", "elm"), range(4)):
        add(folder, f"{name}/{number}.png")
    (folder / "labels.md").touch()
    text = accepted(folder)
    assert "source: {layout: class_folders, root: photos, images: " in text
    assert "classes: [elm, oak]" in text
    assert "unlabelled" not in text
    add(folder, "images/shot.png")
    assert "unlabelled: leave_out   # photos that have no class\n" in printed(folder)


@pytest.mark.parametrize(
    ("plant", "pattern"),
    [("plant {subject}", "^[^/]+/(?P<group>[^/]+)/"), ("{shared}", "^(?P<group>[^/]+/[^/]+)/")],
)
def test_folders_in_class_folders_are_the_groups(folder, plant, pattern):
    for subject, shot in itertools.product(range(12), range(3)):
        name = plant.format(subject=subject, shared=subject // 2)
        add(folder, f"{('dry', 'wet')[subject % 2]}/{name}/{shot}.jpg")
    text = accepted(folder)
    assert f'group: {{from: name, pattern: "{pattern}"}}' in text
    assert "36 photos in 12 groups of 3" in text
    assert "classes: [dry, wet]" in text


@pytest.mark.parametrize("beside", ["val", "valid", "test"])
def test_train_and_val_of_an_image_folder_are_source_and_test(folder, beside):
    for name, number in itertools.product(("oak", "elm"), range(4)):
        add(folder, f"train/{name}/{number}.png", f"{beside}/{name}/{number}.png")
    text = accepted(folder)
    assert "source: {layout: class_folders, root: photos, images: train}" in text
    test = f"test: {{layout: class_folders, root: photos, images: {beside}, label: folder}}"
    assert test in text


def test_a_test_folder_without_classes_has_no_labels(folder):
    for name, number in itertools.product(("oak", "elm"), range(4)):
        add(folder, f"train/{name}/{number}.png", f"test/{number}.tif")
    text = accepted(folder)
    assert "test: {layout: folder, root: photos, images: test}" in text
    assert "test/   4 photos for the test" in text


# groups


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("plant-{subject}_{shot}", "plant-(?P<group>[0-9]+)"),
        ("2026 plant {subject} view{shot}", "plant (?P<group>[0-9]+)"),
        ("P{subject}_{shot}", "^(?P<group>[^_]+)[_]"),
        ("{subject}.{shot}", "^(?P<group>[^.]+)[.]"),
        ("leaf_{subject}_b_{shot}", "leaf_(?P<group>[0-9]+)"),
        ("{subject}b-{shot}", "^(?P<group>[^-]+)[-]"),
    ],
)
def test_the_part_of_names_that_repeats_is_the_group(folder, name, pattern):
    for subject, shot in itertools.product(range(12), range(3)):
        stem = name.format(subject=subject, shot=shot)
        add(folder, f"images/{('dry', 'wet')[subject % 2]}/{stem}.jpg")
    text = accepted(folder)
    assert f'group: {{from: name, pattern: "{pattern}"}}' in text
    assert "# Groups: 36 photos in 12 groups of 3, by {from: name" in text


def test_folders_that_count_from_one_anew_have_groups_of_their_own(folder):
    for kind, subject, shot in itertools.product(("dry", "wet"), range(6), range(2)):
        add(folder, f"images/{kind}/plant{subject}_{shot}.jpg")
    text = accepted(folder)
    assert "24 photos in 12 groups of 2" in text
    assert "(?P<group>.*/.*plant[0-9]+)" in text


@pytest.mark.parametrize("name", ["{number}", "IMG_{number}", "{kind}_{number}", "DSC{number}"])
def test_numbers_of_photos_are_no_groups(folder, name):
    for number in range(24):
        kind = ("dry", "wet")[number % 2]
        add(folder, f"images/{kind}/{name.format(kind=kind, number=number)}.jpg")
    assert "  group: sample_id" in accepted(folder)


@pytest.mark.parametrize("column", ["plant", "plant_id", "patient", "product_id", "PatientID"])
def test_a_column_of_the_subjects_is_the_group_and_no_label(folder, column):
    rows = [["file", column, "state"]]
    for number in range(24):
        rows.append([f"{number}.jpg", f"P{100 + number // 3}", ("dry", "wet")[number // 3 % 2]])
        add(folder, f"images/{number}.jpg")
    add_table(folder / "data.csv", rows)
    text = accepted(folder)
    assert f"  group: {column} " in text
    assert f"column: {column}," not in text
    assert f"# Groups: 24 photos in 8 groups of 3, by {column}." in text


# tables


def test_a_table_gives_its_labels_bins_and_group(folder):
    (folder / "train.csv").write_text(TABLE)
    add(folder, *(f"images/{number}.jpg" for number in range(12)))
    text = accepted(folder)
    assert "kind: {from: column, column: kind, classes: [cat, dog]}" in text
    assert "age: {from: column, column: age, bins: [24, 28]}" in text
    assert "  group: person " in text


def test_profiles_give_a_label_of_the_stems(folder):
    for person, stem in itertools.product(("a", "b"), ("mask1", "mask2", "normal")):
        add(folder, f"images/{person}/{stem}.jpg")
    (folder / "train.csv").write_text("id,path\n1,a\n2,b\n")
    printed = init(folder)
    assert 0 == printed.exit_code
    assert 'photo: {from: stem, classes: {mask: "mask*", normal: normal}}' in printed.output
    assert "layout: profile_folders" in printed.output


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (list(range(8)), "classes: [0, 1, 2, 3, 4, 5, 6, 7]"),
        ([1, 2, 3], "classes: [1, 2, 3]"),
        ([-1, 1], "classes: [-1, 1]"),
        (["0.0", "1.0"], "classes: [0, 1]"),
        ([17, 23, 24, 35, 36, 48, 61, 77], "bins: [24, 48]"),
        (["true", "false"], 'classes: ["false", "true"]'),
        (["NA", "EU"], "classes: [EU, NA]"),
    ],
)
def test_ids_of_classes_stay_classes_and_amounts_are_cut(folder, values, rule):
    rows = [["image", "value"]]
    for number in range(48):
        add(folder, f"images/{number}.jpg")
        rows.append([f"{number}.jpg", values[number % len(values)]])
    add_table(folder / "train.csv", rows)
    assert rule in accepted(folder)


def test_a_contest_gives_its_train_table_and_the_form_of_its_submission(folder):
    train = [["image_id", "species"]]
    sample = [["image_id", "species"]]
    for number in range(18):
        add(folder, f"train/T{number}.jpg", f"test/X{number}.jpg")
        train.append([f"T{number}", ("fir", "oak", "elm")[number % 3]])
        sample.append([f"X{number}", "fir"])
    add_table(folder / "train.csv", train)
    add_table(folder / "sample_submission.csv", sample)
    add_table(folder / "test.csv", [row[:1] for row in sample])
    text = accepted(folder)
    assert "table: train.csv, path: image_id}" in text
    contest = "images: test, table: sample_submission.csv, id: image_id, answer: species"
    assert contest in text
    assert "sample_submission.csv   18 rows: image_id, species   (the form of the subm" in text


def test_missing_labels_and_classes_of_one_photo_are_left_out_by_a_line(folder):
    rows = [["photo", "tone"]]
    for number in range(20):
        add(folder, f"images/{number}.jpg")
        tone = "green" if number == 7 else ("red", "blue", "")[number % 3]
        rows.append([f"{number}.jpg", tone])
    add_table(folder / "t.csv", rows)
    text = accepted(folder)
    assert "classes: [blue, red]" in text
    assert "unlabelled: leave_out" in text
    assert "# Left out of tone: green (one group each)" in text
    assert "# Left out: 6 rows without tone" in text


def test_the_other_choice_names_the_labels_and_a_row_without_its_photo_is_left_out(folder):
    rows = [["photo", "colour", "category"]]
    for number in range(40):
        add(folder, f"images/{number}.jpg")
        colour = ("red", "blue", "")[number % 3]
        rows.append([f"{number}.jpg", colour, ("bag", "shoe")[number % 2]])
    (folder / "images/7.jpg").unlink()
    add_table(folder / "t.csv", rows)
    text = accepted(folder)
    assert "have no class; or `keep`: a photo without colour still trains category\n" in text
    assert "# Left out: 1 row without its photo\n" in text


def test_an_amount_that_differs_within_a_group_is_a_comment(folder):
    rows = [["photo", "plant", "kind", "price", "age"]]
    for number in range(24):
        add(folder, f"images/{number}.jpg")
        plant = number // 2
        rows.append(
            [f"{number}.jpg", plant, ("dry", "wet")[plant % 2], 7.5 + number, 20 + 3 * plant]
        )
    add_table(folder / "t.csv", rows)
    text = accepted(folder)
    assert "\n    age: {from: column, column: age, bins: " in text
    comment = "\n    #price: {from: column, column: price, bins: [15.5, 23.5]}   # remove the # to"
    assert comment in text
    assert "not used" not in text
    out = folder.parent / "mine.yaml"
    out.write_text(text.replace("    #price", "    price"))
    assert 0 == CliRunner().invoke(main, ["check", str(out)]).exit_code


NAMES = {
    "an index column": ([["", "path", "kind"]], "classes: [a, b]"),
    "a second index column": ([["", "Unnamed: 0", "path", "kind"]], "classes: [a, b]"),
    "numbers as names": ([["0", "1"]], 'c_1: {from: column, column: "1", classes: [a, b]}'),
    "odd names": ([["file name", "kind: x"]], 'kind__x: {from: column, column: "kind: x"'),
}


@pytest.mark.parametrize("name", NAMES)
def test_odd_columns_give_a_spec_that_check_accepts(folder, name):
    (header,), rule = NAMES[name]
    n_index = len(header) - 2
    rows = [header]
    for number in range(12):
        add(folder, f"images/{number}.jpg")
        rows.append([number] * n_index + [f"{number}.jpg", "ab"[number % 2]])
    add_table(folder / "TRAIN.CSV", rows)
    assert rule in accepted(folder)


def test_an_odd_folder_gives_a_name_that_a_spec_may_have(tmp_path):
    for number in range(8):
        add(tmp_path, f"_mask  photos (새)/images/{'ab'[number % 2]}/{number}.jpg")
    text = accepted(tmp_path / "_mask  photos (새)")
    assert "\nname: mask-photos\n" in text
    assert 'root: "_mask  photos (새)"' in text


# refusals


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        ([], None, "photos below it were required, found none"),
        (["images/a.jpg"], None, "one folder of photos per class was required"),
        (["images/x/a.jpg"], "path,kind\n", "at least one row was required"),
        (["images/a.jpg"], "path,kind\nb.jpg,cat\nc.jpg,dog\n", "none of them names the 1 photos"),
        (["images/1.jpg", "images/2.jpg"], "path,kind\n1.jpg,cat\n2.jpg,cat\n", "found path, kind"),
        (["images/a.jpg"], "path,kind\na.jpg,cat,x\n", "2 cells were required"),
        (["images/a.jpg"], "경로,종류\na.jpg,고양이\n", "it could be cp949"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(folder, names, table, message):
    add(folder, *names)
    if table is not None:
        encoding = "utf-8" if table.isascii() else "cp949"
        (folder / "train.csv").write_text(table, encoding=encoding)
    assert message in refused(folder)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    assert "a folder of photos was required" in refused(tmp_path / "gone")


def test_no_file_is_overwritten(folder, tmp_path):
    add(folder, *(f"images/{kind}/{number}.jpg" for kind in "ab" for number in range(3)))
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    assert 2 == init(folder, "--out", out).exit_code
    assert "mine" == out.read_text()
