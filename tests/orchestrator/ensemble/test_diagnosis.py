import csv
import io

import numpy as np
import pytest

from data_prep.catalog.label_schema import Schema
from orchestrator.ensemble.diagnosis import diagnose
from orchestrator.evaluation.predictions import Predictions

SCHEMA = Schema({"gender": ["male", "female"], "age": ["<30", "30-59", ">=60"]})


def ensemble(n_people=60, n_photos=5, wrong_age=(), sharpness=1.0):
    """People with one gender and age; the given age of some is wrong. Answers are mostly right."""
    rng = np.random.default_rng(0)
    true = np.stack([rng.integers(0, 2, n_people), rng.integers(0, 3, n_people)], 1)
    given = true.copy()
    given[list(wrong_age), 1] = (true[list(wrong_age), 1] + 1) % 3
    logits = rng.normal(size=(n_people * n_photos, 6))
    joint = np.repeat(SCHEMA.encode(true), n_photos)
    logits[np.arange(len(joint)), joint] += 4
    probs = np.exp(sharpness * logits)
    probs /= probs.sum(1, keepdims=True)
    groups = [f"p{i:02}" for i in range(n_people) for _ in range(n_photos)]
    ids = [f"train/{i:03}.jpg" for i in range(len(joint))]
    targets = np.repeat(SCHEMA.encode(given), n_photos)
    return Predictions(ids, targets, probs.argmax(1)[None], 6, groups), probs


def test_every_value_of_every_label_and_column_has_a_score():
    vote, probs = ensemble()
    cameras = ["a" if i % 2 else "b" for i in range(len(vote.targets))]
    found = diagnose(vote, probs, SCHEMA, {"camera": cameras, "age": [20] * 300}, seed=0)
    values = [(row.column, row.value) for row in found.subgroups]
    assert values == [
        ("gender", "male"),
        ("gender", "female"),
        ("age", "<30"),
        ("age", "30-59"),
        ("age", ">=60"),
        ("camera", "a"),
        ("camera", "b"),
        ("age (column)", "20"),
    ]
    assert found.subgroups[-1].macro_f1.n_samples == 300


def test_a_wrong_age_is_found_and_the_score_is_higher_without_it():
    vote, probs = ensemble(wrong_age=(3, 4))
    noise = diagnose(vote, probs, SCHEMA, {}, seed=0).label_noise
    assert {"p03", "p04"} == {suspect.group for suspect in noise.suspects[:2]}
    assert {suspect.label for suspect in noise.suspects[:2]} == {"age"}
    facts = noise.to_json()
    assert facts["n_photos"] == 5 * facts["n_groups"] == 300 - noise.without.n_samples
    score = diagnose(vote, probs, SCHEMA, {}, seed=0).subgroups
    assert noise.without.estimate > max(row.macro_f1.estimate for row in score) - 0.1
    rows = list(csv.DictReader(io.StringIO(noise.to_csv())))
    assert len(rows) == len(noise.suspects)
    assert rows[0]["group"] == noise.suspects[0].group
    assert rows[0]["photos"].split() == list(noise.suspects[0].sample_ids)


def test_too_sure_an_ensemble_gets_a_temperature_for_each_label():
    vote, probs = ensemble(n_people=150, sharpness=15.0)
    found = diagnose(vote, probs, SCHEMA, {}, seed=0)
    assert list(found.temperatures) == ["gender", "age", "all labels"]
    assert min(found.temperatures.values()) > 1.5
    for item in found.calibration:
        assert item.log_loss.after < item.log_loss.before
        assert item.helps


def test_a_temperature_that_gains_nothing_is_not_used():
    vote, probs = ensemble(n_people=20)
    found = diagnose(vote, probs, SCHEMA, {}, seed=0)
    for item in found.calibration:
        if not item.helps:
            assert found.temperatures[item.label] == 1.0


def test_without_suspects_there_is_no_second_score():
    vote, _ = ensemble()
    sure = np.eye(6)[vote.targets] * 0.98 + 0.02 / 6
    noise = diagnose(vote, sure, SCHEMA, {}, seed=0).label_noise
    assert noise.suspects == []
    assert noise.to_json()["macro_f1_without"] is None


@pytest.mark.parametrize("groups", [None])
def test_photos_without_groups_are_people_of_their_own(groups):
    vote, probs = ensemble()
    alone = Predictions(vote.sample_ids, vote.targets, vote.preds, 6, groups)
    found = diagnose(alone, probs, SCHEMA, {}, seed=0)
    assert all(row.macro_f1.too_narrow for row in found.subgroups)
