import numpy as np
import pytest

from orchestrator.ensemble.label_noise import (
    LabelAnswers,
    class_thresholds,
    find_suspects,
    ranked,
    without,
)
from orchestrator.evaluation.predictions import Predictions

NAMES = ["<30", "30-59", ">=60"]


def people(rng, n_people=60, n_photos=7, n_wrong=0, skill=2.5):
    """Read by a model that is unsure of some people; the first `n_wrong` have a wrong label."""
    true = rng.integers(0, 3, n_people)
    given = true.copy()
    given[:n_wrong] = (true[:n_wrong] + 1) % 3
    logits = rng.normal(size=(n_people, 3))
    logits[np.arange(n_people), true] += skill
    photos = np.repeat(logits, n_photos, 0) + 0.7 * rng.normal(size=(n_people * n_photos, 3))
    probs = np.exp(photos) / np.exp(photos).sum(1, keepdims=True)
    groups = [f"p{i:02}" for i in range(n_people) for _ in range(n_photos)]
    ids = [f"{group}/{i % n_photos}" for i, group in enumerate(groups)]
    answers = LabelAnswers("age", NAMES, np.repeat(given, n_photos), probs)
    return answers, ids, groups, true


def test_people_with_wrong_labels_lead_the_list():
    """Over 20 data sets, five wrong of 60: most are among the first seven."""
    n_found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        answers, ids, groups, true = people(rng, n_wrong=5, skill=4)
        suspects = find_suspects(answers, ids, groups)
        first = {suspect.group for suspect in suspects[:7]}
        n_found += len(first & {f"p{i:02}" for i in range(5)})
        for suspect in suspects:
            if suspect.group < "p05":
                assert suspect.suggested == NAMES[true[int(suspect.group[1:])]]
    assert n_found >= 75


def test_few_people_are_suspected_where_all_labels_are_right():
    n_suspects = 0
    for seed in range(20):
        answers, ids, groups, _ = people(np.random.default_rng(seed))
        n_suspects += len(find_suspects(answers, ids, groups))
    assert n_suspects / (20 * 60) < 0.05


def test_a_suspect_states_what_the_models_read():
    answers, ids, groups, _ = people(np.random.default_rng(3), n_wrong=1, skill=4)
    suspect = find_suspects(answers, ids, groups)[0]
    photos = [i for i, group in enumerate(groups) if group == "p00"]
    assert suspect.group == "p00"
    assert suspect.given == NAMES[answers.codes[0]]
    assert suspect.confidence == pytest.approx(answers.probs[photos, answers.codes[0]].mean())
    assert suspect.margin == pytest.approx(suspect.confidence - suspect.suggested_confidence)
    assert suspect.sample_ids == tuple(ids[i] for i in photos)
    assert suspect.n_photos == 7 >= suspect.n_photos_read_so > 3


def test_one_wrong_photo_is_told_from_the_other_photos_of_its_person():
    """Each state of a mask is a unit of its own, also where one person has all of them."""
    codes = np.array([0, 0, 0, 1] * 10)
    probs = np.where(codes[:, None] == np.arange(2), 0.9, 0.1)
    probs[3] = [0.95, 0.05]  # read as 0, labelled 1
    groups = [f"p{i // 4}" for i in range(40)]
    ids = [f"s{i}" for i in range(40)]
    suspects = find_suspects(LabelAnswers("mask", ["wear", "none"], codes, probs), ids, groups)
    assert [suspect.sample_ids for suspect in suspects] == [("s3",)]


def test_thresholds_are_the_mean_confidence_of_each_class():
    probs = np.array([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.4, 0.6, 0.0]])
    thresholds = class_thresholds(probs, np.array([0, 0, 1]))
    assert thresholds.tolist() == pytest.approx([0.8, 0.6, np.inf])


def test_suspects_of_several_labels_are_ranked_together_and_taken_out():
    answers, ids, groups, _ = people(np.random.default_rng(4), n_wrong=4)
    suspects = find_suspects(answers, ids, groups)
    assert suspects == ranked(reversed(suspects))
    vote = Predictions(ids, answers.codes, answers.probs.argmax(1)[None], 3, groups)
    rest = without(vote, suspects)
    doubted = {sample for suspect in suspects for sample in suspect.sample_ids}
    assert len(rest.sample_ids) == len(ids) - len(doubted)
    assert doubted.isdisjoint(rest.sample_ids)
