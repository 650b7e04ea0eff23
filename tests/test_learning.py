"""Learning is real: the quickstart beats guessing by far, and shuffled labels teach nothing."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.sample.portrait_data_set import build

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared/data"
pytestmark = [pytest.mark.ray, pytest.mark.models, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory, new_workplace):
    """The quickstart's folder, run once."""
    work = new_workplace(tmp_path_factory.mktemp("learning"))
    build(work.root / "data/sample", 40, jobs=2)
    (work.root / "experiments").mkdir()
    shutil.copy(ROOT / "experiments/quickstart.yaml", work.spec)
    code, _, said = work.submit()
    assert 0 == code, said
    return work


def ensemble(work):
    return json.loads((work.runs()[-1] / "selection.json").read_text())["ensemble"]


def test_the_quickstart_reads_what_guessing_does_not(place):
    test = ensemble(place)["test"]
    assert (
        test["macro_f1"]["estimate"] > 0.2
    )  # the true class shares give 0.06, the mask state alone 0.17
    assert test["macro_f1_mask"] > 0.85
    trials = json.loads((place.runs()[-1] / "summary.json").read_text())["trials"]
    assert trials["complete"] + trials["pruned"] >= 6 + 6


def test_shuffled_labels_teach_nothing(place):
    """Each photo keeps its person and gets the three labels of a random other one; prepared photos are reused."""
    root = place.root / "data/sample/train"
    people = list(csv.DictReader((root / "train.csv").open()))
    rows = [
        (
            f"{person['path']}/{photo.name}",
            person["id"],
            photo.stem.rstrip("12345"),
            person["gender"],
            person["age"],
        )
        for person in people
        for photo in sorted((root / "images" / person["path"]).iterdir())
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    with (root / "shuffled.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "id", "mask", "gender", "age"])
        writer.writerows(
            [*row[:2], *rows[other][2:]] for row, other in zip(rows, order, strict=True)
        )
    place.change(
        (
            "{layout: profile_folders, root: ../data/sample/train, table: train.csv}",
            "{layout: table, root: ../data/sample/train, table: shuffled.csv}",
        ),
        (
            '{from: stem, classes: {wear: "mask*", incorrect: "incorrect_mask", not_wear: "normal"}}',
            "{from: column, column: mask, classes: [mask, incorrect_mask, normal]}",
        ),
        ("trials: 3", "trials: 1"),
        ("duration: 4 epochs", "duration: 3 epochs"),
        ("name: quickstart", "name: shuffled"),
    )
    code, outcomes, said = place.submit()
    assert (0, "CACHED") == (code, outcomes["prepare"]), said
    assert ensemble(place)["oof"]["macro_f1"]["high"] < 0.10


@pytest.mark.skipif(
    not (DATA / "build.py").is_file(), reason="the real portraits are not beside this checkout"
)
def test_the_same_path_runs_on_real_portraits(tmp_path, new_workplace):
    work = new_workplace(tmp_path)
    (tmp_path / "experiments").mkdir()
    text = (ROOT / "experiments/portraits.yaml").read_text()
    work.spec.write_text(
        text.replace("duration: 5 epochs", "duration: 2 epochs").replace("folds: 3", "folds: 2")
    )
    subprocess.run(
        [
            sys.executable,
            DATA / "build.py",
            "--people",
            "36",
            "--size",
            "192x256",
            "--out",
            tmp_path / "data/portraits",
        ],
        check=True,
        capture_output=True,
    )
    code, _, said = work.submit()
    assert 0 == code, said
    n_photos = len((tmp_path / "data/portraits/eval/info.csv").read_text().split()) - 1
    test = ensemble(work)["test"]["macro_f1"]
    assert (n_photos, True) == (test["n_samples"], test["low"] <= test["estimate"] <= test["high"])
