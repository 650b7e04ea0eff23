import numpy as np

from orchestrator.ensemble.gallery import N_PHOTOS, pick_photos
from orchestrator.ensemble.label_noise import Suspect
from orchestrator.evaluation.predictions import Predictions


def member(probs, targets, groups):
    """Make the answers of one seed from the probability of class 1."""
    probs = np.array(probs)
    both = np.stack([1 - probs, probs], 1).astype(np.float32)[None]
    names = [f"train/{i}.jpg" for i in range(len(probs))]
    return Predictions(names, np.array(targets), both.argmax(2), 2, groups, both)


def test_photos_are_picked_by_what_makes_them_worth_a_look():
    targets = [0, 0, 0, 1, 1, 0]
    groups = ["a", "a", "b", "c", "d", "e"]
    members = {
        "one": member([0.9, 0.95, 0.7, 0.8, 0.4, 0.1], targets, groups),
        "two": member([0.9, 0.95, 0.7, 0.8, 0.9, 0.1], targets, groups),
    }
    facts = {"label": "x", "given": "0", "suggested": "1", "confidence": 0.1}
    numbers = {"suggested_confidence": 0.9, "margin": -0.8, "n_photos": 2, "n_photos_read_so": 2}
    suspect = Suspect(
        group="a", sample_ids=("train/0.jpg", "train/1.jpg", "test/9.jpg"), **facts, **numbers
    )
    photos = pick_photos(members, [1, 1], "hard", [suspect])
    of_kind = {}
    for photo in photos:
        of_kind.setdefault(photo.kind, []).append(photo.sample_id)
    assert {
        "sure_wrong": ["train/1.jpg", "train/2.jpg"],  # one of person a
        "disputed": ["train/4.jpg"],
        "suspect": ["train/1.jpg"],  # the photo that is most surely read otherwise
    } == of_kind
    first = photos[0]
    assert (0, 1, 2, 2) == (first.given, first.answer, first.votes, first.n_votes)


def test_no_more_than_a_sheet_is_picked():
    n = 3 * N_PHOTOS
    groups = [f"p{i}" for i in range(n)]
    members = {"one": member([0.9] * n, [0] * n, groups)}
    assert N_PHOTOS == len(pick_photos(members, [1], "soft", []))
