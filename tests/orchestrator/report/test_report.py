"""The report: it says what the run's files say, survives what they lack, and hides nothing behind a name."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.ensemble.certificate_text import statement
from orchestrator.report import charts, confusion_matrices, models_section, page
from orchestrator.report.load import load
from orchestrator.report.page import build
from orchestrator.report.search_section import association
from orchestrator.stages.certificate import whom
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.records import as_record
from tests.orchestrator.report.fake_run import (
    HOSTILE,
    SCHEMA,
    SETTINGS,
    reference_macro_f1,
    reference_vote,
    without_val,
    write_run,
)

OPTIONAL_FILES = ("summary.json", "test_labels.parquet")
NEEDED_FILES = (
    "selection.json",
    "hypotheses.json",
    "audit.json",
    "resolved.yaml",
    "events.jsonl",
    "trials.parquet",
    "curves.parquet",
    "folds.parquet",
    "predictions.parquet",
    "votes.parquet",
)
VOID = {"meta", "rect", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Collects visible text, tags and attributes, and checks that elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))

    def values(self, name: str) -> list[str | None]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("store") / "runs" / "masks-1a2b3c4d")


@pytest.fixture(scope="module")
def html(run):
    return build(run).read_text(encoding="utf-8")


def copy_without(run: Path, place: Path, *names: str) -> Path:
    place.mkdir(parents=True)
    for path in run.iterdir():
        if path.is_file() and path.name not in names:
            (place / path.name).write_bytes(path.read_bytes())
    return place


def test_elements_nest_and_ids_are_unique(html):
    found = Page(html)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in found.values("href")} <= set(ids)
    assert "could not be drawn" not in found.words


def test_headline_numbers_come_from_selection_json(run, html):
    selection = json.loads((run / "selection.json").read_text())
    words = Page(html).words
    for side in ("oof", "test"):
        score = selection["ensemble"][side]["macro_f1"]
        assert f"{score['estimate']:.3f}" in words
        assert f"90 % interval {score['low']:.3f} to {score['high']:.3f}" in words
    assert "48 groups (id), 336 photos" in words
    assert "too narrow" in words
    assert all(setting in words for setting in selection["members"])


def test_only_photos_of_role_val_are_left_out_where_a_group_is_on_both_sides():
    names = ["a1", "a2", "b1", "c1", "c2"]
    predictions = pa.table({"variant": ["x"] * 5, "sample_id": names})
    groups = [name[0] for name in names]

    def kept(*roles):
        columns = {"variant": ["x"] * 5, "sample_id": names, "group": groups, "role": roles}
        return confusion_matrices.without_val(predictions, pa.table(columns))[
            "sample_id"
        ].to_pylist()

    assert ["a1", "b1", "c1", "c2"] == kept("train", "val", "train", "train", "train")
    assert ["b1", "c1", "c2"] == kept("excluded", "val", "train", "train", "train")
    assert names == kept(*["train"] * 5)


def test_every_verdict_is_shown_with_its_claim(run, html):
    words = Page(html).words
    for row in json.loads((run / "hypotheses.json").read_text()):
        assert f"{row['claim']}{row['verdict']}" in words


def test_scores_per_class_equal_a_slow_vote_over_the_same_predictions(run):
    members = list(SETTINGS[:3])
    rows = [
        row
        for row in pq.read_table(run / "predictions.parquet").to_pylist()
        if row["setting"] in members
    ]
    rows = without_val(rows)
    targets = {row["sample_id"]: row["target"] for row in rows}
    expected = reference_vote(rows, members)
    found = load(run).answers["oof"]
    assert expected == dict(zip(found.sample_ids, found.preds.tolist(), strict=True))
    wanted = reference_macro_f1([targets[s] for s in expected], list(expected.values()))
    view = models_section.classes(load(run))
    assert [] == view["mismatch"]
    (out_of_fold, _) = view["totals"]
    assert out_of_fold.macro_f1 == pytest.approx(wanted)


def test_test_scores_are_joined_by_id_not_by_position(run):
    shuffled = pq.read_table(run / "test_labels.parquet")
    shuffled = shuffled.take(np.random.default_rng(3).permutation(len(shuffled)))
    a, b = (
        load(run).answers["test"],
        confusion_matrices.labelled_answers(pq.read_table(run / "votes.parquet"), shuffled),
    )
    assert a.targets.tolist() == b.targets.tolist()


def test_a_difference_between_selection_and_predictions_is_said(run, tmp_path):
    copy = copy_without(run, tmp_path / "changed")
    selection = json.loads((copy / "selection.json").read_text())
    selection["ensemble"]["oof"]["macro_f1"]["estimate"] = 0.111
    (copy / "selection.json").write_text(json.dumps(selection))
    assert (
        "selection.json says macro F1 0.111, the predictions give"
        in Page(build(copy).read_text()).words
    )


def test_hostile_names_are_text_and_never_markup(run, html):
    assert "<script>alert" not in html
    assert HOSTILE.encode() not in html.encode()
    assert "\u202e" not in html
    found = Page(html)
    assert "\\u202e" in found.words
    assert '<script>alert("x")</script>' in found.words
    assert "<b>at</b>" not in html
    assert "loss is nan <b>at</b> lr 0.01" in found.words
    assert html.count("<script") == 1


def test_lone_surrogates_of_file_names_do_not_break_the_page(run, tmp_path):
    copy = copy_without(run, tmp_path / "surrogates")
    audit = {
        "warnings": [
            {
                "what": "photos cannot be read \udcff\x00",
                "n": 1,
                "examples": ["train/\udcff\x1b.jpg"],
                "do": "",
            }
        ]
    }
    (copy / "audit.json").write_text(json.dumps(audit))
    found = Page(build(copy).read_text(encoding="utf-8"))
    assert "train/\\udcff\\u001b.jpg" in found.words


def test_arms_that_exclude_different_photos_are_said_to(run, tmp_path):
    copy = copy_without(run, tmp_path / "excluded")
    rows = json.loads((copy / "hypotheses.json").read_text())
    rows[0] |= {"n_samples": 300, "n_left_out": 36}
    (copy / "hypotheses.json").write_text(json.dumps(rows))
    selection = json.loads((copy / "selection.json").read_text())
    for candidate in selection["candidates"]:
        left_out = 36 if candidate["variant"] == "single" else 0
        candidate |= {"n_samples": 300, "n_left_out": left_out}
    (copy / "selection.json").write_text(json.dumps(selection))
    words = Page(build(copy).read_text(encoding="utf-8")).words
    assert (
        "the arms exclude different photos; they are compared on the 300 photos that both keep, "
        "36 are left out" in words
    )
    assert (
        words.count(
            "The arms exclude different photos: all are compared on the 300 photos that every arm "
            "keeps."
        )
        == 1
    )


def test_a_histogram_has_a_bar_per_value_and_a_line_per_border():
    drawing = charts.histogram([3, 0, 5], 18.0, 1.0, [(20.0, "border")], title="age")
    assert drawing.count("<rect") == 3
    assert "18: 3" in drawing
    assert "border 20" in drawing
    assert drawing.count('class="reference"') == 1


def test_nothing_is_loaded_from_elsewhere(html):
    found = Page(html)
    assert found.values("src") == []
    assert all(link.startswith("#") for link in found.values("href"))
    assert "url(" not in html
    assert "@import" not in html
    policy = next(value for value in found.values("content") if "default-src" in value)
    assert "default-src 'none'" in policy
    assert "sha256-" in policy


@pytest.mark.parametrize("name", NEEDED_FILES)
def test_a_missing_file_gives_a_sentence(run, tmp_path, name):
    copy = copy_without(run, tmp_path / "less", name)
    words = Page(build(copy).read_text(encoding="utf-8")).words
    assert "could not be drawn" not in words
    assert f"files of the run are missing: {name}" in words


@pytest.mark.parametrize("name", OPTIONAL_FILES)
def test_an_optional_file_may_be_missing(run, tmp_path, name):
    copy = copy_without(run, tmp_path / "less", name)
    words = Page(build(copy).read_text(encoding="utf-8")).words
    assert "could not be drawn" not in words
    assert name not in words


@pytest.mark.parametrize("name", [*NEEDED_FILES, *OPTIONAL_FILES])
def test_a_torn_file_gives_a_sentence(run, tmp_path, name):
    copy = copy_without(run, tmp_path / "torn")
    raw = (copy / name).read_bytes()
    (copy / name).write_bytes(raw[: len(raw) // 2])
    words = Page(build(copy).read_text(encoding="utf-8")).words
    assert "could not be drawn" not in words
    is_read_line_by_line = name in {"events.jsonl", "resolved.yaml"}
    assert is_read_line_by_line or f"{name} could not be read" in words


def test_an_empty_folder_gives_a_page(tmp_path):
    words = Page(build(tmp_path).read_text(encoding="utf-8")).words
    assert "could not be drawn" not in words
    assert "No trials" in words
    assert "RUNNING" in words


@pytest.mark.parametrize(
    "value",
    [None, [], "x", 3, {"members": "x", "candidates": [1, {}], "ensemble": {"oof": [], "test": 4}}],
)
def test_a_selection_of_another_shape_is_survived(run, tmp_path, value):
    copy = copy_without(run, tmp_path / "odd")
    (copy / "selection.json").write_text(json.dumps(value))
    assert "could not be drawn" not in build(copy).read_text(encoding="utf-8")


def test_the_gain_that_is_shown_is_the_measured_one_and_one_member_has_none(run, tmp_path):
    """A candidate's score is averaged over seeds, a member answers by the mean of its seeds: their difference is none."""
    selection = json.loads((run / "selection.json").read_text())
    gain = {"over": SETTINGS[0], "difference": 0.0123, "low": -0.0044, "high": 0.0312}
    for name, found, said in (("two", gain, True), ("one", None, False)):
        copy = copy_without(run, tmp_path / name)
        (copy / "selection.json").write_text(
            json.dumps({**selection, "ensemble": {**selection["ensemble"], "gain": found}})
        )
        words = Page(build(copy).read_text(encoding="utf-8")).words
        assert said == (
            "Over its best member alone the vote gains +0.012 (−0.004 to +0.031)." in words
        )
        assert said == ("best member alone" in words)


def test_without_test_labels_there_is_no_test_score(tmp_path):
    words = Page(
        build(write_run(tmp_path / "run", test_labels=False)).read_text(encoding="utf-8")
    ).words
    assert "No test labels: no test score" in words
    assert "on the test set it reached" not in words


def test_the_state_is_known_before_the_summary_is_written(run, tmp_path):
    copy = copy_without(run, tmp_path / "live", "summary.json")
    assert page.result_section.state(load(copy)) == "SUCCEEDED"
    with (copy / "events.jsonl").open("a") as ledger:
        ledger.write(
            json.dumps(
                {"event": "stage", "stage": "vote", "outcome": "FAILED", "note": "disk full"}
            )
            + "\n"
        )
    assert page.result_section.state(load(copy)) == "FAILED"


def certified(run, place, *, equal=True):
    """Add a certificate and the two halves of a test set to a run."""
    copy = copy_without(run, place)
    selection = json.loads((copy / "selection.json").read_text())
    bounds = {"low": 0.5, "high": 0.7, "n_groups": 48, "n_samples": 336, "too_narrow": False}
    ensemble = selection["ensemble"]
    ensemble["public"] = {"part": "public", "macro_f1": {**bounds, "estimate": 0.6543}}
    ensemble["board"] = [
        {
            "who": who,
            "public_macro_f1": 0.6543,
            "public_accuracy": 0.7,
            "private_macro_f1": 0.6421,
            "private_accuracy": 0.71,
        }
        for who in ("ensemble", SETTINGS[0])
    ]
    ensemble["marginal"] = [
        {
            "setting": SETTINGS[0],
            "votes": 2,
            "macro_f1": 0.6,
            "adds": {"difference": 0.0123, **bounds},
        }
    ]
    (copy / "selection.json").write_text(json.dumps(selection))
    made = {
        "members": [{"setting": SETTINGS[0], "variant": HOSTILE, "votes": 2, "settings": {"train": {"lr": 0.5}},
                     "checkpoints": [{"trial_id": "c-1", "seed": 3, "fold": 2, "git_commit": None, "weights_sha256": "ab" * 32}]}],
        "estimate": {"on": "out-of-fold predictions", "of": "groups (group: id) it has never seen", "macro_f1": {**bounds, "estimate": 0.6321}, "calibration_error": 0.0456},
        "corrected": {**bounds, "estimate": 0.6222, "n_candidates": 5},
        "test": {"part": "private", "macro_f1": {**bounds, "estimate": 0.6111, "too_narrow": True}},
        "gap": {"estimate_minus_test": 0.021, "corrected_minus_test": 0.011, "test_is_inside_the_interval": True},
        "gain": {"over": SETTINGS[0], **bounds, "difference": 0.0333},
        "policy": "robust",
        "race": {"n_finalists": 5, "stopped": [{"setting": "x"}], "n_saved": 6, "n_trainings": 30, "level": 0.1},
        "kept": {"n_photos": 3, "macro_f1": {**bounds, "estimate": 0.64}},
        "lost": {"n_photos": 12, "macro_f1": {**bounds, "estimate": 0.62}},
        "findings": ["an audit finding"],
        "worst_classes": [{"name": "wear/male/<30", "f1": 0.11, "recall": 0.1, "precision": 0.12, "n": 9}],
        "worst_groups": [{"group": HOSTILE, "accuracy": 0.25, "n": 8}],
        "looked_at": [{"what": "private test labels", "times": 1, "why": "scored the vote"}],
        "data": {"catalog_sha256": "cd" * 32, "n_test_lost": 2},
        "splits": {"a": {"sha256": "ef" * 32}, "b": {"sha256": "ef" * 32}},
        "check": {"equal": equal, "n_photos": 8, "max_difference": 1e-6, "why": "" if equal else "c-1: a probability differs by 0.5"},
    }  # fmt: skip
    (copy / "certificate.json").write_text(
        json.dumps({**made, "statement": statement(as_record(Certificate, made))})
    )
    return copy


def test_the_certificate_is_shown_and_has_a_page_of_its_own(run, tmp_path):
    copy = certified(run, tmp_path / "certified")
    whole, alone = (
        Page(build(copy).read_text()),
        Page((copy / "report/certificate.html").read_text()),
    )
    for words in (whole.words, alone.words):
        for said in ("0.632", "0.622", "0.611", "0.6543", "0.6421", "wear/male/<30", "ab" * 32, "cd" * 32, "ef" * 32,
                     "+0.033 macro F1 over the best member", "private half of the test set", "0 is inside the interval", "2 votes", "stopped early: 1 of 5 finalists",
                     "12 photos that preparation lost", "3 photos that the spec keeps out", "an audit finding",
                     "2 lost photos got"):  # fmt: skip
            assert said in words
        assert "could not be drawn" not in words
        assert "groups (group: id) it has never seen" in words
        assert (
            "The interval of a claim also covers the luck of training, where there are two seeds."
            in words
        )
    assert "2 photos were lost" in whole.words
    assert HOSTILE not in alone.words
    assert "with it minus without it" in whole.words
    assert (
        "p and interval cover which groups were photographed and, with two seeds or five folds, the luck of training"
        in whole.words
    )
    assert "Learning curves" not in alone.words


@pytest.mark.parametrize(
    ("group", "strategies", "confirmed", "whose", "verb"),
    [
        (
            "id",
            {"profile", "balanced_profile"},
            True,
            "groups (group: id) it has never seen",
            "is expected to reach",
        ),
        (
            "id",
            {"profile", "random"},
            True,
            "photos it has never seen, of groups it may have seen",
            "expected",
        ),
        (
            "sample_id",
            {"profile"},
            True,
            "photos it has never seen, of subjects it may have seen",
            "expected",
        ),
        (
            "id",
            {"profile"},
            False,
            "the photos that chose it (role val)",
            "member reached macro F1 0.632",
        ),
    ],
)
def test_new_people_are_promised_only_where_the_estimate_rests_on_them(
    run, tmp_path, group, strategies, confirmed, whose, verb
):
    copy = certified(run, tmp_path / "certified")
    made = json.loads((copy / "certificate.json").read_text())
    made["estimate"] |= {
        "on": "out-of-fold predictions" if confirmed else "role val",
        "of": whom(group, strategies, confirmed=confirmed),
    }
    (copy / "certificate.json").write_text(
        json.dumps({**made, "statement": statement(as_record(Certificate, made))})
    )
    build(copy)
    words = Page((copy / "report/certificate.html").read_text()).words
    assert f"On {whose}, the one member" in words
    assert f"{'expected' if confirmed else 'reached'} on {whose}" in words
    assert verb in words
    assert ("it has never seen" in words) == confirmed
    assert ("Expect less of new photos" in words) == (not confirmed)


@pytest.mark.parametrize(("low", "is_said"), [(0.01, True), (-0.01, False)])
def test_a_low_test_score_is_a_finding_where_chance_does_not_explain_it(
    run, tmp_path, low, is_said
):
    """It was one wherever the test score lay below the interval of the estimate alone."""
    copy = certified(run, tmp_path / "certified")
    made = json.loads((copy / "certificate.json").read_text())
    made["gap"] |= {"expected_minus_test": 0.2, "low": low, "high": 0.4}
    (copy / "certificate.json").write_text(json.dumps(made))
    words = Page(build(copy).read_text()).words
    text = "the test score is 0.200 lower than expected (90 % interval 0.010 to 0.400)"
    assert is_said == (text in words)


def test_a_member_with_other_answers_is_a_serious_finding(run, tmp_path):
    words = Page(build(certified(run, tmp_path / "wrong", equal=False)).read_text()).words
    assert (
        "answers through `predict` are not the stored ones: c-1: a probability differs by 0.5"
        in words
    )
    assert "DIFFER from the stored ones" in words


def test_an_undecided_claim_says_what_would_decide_it(run, tmp_path):
    copy = copy_without(run, tmp_path / "undecided")
    rows = json.loads((copy / "hypotheses.json").read_text())
    rows[1]["needs"] = {"n_groups": 1234, "n_seeds": None, "power": 0.8}
    (copy / "hypotheses.json").write_text(json.dumps(rows))
    assert (
        "if the difference is real, 1234 groups in total would decide it"
        in Page(build(copy).read_text()).words
    )


def test_answers_of_one_class_are_called_placeholders(run, tmp_path):
    copy = copy_without(run, tmp_path / "run")
    labels = pq.read_table(copy / "test_labels.parquet")
    place = labels.schema.get_field_index("label")
    same = labels.set_column(place, "label", pa.array([1] * len(labels), pa.int64()))
    assert "a placeholder of a contest?" not in Page(build(copy).read_text()).words
    pq.write_table(same, copy / "test_labels.parquet")
    assert "a placeholder of a contest?" in Page(build(copy).read_text()).words


def test_all_are_scored_on_the_private_half(run):
    labels = pq.read_table(run / "test_labels.parquet")
    parts = ["public" if at % 2 else "private" for at in range(len(labels))]
    halved = labels.set_column(labels.schema.get_field_index("part"), "part", pa.array(parts))
    found = confusion_matrices.labelled_answers(pq.read_table(run / "votes.parquet"), halved)
    private = {
        s
        for s, part in zip(labels["sample_id"].to_pylist(), parts, strict=True)
        if part == "private"
    }
    assert set(found.sample_ids) <= private
    assert len(found.sample_ids) > len(private) // 2


def test_a_phase_says_what_its_trials_did_with_their_time(html):
    assert (
        "Search: 37 trials took 6 min 10 s together: "
        "steps 50 %, data 30 %, start 10 %, evaluation 5 %, end 5 %." in html
    )


def test_every_trial_and_candidate_is_listed(run, html):
    words = Page(html).words
    trials = pq.read_table(run / "trials.parquet")["trial_id"].to_pylist()
    assert [name for name in (*trials, *SETTINGS) if name not in words] == []


def test_confusion_of_one_label_is_the_sum_over_the_others():
    targets, preds = np.array([0, 5, 17, 3]), np.array([1, 5, 0, 6])
    counts = confusion_matrices.confusion(targets, preds, SCHEMA.n_classes)
    ages = confusion_matrices.marginal(counts, SCHEMA.sizes, 2)
    codes = [
        (SCHEMA.decode(t)[2], SCHEMA.decode(p)[2])
        for t, p in zip(targets.tolist(), preds.tolist(), strict=True)
    ]
    assert [[codes.count((i, j)) for j in range(3)] for i in range(3)] == ages.tolist()


def test_a_label_that_is_always_right_leaves_the_errors_of_the_others():
    targets, preds = np.array([0, 5, 17, 3]), np.array([1, 5, 0, 6])
    for position in range(3):
        better = confusion_matrices.with_label_right(targets, preds, SCHEMA.sizes, position)
        for target, pred, code in zip(
            targets.tolist(), preds.tolist(), better.tolist(), strict=True
        ):
            wanted = list(SCHEMA.decode(pred))
            wanted[position] = SCHEMA.decode(target)[position]
            assert wanted == list(SCHEMA.decode(code))


def test_the_page_says_what_the_errors_of_each_label_cost(html):
    words = Page(html).words
    for label in SCHEMA.names:
        assert f"macro F1 with every {label} right: " in words


def test_association_is_one_where_a_setting_decides_and_near_zero_where_not():
    rng = np.random.default_rng(0)
    positions = [0.0, 1.0] * 200
    assert pytest.approx(1.0) == association(positions, positions)
    assert association(positions, rng.normal(size=400).tolist()) < 0.03
    assert association([0.5] * 4, [1.0, 2.0, 3.0, 4.0]) is None


def test_two_builds_of_one_run_are_equal(run, html):
    assert html == build(run).read_text(encoding="utf-8")


def test_preparation_shows_rates_warnings_and_the_sheet_and_only_our_own_pictures(run, tmp_path):
    folder = copy_without(run, tmp_path / "run")
    films = [
        {
            "sample_id": HOSTILE,
            "kind": "face",
            "worth": 0.0,
            "frames": ["/9j/4AAQ", "QUJD", '"><script>'],
        },
        {"sample_id": "train/7", "kind": "ordinary", "worth": 1.0, "frames": ["QUJD"]},
    ]
    classes = [
        {"class": "wear", "n": 40, "failed": 10},
        {"class": "not_wear", "n": 20, "failed": 0},
    ]
    one = {
        "variants": ["base"],
        "steps": ["decoding", {"step": {"name": "crop_face", "margin": 0.25}, "version": 2}],
        "counts": {"photos": 60, "no face": 10},
        "seconds": {"crop_face": 0.0153},
        "rates": [{"failure": "no face", "label": "mask", "classes": classes}],
        "warnings": ["no face: 25% of mask wear"],
        "sheet": films,
    }
    (folder / "prep.json").write_text(json.dumps({"sets": [one]}))
    found = Page(build(folder).read_text(encoding="utf-8"))
    assert ["data:image/jpeg;base64,/9j/4AAQ", "data:image/jpeg;base64,QUJD"] == found.values(
        "src"
    )[:2]
    assert 3 == len(found.values("src")), "what is no base64 is left out"
    for text in (
        "crop_face: margin 0.25",
        "no face: 25% of mask wear.",
        "60 photos, 10 no face",
        "15.3 ms crop face",
    ):
        assert text in found.words
    assert "wear4010" in found.words.replace(" ", "").replace("%", "")
    assert "photo → crop face" in found.words
