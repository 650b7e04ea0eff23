from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.catalog.label_schema import Schema
from orchestrator.base.errors import UserError
from orchestrator.evaluation import vote
from orchestrator.evaluation.vote import cast, named_submission, submission, vote_table


def probabilities(seed, members, photos, classes):
    rng = np.random.default_rng(seed)
    found = rng.random((members, photos, classes)).astype(np.float32)
    return found / found.sum(2, keepdims=True)


def reference(probs):
    """The rule in words, photo by photo."""
    answers = []
    for at in range(probs.shape[1]):
        ballots = Counter(int(member[at].argmax()) for member in probs)
        top = max(ballots.values())
        tied = [k for k, n in ballots.items() if n == top]
        sums = {k: round(float(probs[:, at, k].astype(np.float64).sum()), 9) for k in tied}
        best = [k for k in tied if sums[k] == max(sums.values())]
        answers.append(
            next(int(member[at].argmax()) for member in probs if int(member[at].argmax()) in best)
        )
    return answers


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.integers(2, 5))
def test_a_vote_is_what_its_rule_says_and_does_not_depend_on_the_order(
    seed, members, photos, classes
):
    probs = probabilities(seed, members, photos, classes)
    votes = cast(probs.argmax(2), list(probs))
    assert reference(probs) == votes.pred.tolist()
    order = np.random.default_rng(seed).permutation(members)
    assert votes.pred.tolist() == cast(probs[order].argmax(2), list(probs[order])).pred.tolist()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
def test_a_member_with_several_votes_counts_like_several_equal_members(seed, members, photos):
    probs = probabilities(seed, members, photos, 3)
    weights = np.random.default_rng(seed).integers(1, 4, members)
    often = np.repeat(probs, weights, axis=0)
    found, wanted = (
        cast(probs.argmax(2), list(probs), "hard", weights.tolist()),
        cast(often.argmax(2), list(often)),
    )
    assert wanted.pred.tolist() == found.pred.tolist()
    assert (wanted.votes.tolist(), wanted.tie.tolist()) == (
        found.votes.tolist(),
        found.tie.tolist(),
    )


@pytest.mark.parametrize("rule", ["hard", "soft"])
def test_chunks_and_files_change_nothing(tmp_path, monkeypatch, rule):
    probs = probabilities(3, 4, 500, 5)
    whole = cast(probs.argmax(2), list(probs), rule)
    for member, one in enumerate(probs):
        np.save(tmp_path / f"{member}.npy", one)
        np.save(tmp_path / f"pred{member}.npy", one.argmax(1).astype(np.int8))
    monkeypatch.setattr(vote, "CHUNK", 7)
    preds, stored = (
        [np.load(tmp_path / f"{name}{member}.npy", mmap_mode="r") for member in range(4)]
        for name in ("pred", "")
    )
    pieces = cast(preds, stored, rule)
    assert whole.pred.tolist() == pieces.pred.tolist()
    assert (whole.votes.tolist(), whole.tie.tolist()) == (
        pieces.votes.tolist(),
        pieces.tie.tolist(),
    )
    assert whole.tie.any() == (rule == "hard")


def test_probabilities_are_read_for_tied_photos_only():
    class Counted:
        shape = (4, 3)

        def __init__(self, found):
            self.found, self.read = found, []

        def __getitem__(self, rows):
            self.read += rows.tolist()
            return self.found[rows]

    preds = np.array([[0, 1, 2, 0], [0, 2, 2, 1]])
    members = [Counted(one) for one in probabilities(5, 2, 4, 3)]
    assert cast(preds, members).tie.tolist() == [False, True, False, True]
    assert [[1, 3], [1, 3]] == [member.read for member in members]


def test_one_member_is_that_member():
    probs = probabilities(0, 1, 50, 4)
    assert probs[0].argmax(1).tolist() == cast(probs.argmax(2), list(probs)).pred.tolist()


def test_a_tie_of_equal_sums_goes_to_the_better_ranked_member():
    probs = [np.array([[0.2, 0.8]], np.float32), np.array([[0.8, 0.2]], np.float32)]
    votes = cast(np.array([[1], [0]]), probs)
    assert (votes.pred.tolist(), votes.votes.tolist(), votes.tie.tolist()) == ([1], [1], [True])


ORDER = [("test/b", "b"), ("test/a", "a"), ("test/c", "c")]


def table(names, **settings):
    members = {"m": (names, probabilities(1, 1, len(names), 3)[0])}
    return vote_table(
        ORDER, members, **{"quarantined": {}, "majority": 2, "rule": "hard", **settings}
    )


def test_rows_are_joined_by_id_and_answered_in_the_order_of_the_table():
    probs = probabilities(1, 1, 3, 3)[0]
    found = table(["test/c", "test/a", "test/b"])
    assert found["ImageID"].to_pylist() == ["b", "a", "c"]
    assert [int(probs[at].argmax()) for at in (2, 1, 0)] == found["pred"].to_pylist()
    assert submission(found).startswith("ImageID,ans\nb,")


def test_a_submission_may_have_the_form_of_a_sample():
    found = table(["test/c", "test/a", "test/b"])
    species = Schema({"species": ["fir", "oak", "elm"]})
    names = [species.class_name(label) for label in found["pred"].to_pylist()]
    lines = named_submission(found, species, "image_id", "species").splitlines()
    assert ["image_id,species", *(f"{i},{n}" for i, n in zip("bac", names, strict=True))] == lines
    two = Schema({"species": ["fir"], "state": ["dry", "wet", "old"]})
    lines = named_submission(found, two, "photo", ["kind", "state"]).splitlines()
    assert "photo,kind,state" == lines[0]
    assert {"fir"} == {line.split(",")[1] for line in lines[1:]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/a", "test/b"], "1 missing: test/c"),
        (["test/a", "test/b", "test/c", "test/x"], "1 not asked for: test/x"),
        (["test/a", "test/b", "test/c", "test/a"], "1 twice: test/a"),
        (["test/b", "test/b"], "1 twice: test/b; 2 missing: test/a, test/c"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(names, message):
    with pytest.raises(UserError, match=message):
        table(names)


def test_a_photo_that_nobody_can_read_gets_the_majority_class_and_no_votes():
    row = table(["test/a", "test/b"], quarantined={"test/c": "truncated"}).to_pylist()[2]
    assert (row["pred"], row["votes"], row["outcome"], row["pred_m"]) == (
        2,
        0,
        "quarantined: truncated",
        None,
    )
