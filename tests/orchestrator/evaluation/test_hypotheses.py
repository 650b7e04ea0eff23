from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from orchestrator.evaluation.hypotheses import judge, needs_text
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.sequential_testing import (
    claim_key,
    labels_key,
    penalty,
    predictions_key,
)
from orchestrator.spec.claims import Claim, parse
from orchestrator.store.looks import FILE, count_look, read_looks


def arm(rng, skill, n_groups=60, n_seeds=1, folds=None):
    targets = np.arange(5 * n_groups) % 3
    shape = (n_seeds, len(targets))
    preds = np.where(rng.random(shape) < skill, targets, rng.integers(0, 3, shape))
    ids = [f"s{i}" for i in range(len(targets))]
    return Predictions(ids, targets, preds, 3, [f"g{i // 5}" for i in range(len(ids))], None, folds)


def test_claims_are_read_with_and_without_spaces():
    assert parse("a > b") == parse("a>b") == Claim("a", "b")
    assert parse("half > none on accuracy") == Claim("half", "none", "accuracy")
    assert parse("a = b within 0.01") == Claim("a", "b", "macro_f1", 0.01)
    assert parse("a=b within 0.02 on accuracy") == Claim("a", "b", "accuracy", 0.02)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a>b>c", "'a > b' says that a scores higher than b"),
        ("a >= b", "more than one comparison"),
        ("a better than b", "a claim reads like"),
        ("a = b", "'=' needs a margin"),
        ("a = b within none", "'=' needs a margin"),
        ("a > b within 0.1", "a margin needs '='"),
        ("a > b on f1", "a score out of macro_f1, accuracy"),
    ],
)
def test_other_claims_are_refused_with_what_to_write(text, why):
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_a_margin_gives_a_third_verdict():
    rng = np.random.default_rng(0)
    same = arm(rng, 0.8)
    arms = {"a": same, "b": same, "bad": arm(rng, 0.2), "c": arm(rng, 0.8)}
    claims = ["a = b within 0.01", "a = bad within 0.05", "a = c within 0.001"]
    rows = judge(claims, arms)
    assert [row["verdict"] for row in rows] == ["practically equal", "refuted", "undecided"]
    assert -0.01 < rows[0]["low"] <= rows[0]["high"] < 0.01
    assert rows[1]["high"] < -0.05 or rows[1]["low"] > 0.05


def test_one_seed_of_two_folds_is_undecided_with_the_reason():
    rng = np.random.default_rng(1)
    folds = np.repeat([0, 1], 150)[None]
    (row,) = judge(["a > b"], {n: arm(rng, s, folds=folds) for n, s in (("a", 0.9), ("b", 0.5))})
    assert (row["verdict"], row["p_value"]) == ("undecided", None)
    assert needs_text(row).startswith("needs 2 seeds or 5 folds")


def test_a_later_look_needs_a_smaller_p_value():
    rng = np.random.default_rng(2)
    arms = {"a": arm(rng, 0.8), "b": arm(rng, 0.72)}
    first, third = (judge(["a > b"], arms, count_look=lambda *_, n=n: n)[0] for n in (1, 3))
    assert first["p_value"] == third["p_value"]
    assert third["p_adjusted"] == pytest.approx(min(1, 18 * first["p_adjusted"]))
    assert (first["look"], third["look"], penalty(1)) == (1, 3, 1)


def test_the_same_predictions_are_no_new_look_and_either_order_is_one_claim(tmp_path):
    rng = np.random.default_rng(3)
    a, b, more = arm(rng, 0.8), arm(rng, 0.7), arm(rng, 0.7, n_seeds=2)
    key = claim_key(Claim("a", "b"), "data")
    assert key == claim_key(Claim("b", "a"), "data") != claim_key(Claim("a", "b"), "other")
    assert predictions_key(a, b) == predictions_key(b, a) != predictions_key(a, more)
    states = [predictions_key(a, b), predictions_key(a, b), predictions_key(a, more)]
    numbers = [count_look(tmp_path, key, state, {"run": "r"}).number for state in states]
    assert numbers == [1, 1, 2]
    assert [look.number for look in read_looks(tmp_path, key)] == [1, 2]


def test_looks_of_two_runs_at_once_are_all_counted(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        looks = pool.map(lambda i: count_look(tmp_path, "k", str(i % 20), {}).number, range(100))
    assert set(looks) == set(range(1, 21))
    assert len((tmp_path / FILE).read_text().splitlines()) == 20


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    count_look(tmp_path, "k", "one", {})
    with (tmp_path / FILE).open("a") as handle:
        handle.write('{"key": "k", "st')
    assert count_look(tmp_path, "k", "two", {}).number == 2
    assert [look.state for look in read_looks(tmp_path, "k")] == ["one", "two"]


def test_looks_at_test_labels_are_counted_by_the_test_part_alone():
    """They were counted by the hash of all data, so one new training photo began at 1 again."""
    key = labels_key(["test/a", "test/b"], [0, 1])
    assert key == labels_key(["test/b", "test/a"], [1, 0])
    assert key != labels_key(["test/a", "test/b"], [0, 2])
    assert key != labels_key(["test/a", "test/b", "test/c"], [0, 1, 1])


def test_arms_of_different_splits_are_judged_person_by_person():
    """They were refused: submit them as two specs. Their folds differ, their people do not."""
    rng = np.random.default_rng(6)
    folds = rng.integers(0, 3, (2, 3, 60)).repeat(5, axis=2)
    better, worse = (
        arm(rng, s, n_seeds=3, folds=f) for s, f in zip((0.8, 0.6), folds, strict=True)
    )
    (row,) = judge(["a > b"], {"a": better, "b": worse.take(np.arange(50, 300))})
    assert (row["verdict"], row["n_groups"], row["n_left_out"]) == ("supported", 50, 50)
    one = {name: arm.of_seeds(np.arange(1)) for name, arm in (("a", better), ("b", worse))}
    (row,) = judge(["a > b"], one)
    assert (row["verdict"], row["p_value"]) == ("undecided", None)
    assert needs_text(row).startswith("needs 2 seeds: the arms have other folds")
