"""Subgroups, likely wrong labels, confidence and the race, on the page and in `results`."""

import json
import shutil
from dataclasses import replace

import pytest

from orchestrator.report import caveats
from orchestrator.report.command_text.result_tables import ensemble_lines, render_results
from orchestrator.report.load import load
from orchestrator.report.page import build, render
from orchestrator.store.run_files.certificate import Certificate, CertifiedMember, Checkpoint
from orchestrator.store.run_files.diagnosis import LabelNoise, are_many
from orchestrator.store.run_files.scores import Score
from tests.orchestrator.report.fake_run import HOSTILE, write_run
from tests.orchestrator.report.test_report import Page

BOUNDS = {"low": 0.31, "high": 0.52, "n_groups": 6, "n_samples": 42}
SUBGROUPS = [
    {
        "column": "age",
        "value": "<30",
        "macro_f1": {"estimate": 0.417, "too_few_people": True, **BOUNDS},
        "accuracy": {"estimate": 0.639, **BOUNDS},
    },
    {"column": "camera", "value": HOSTILE, "macro_f1": {"estimate": 0.5, **BOUNDS}},
]
SUSPECT = {
    "group": "p07", "label": "age", "given": "<30", "suggested": ">=60", "confidence": 0.023,
    "suggested_confidence": 0.871, "margin": -0.848, "n_photos": 7, "n_photos_read_so": 6,
    "sample_ids": [HOSTILE, "train/1.jpg"],
}  # fmt: skip
NOISE = {
    "method": "confident learning", "n_suspects": 1, "n_groups": 1, "n_photos": 7,
    "macro_f1_without": {"estimate": 0.777, "low": 0.7, "high": 0.8}, "suspects": [SUSPECT],
}  # fmt: skip
CHANGE = {"before": 0.91, "after": 0.82, "low": -0.123, "high": -0.045}
CALIBRATION = [{"label": "age", "temperature": 1.57, "helps": True, "log_loss": CHANGE}]
STOPPED = {
    "setting": "feedf00d", "look": 1, "n_seeds": 1, "behind": "a1b2c3d4", "difference": -0.083,
    "p_value": 0.004, "p_adjusted": 0.032,
}  # fmt: skip
RACE = {
    "n_finalists": 5, "n_looks": 1, "n_looks_taken": 1, "n_trainings": 30, "n_saved": 3,
    "level": 0.1, "stopped": [STOPPED],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_run(tmp_path_factory.mktemp("runs") / "diagnosed")
    path = root / "selection.json"
    selection = json.loads(path.read_text())
    selection["ensemble"] |= {
        "subgroups": SUBGROUPS,
        "label_noise": NOISE,
        "calibration": CALIBRATION,
    }
    path.write_text(json.dumps(selection))
    (root / "certificate.json").write_text(json.dumps({"race": RACE, "statement": "It is so."}))
    return root


@pytest.fixture(scope="module")
def words(run):
    return Page(build(run).read_text()).words


def test_subgroups_are_shown_with_their_people(words):
    for text in ("Scores per subgroup", "0.417", "0.310 to 0.520", "0.639", "too few groups"):
        assert text in words
    assert "could not be drawn" not in words


def test_likely_wrong_labels_are_shown_with_their_person(words):
    assert "The models doubt the labels of 7 photos of 1 group." in words
    assert "Without these photos macro F1 is 0.777 (0.700 to 0.800), with them" in words
    for text in ("p07", ">=60", "0.02", "0.87", "confident learning", "suspects.csv"):
        assert text in words


def test_hostile_names_stay_text(run):
    html = build(run).read_text()
    assert "<script>alert" not in html


def test_the_temperature_is_shown_and_whether_it_is_used(words):
    for text in ("1.57", "−0.123 to −0.045", "makes confidences truer", "vote.calibrate is off"):
        assert text in words


def test_the_race_accounts_for_what_it_stopped(words):
    assert "1 of 5 were stopped, and 3 of 30 trainings were saved." in words
    for text in ("feedf00d", "−0.083", "0.032"):
        assert text in words


def test_results_lists_subgroups_and_counts_likely_wrong_labels(run):
    table = render_results(run, "table")
    assert "subgroups, out-of-fold" in table
    assert "0.310 to 0.520" in table
    assert json.loads(render_results(run, "json"))["ensemble"]["subgroups"] == SUBGROUPS
    assert "likely wrong labels: 7 photos of 1 group; see suspects.csv" in ensemble_lines(run)


def test_photos_of_one_class_show_their_recall_and_no_f1(run, tmp_path):
    root = tmp_path / "one"
    shutil.copytree(run, root)
    path = root / "selection.json"
    selection = json.loads(path.read_text())
    only = SUBGROUPS[0] | {"is_one_class": True}
    selection["ensemble"]["subgroups"] = [only, SUBGROUPS[1]]
    path.write_text(json.dumps(selection))
    recalls, scores = render_results(root, "table").split("subgroups, out-of-fold")
    recalls = recalls.partition("photos of one class, out-of-fold")[2]
    assert ("recall" in recalls, "macro_f1" in recalls, "0.639" in recalls) == (True, False, True)
    assert "<30" not in scores
    words = Page(build(root).read_text()).words
    assert "the share of them that the vote answers right" in words
    assert ("0.639" in words, "0.417" in words) == (True, False)


def test_a_run_of_an_older_version_has_none_of_it(tmp_path):
    page = Page(render(load(write_run(tmp_path / "old")))).words
    for heading in ("Scores per subgroup", "Likely wrong labels", "Race of the finalists"):
        assert heading not in page


def test_more_doubts_than_a_tenth_speak_against_the_models():
    of_all = Score(n_samples=100)
    assert not are_many(LabelNoise(n_photos=10), of_all)
    assert are_many(LabelNoise(n_photos=11), of_all)
    assert not are_many(LabelNoise(), of_all)
    assert not are_many(LabelNoise(n_photos=11), None)


def test_members_of_the_same_weights_are_named(tmp_path):
    """With so few epochs an option that acts by chance may never have acted."""
    run = load(write_run(tmp_path / "runs" / "masks-1a2b3c4d"))
    weights = (Checkpoint(weights_sha256="aa"), Checkpoint(weights_sha256="bb"))
    first = CertifiedMember(setting="first", checkpoints=weights)
    other = CertifiedMember(setting="other", checkpoints=weights[:1])
    certificate = Certificate(members=(first, other))
    assert not caveats._equal_members(replace(run, certificate=certificate))
    twin = CertifiedMember(setting="twin", checkpoints=weights)
    certificate = Certificate(members=(first, other, twin))
    (finding,) = caveats._equal_members(replace(run, certificate=certificate))
    assert "members first and twin have the same weights" in finding.what
