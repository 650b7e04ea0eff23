import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from orchestrator.evaluation import metrics as stats
from orchestrator.evaluation.metrics import (
    calibration_error,
    class_metrics,
    holm,
    interval,
    macro_f1,
    paired_difference,
    recalls,
    total_variation,
)
from orchestrator.evaluation.power import needed
from orchestrator.evaluation.predictions import Predictions


def simulated(rng, n_groups=40, per_group=5, skill=0.7, n_classes=4, seeds=1, spread=0.15):
    """People who are easier or harder to read than others."""
    targets = rng.integers(0, n_classes, n_groups * per_group)
    groups = np.repeat(np.arange(n_groups), per_group)
    ability = np.clip(skill + spread * rng.normal(size=n_groups), 0, 1)[groups]
    preds = np.stack(
        [
            np.where(
                rng.random(len(targets)) < ability,
                targets,
                rng.integers(0, n_classes, len(targets)),
            )
            for _ in range(seeds)
        ]
    )
    return Predictions(
        [f"s{i}" for i in range(len(targets))],
        targets,
        preds,
        n_classes,
        [f"g{g}" for g in groups],
    )


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_present():
    rng = np.random.default_rng(0)
    targets, preds = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    assert f1_score(targets, preds, average="macro", labels=range(5)) == pytest.approx(
        macro_f1(targets, preds, 6)
    )


def test_scores_of_seeds_are_averaged():
    oof = simulated(np.random.default_rng(1), seeds=2)
    each = [f1_score(oof.targets, preds, average="macro") for preds in oof.preds]
    assert np.mean(each) == pytest.approx(interval(oof, seed=0, n=50).estimate)
    assert np.mean([accuracy_score(oof.targets, p) for p in oof.preds]) == pytest.approx(
        interval(oof, metric="accuracy", seed=0, n=50).estimate
    )


def test_an_interval_over_groups_is_wider_than_one_over_photos():
    oof = simulated(np.random.default_rng(2), spread=0.4)
    alone = Predictions(oof.sample_ids, oof.targets, oof.preds, 4)
    by_group, by_photo = interval(oof, seed=0), interval(alone, seed=0)
    assert by_group.high - by_group.low > by_photo.high - by_photo.low
    assert (by_group.too_narrow, by_photo.too_narrow) == (False, True)


def test_unequal_arms_are_told_apart():
    rng = np.random.default_rng(4)
    good = simulated(rng, skill=0.9)
    bad = good.answered_by(rng.integers(0, 4, good.preds.shape))
    found = paired_difference(good, bad, seed=0)
    assert found["p_value"] < 0.01
    assert found["low"] > 0


def test_many_groups_are_resampled_in_parts(monkeypatch):
    """Parts draw other random numbers; bounds and p values stay where they were to within the noise of resampling."""
    rng = np.random.default_rng(7)
    a = simulated(rng)
    b = a.answered_by(simulated(rng).preds)
    whole, alone = paired_difference(a, b, seed=0), interval(a, seed=0)
    monkeypatch.setattr(stats, "_CELLS", 1000)
    parted, small = paired_difference(a, b, seed=0), interval(a, seed=0)
    assert parted["difference"] == whole["difference"]
    for name in ("low", "high", "p_value", "standard_error"):
        assert parted[name] == pytest.approx(whole[name], abs=0.03)
    assert (small.low, small.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert sum(len(swap) for swap in stats._swaps(40, rng)) == stats.N_PERMUTATIONS


def test_arms_are_compared_on_the_samples_that_both_saw():
    a = simulated(np.random.default_rng(5))
    found = paired_difference(a, a.take(np.arange(50)), seed=0)
    assert (found["difference"], found["p_value"], found["n_samples"], found["n_groups"]) == (
        0.0,
        1.0,
        50,
        10,
    )


def test_holm_is_that_of_the_textbook():
    assert pytest.approx([0.03, 0.06, 0.06, 0.02]) == holm([0.01, 0.04, 0.03, 0.005])


def test_scores_per_class_are_those_of_scikit_learn():
    rng = np.random.default_rng(6)
    targets, preds = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
    rows = class_metrics(targets, preds, 6)
    precision, recall, f1, n = precision_recall_fscore_support(
        targets, preds, labels=range(4), zero_division=0
    )
    assert [row["class"] for row in rows] == [0, 1, 2, 3]
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1), ("n", n)):
        assert wanted == pytest.approx([row[name] for row in rows])


def test_calibration_error_by_hand():
    sure, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    assert calibration_error(sure, right, n_bins=10) == pytest.approx((2 * 0.05 + 2 * 0.05) / 4)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0.0


def test_seeds_help_only_as_far_as_they_are_the_cause():
    """Variance of the difference: people 0.0004, seeds 0.0008 for one seed; by hand with z 1.645 + 0.842 = 2.486."""
    given = {"n_groups": 50, "n_seeds": 2, "alpha": 0.10}
    found = needed(0.06, standard_error=0.0008**0.5, standard_error_one_seed=0.0012**0.5, **given)
    assert found == {
        "n_groups": 69,
        "n_seeds": 5,
        "power": 0.8,
    }  # 50 * 0.0008 / w and 0.0008 / (w - 0.0004), w = (0.06 / 2.486)^2
    few = needed(0.04, standard_error=0.0008**0.5, standard_error_one_seed=0.0012**0.5, **given)
    assert few["n_seeds"] is None  # people alone make it too uncertain
    assert (
        needed(0.0, standard_error=0.03, standard_error_one_seed=None, **given)["n_groups"] is None
    )


def test_small_measures_by_hand():
    targets, preds = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert (recalls(targets, preds, 3), total_variation(targets, preds, 3)) == (
        {0: 0.5, 1: 1.0},
        0.25,
    )
