import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from data_prep.files import write_json
from orchestrator.ensemble.certificate_text import OTHER_RUNS, statement
from orchestrator.ensemble.predict import PreparedPhotos
from orchestrator.evaluation.checkpoint_count_curve import ONE_SEED
from orchestrator.evaluation.intervals import Interval
from orchestrator.evaluation.race import RaceResult, Stopped
from orchestrator.evaluation.sequential_testing import labels_key
from orchestrator.stages import certificate, test_set
from orchestrator.stages.certificate import audit_findings, whom
from orchestrator.store import tables
from orchestrator.store.looks import count_look
from orchestrator.store.run_files.audit import AuditFacts, SplitFacts
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.records import as_record
from tests.orchestrator.stages.planted import TEST_LABELS, plant_world

SCORES = {
    "estimate": 0.7, "low": 0.6, "high": 0.8, "n_groups": 40, "n_samples": 280, "too_narrow": False,
}  # fmt: skip
PEOPLE = "Photos of role val chose the settings and are not scored."
MADE = {
    "members": [{}, {}, {}],
    "estimate": {
        "on": "out-of-fold predictions",
        "of": "groups (group: id) it has never seen",
        "people": "Groups of role val chose the settings and are not scored.",
        "macro_f1": SCORES,
    },
    "corrected": {"estimate": 0.65, "low": 0.55, "high": 0.75, "n_candidates": 40},
    "checkpoints": {
        "scores": [0.66, 0.7], "n_deployed": 6, "estimate": 0.72, "low": 0.62, "high": 0.8,
        "advice": None,
    },
    "test": None,
    "gain": {
        "difference": 0.01, "low": -0.01, "high": 0.03, "corrected_difference": 0.02,
        "corrected_low": 0.0, "corrected_high": 0.04,
    },
    "policy": "robust",
    "looked_at": [
        {"what": "the same test labels in other runs of this store", "times": 2, "why": ""}
    ],
    "findings": ["3 pictures stand in more than one group: training may have seen some."],
    "check": {"equal": True, "n_photos": 8},
}  # fmt: skip


def said(**changes):
    return statement(as_record(Certificate, MADE | changes))


def test_the_corrected_number_is_the_first_and_is_at_least():
    """The uncorrected one was the first, and nothing said that more checkpoints are deployed."""
    text = statement(as_record(Certificate, MADE))
    assert text.startswith(
        "On groups (group: id) it has never seen, the vote of 3 members is expected to reach at "
        "least macro F1 0.650 (90 % interval 0.550 to 0.750), corrected for the choice among 40 "
        "candidates. It rests on 280 photos of 40 groups and 2 checkpoints per member; all 6 "
        "should reach about 0.720."
    )
    for words in ("not other cameras", "role val chose the settings", "more than one group"):
        assert words in text


def test_with_one_seed_the_paragraph_says_that_more_is_not_known_and_advises_seeds():
    curve = {"scores": [0.66], "n_deployed": 3, "estimate": None, "advice": ONE_SEED}
    assert (
        "and 1 checkpoint per member; 3 judge a new photo, and with one confirm seed it is not "
        "known how much they add; give confirm.seeds at least 3 seeds."
    ) in said(checkpoints=curve)


def test_lost_photos_are_counted_and_said():
    """The promise was about photos that preparation lost too, and they were in no score."""
    text = said(lost={"n_photos": 12, "macro_f1": {"estimate": 0.69}})
    assert "Preparation lost 12 more photos; counting them as wrong costs 0.010." in text
    assert "Preparation" not in said()
    tested = said(
        test={"part": "whole", "macro_f1": SCORES}, data={"n_test_lost": 2, "n_test": 100}
    )
    assert "0.700 (0.600 to 0.800); 2 lost photos got the most frequent class." in tested


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ({"test_is_inside_the_interval": True}, ", a gap that chance explains."),
        ({}, ", less than chance explains."),
        ({"expected_minus_test": -0.1}, ", more than chance explains."),
    ],
)
def test_a_test_score_is_compared_with_what_was_expected(gap, words):
    test = {"part": "whole", "macro_f1": SCORES}
    text = said(test=test, gap={"estimate_minus_test": 0.1, **gap})
    assert f"On the test set, which chose nothing, it reached 0.700 (0.600 to 0.800){words}" in text


def test_a_leaderboards_peek_is_said():
    peeked = said(policy="leaderboard", test={"part": "private", "macro_f1": SCORES})
    assert "A leaderboard chose the members by its public half." in peeked
    assert "which chose nothing" not in peeked


def test_the_fullest_paragraph_has_at_most_150_words():
    """A manager reads it once; it had 260."""
    fullest = {
        "estimate": MADE["estimate"]
        | {"of": whom("id", {"random"}, confirmed=True), "people": PEOPLE},
        "test": {"part": "private", "macro_f1": SCORES | {"too_narrow": True}},
        "gap": {"estimate_minus_test": -0.1, "test_is_inside_the_interval": True},
        "kept": {"n_photos": 3, "macro_f1": {"estimate": 0.71}},
        "lost": {"n_photos": 12, "macro_f1": {"estimate": 0.69}},
        "data": {"n_test_lost": 2},
        "findings": [
            "The split of base leaks: the score is too high for new people.",
            MADE["findings"][0],
            "another one",
        ],
        "race": {"n_finalists": 5, "stopped": [{}], "n_saved": 6, "n_trainings": 30},
    }
    text = said(**fullest)
    assert len(text.split()) <= 150
    assert text.endswith(
        "There were 2 other looks at its labels. The split of base leaks: the score is too high "
        "for new people. See 2 more findings below. Intervals cover which groups were "
        "photographed, not other cameras or places."
    )
    assert len(said(**fullest, policy="leaderboard", corrected=None).split()) <= 150


def test_what_the_audit_found_weakens_the_promise():
    """People it had never seen were promised beside a measured leak."""
    facts = {
        "variants": {"base": {"leak": 0.2}},
        "near_duplicates": {"across_groups": {"n": 3}},
    }
    findings = audit_findings(as_record(AuditFacts, facts))
    assert "The split of base leaks" in findings[0]
    assert "3 pictures stand in more than one group" in findings[1]
    assert "groups it may have seen" in whom("id", {"profile"}, confirmed=True, leaking=True)
    assert audit_findings(AuditFacts(variants={"base": SplitFacts(leak=0.0)})) == []


@pytest.fixture
def certified(tmp_path, monkeypatch):
    """Certify a planted world: (the world, the certificate as a file, what was returned).

    `off` is added to the probabilities that checkpoints give now.
    """

    def make(*changes, off=0.0, audit=None, race=None):
        world = plant_world(tmp_path, "select={policy: robust, members: 2}", *changes)
        world.confirmed = replace(world.confirmed, race=race)
        paths = world.env.paths
        write_json(paths.audit, audit or {})
        monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
        monkeypatch.setattr(certificate, "ray_map", lambda f, jobs, **_: map(f, jobs))
        monkeypatch.setattr(
            certificate,
            "prepare_photos",
            lambda prep, photos, **_: PreparedPhotos(
                [name for name, _ in photos], np.array(photos, object), {}
            ),
        )

        def answer(folder, photos, device):
            rows = tables.read(folder / "predictions.parquet").to_pylist()
            stored = {row["sample_id"]: row["probs"] for row in rows}
            return np.array([stored[name] for name, _ in photos]) + off

        monkeypatch.setattr(certificate, "probabilities", answer)
        selected = world.select()
        returned = certificate.certify(
            world.env,
            world.catalog,
            world.split,
            world.prepared,
            world.searched,
            world.confirmed,
            selected,
            world.vote(selected),
        )
        return world, json.loads(paths.certificate.read_text()), returned

    return make


def test_the_certificate_says_what_the_planted_tables_hold(certified):
    _, facts, returned = certified()
    assert returned.statement == facts["statement"]
    first, second = facts["members"]
    assert (first["setting"], first["variant"], first["votes"]) == ("one", "a", 1)
    assert [c["trial_id"] for c in second["checkpoints"]] == ["c-two-s0", "c-two-s1"]
    sha256 = hashlib.sha256(b"c-two-s1").hexdigest()
    assert second["checkpoints"][1]["weights_sha256"] == sha256
    assert [row["name"] for row in facts["worst_classes"]] == ["wear", "bare"]
    assert facts["worst_classes"][0]["f1"] == pytest.approx(12 / 13)
    assert facts["worst_groups"][:2] == [
        {"group": "p6", "accuracy": 0.5, "n": 2},
        {"group": "p0", "accuracy": 1.0, "n": 2},
    ]
    estimate, test = (12 / 13 + 14 / 15) / 2, (2 / 4 + 4 / 6) / 2
    assert facts["gap"]["estimate_minus_test"] == pytest.approx(estimate - test)
    corrected = facts["corrected"]["estimate"]
    assert facts["gap"]["corrected_minus_test"] == pytest.approx(corrected - test)
    uses = {use["what"]: use["times"] for use in facts["looked_at"]}
    assert uses == {
        "role val": 0,
        "inner parts of the training folds": 0,
        "held-out folds": 6,
        "out-of-fold labels": 3,
        "test labels": 1,
        OTHER_RUNS: 0,
    }
    assert facts["data"]["n_test"] == 5
    assert facts["data"]["n_quarantined"] == 1
    assert facts["check"] == {
        "equal": True,
        "n_checkpoints": 4,
        "n_photos": 8,
        "max_difference": 0.0,
        "tolerance": 1e-4,
        "why": "",
    }
    assert "DIFFER" not in facts["statement"]
    assert "; 1 lost photo got the most frequent class." in facts["statement"]
    assert facts["data"]["n_test_lost"] == 1
    reasons = {use["what"]: use["why"] for use in facts["looked_at"]}
    assert reasons["out-of-fold labels"].endswith("3 candidates (policy robust) and 0 hypotheses")
    assert facts["findings"] == []
    assert [row["value"] for row in facts["subgroups"]] == ["wear", "bare"]
    assert [row["label"] for row in facts["calibration"]] == ["mask"]
    assert facts["label_noise"]["n_suspects"] == len(facts["label_noise"]["suspects"])
    assert (facts["kept"], facts["lost"], facts["race"]) == (None, None, None)


def test_a_race_is_accounted_for(certified):
    stopped = Stopped("three", 1, 1, "one", -0.3, 0.004, 0.03)
    race = RaceResult(3, 1, 1, 12, 2, (stopped,))
    _, facts, returned = certified(race=race)
    assert facts["race"]["stopped"] == [stopped.to_json()]
    assert (facts["race"]["n_saved"], facts["race"]["level"]) == (2, 0.1)
    assert returned.race.stopped[0].setting == "three"
    uses = {use["what"]: use["times"] for use in facts["looked_at"]}
    assert uses["out-of-fold labels, in the race"] == 1
    assert "groups (group: id) it has never seen" in facts["statement"]


def test_answers_that_differ_from_the_stored_ones_fail_the_check(certified):
    _, facts, returned = certified(off=0.25)
    assert not returned.check.equal
    assert facts["check"]["max_difference"] == pytest.approx(0.25)
    assert facts["check"]["why"].startswith("c-one-s0: a probability differs by 0.25; c-one-s1")
    assert "DIFFER from the stored ones" in facts["statement"]


def test_a_leak_in_the_audit_takes_the_promise_about_new_people_away(certified):
    audit = {
        "variants": {"a": {"leak": 0.25}, "b": {"leak": 0.0}},
        "duplicates": {"across_groups": {"n": 2}},
    }
    _, facts, _ = certified(audit=audit)
    assert facts["estimate"]["of"] == "photos it has never seen, of groups it may have seen"
    assert "The split of a leaks" in facts["findings"][0]
    assert "2 pictures stand in more than one group" in facts["findings"][1]
    assert "The split of a leaks" in facts["statement"]
    assert "See 1 more finding below." in facts["statement"]


def test_a_peek_at_the_public_half_is_counted_and_said(certified, monkeypatch):
    monkeypatch.setattr(test_set, "public_half", lambda *_: frozenset({"test/t0", "test/t1"}))
    _, facts, _ = certified(
        "data.test={root: eval, table: info.csv, id: ImageID, label: ans, public: 0.5}",
        "select.policy=leaderboard",
    )
    (peek,) = [use for use in facts["looked_at"] if use["what"].startswith("public half")]
    assert (peek["times"], peek["why"][:5]) == (3, "PEEK:")
    assert facts["corrected"] is None, "a leaderboard chose by other photos"
    assert facts["test"]["part"] == "private"
    assert "A leaderboard chose the members" in facts["statement"]


def test_other_looks_at_the_same_test_labels_are_counted(certified, tmp_path):
    key = labels_key([f"test/{name}" for name in TEST_LABELS], [*TEST_LABELS.values()])
    count_look(tmp_path / "store", key, "answers of another run", {"run": "other"})
    count_look(tmp_path / "store", "other labels", "answers", {"run": "other"})
    _, facts, _ = certified()
    assert {use["what"]: use["times"] for use in facts["looked_at"]}[OTHER_RUNS] == 1
    assert "There was 1 other look at its labels." in facts["statement"]


def test_a_test_score_outside_the_estimates_interval_may_be_what_chance_explains(
    tmp_path, monkeypatch
):
    """.70 lies outside .80 (.74 to .86), and was said to be a surprise in .61 of honest cases."""
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    monkeypatch.setattr(test_set, "predict_trials", world.predict_trials)
    selected = world.select()
    voted = world.vote(selected)
    facts = {"level": 0.9, "n_groups": 40, "n_samples": 280, "fewest_groups": 9}
    facts |= {"too_narrow": False, "too_few_people": False}
    scored = replace(
        selected.ensemble,
        scores=replace(selected.ensemble.scores, macro_f1=Interval(0.80, 0.74, 0.86, **facts)),
        corrected=None,
        checkpoints=None,
    )

    def tested(estimate, low, high):
        test = replace(voted.test, macro_f1=Interval(estimate, low, high, **facts))
        return certificate._gap(replace(selected, ensemble=scored), replace(voted, test=test))

    gap = tested(0.70, 0.60, 0.80)
    assert gap.estimate_minus_test == gap.expected_minus_test == pytest.approx(0.10)
    assert gap.test_is_inside_the_interval
    assert not tested(0.60, 0.52, 0.68).test_is_inside_the_interval
    corrected = replace(selected.ensemble.corrected, estimate=0.65, low=0.59, high=0.71)
    scored = replace(scored, corrected=corrected)
    gap = tested(0.60, 0.52, 0.68)
    assert gap.expected_minus_test == gap.corrected_minus_test == pytest.approx(0.05)
    assert gap.test_is_inside_the_interval
