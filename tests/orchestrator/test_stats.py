import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from orchestrator.stats import Oof, holm, interval, macro_f1, paired_difference, recalls, total_variation


def simulated(rng, n_groups=40, per_group=5, skill=0.7, n_classes=4, seeds=1, spread=0.15):
    """People who are easier or harder to read than others."""
    targets = rng.integers(0, n_classes, n_groups * per_group)
    groups = np.repeat(np.arange(n_groups), per_group)
    ability = np.clip(skill + spread * rng.normal(size=n_groups), 0, 1)[groups]
    preds = np.stack(
        [
            np.where(rng.random(len(targets)) < ability, targets, rng.integers(0, n_classes, len(targets)))
            for _ in range(seeds)
        ]
    )
    return Oof([f"s{i}" for i in range(len(targets))], targets, preds, [f"g{g}" for g in groups], None, n_classes)


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_present():
    rng = np.random.default_rng(0)
    targets, preds = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    assert f1_score(targets, preds, average="macro", labels=range(5)) == pytest.approx(macro_f1(targets, preds, 6))


def test_scores_of_seeds_are_averaged():
    oof = simulated(np.random.default_rng(1), seeds=2)
    each = [f1_score(oof.targets, preds, average="macro") for preds in oof.preds]
    assert np.mean(each) == pytest.approx(interval(oof, seed=0, n=50).estimate)
    assert np.mean([accuracy_score(oof.targets, p) for p in oof.preds]) == pytest.approx(
        interval(oof, metric="accuracy", seed=0, n=50).estimate
    )


def test_an_interval_over_groups_is_wider_than_one_over_photos():
    oof = simulated(np.random.default_rng(2), spread=0.4)
    alone = Oof(oof.sample_ids, oof.targets, oof.preds, None, None, 4)
    by_group, by_photo = interval(oof, seed=0), interval(alone, seed=0)
    assert by_group.high - by_group.low > by_photo.high - by_photo.low
    assert (by_group.too_narrow, by_photo.too_narrow) == (False, True)


def test_the_ninety_percent_interval_covers_about_ninety_percent():
    rng = np.random.default_rng(3)
    truth = interval(simulated(rng, n_groups=20_000), metric="accuracy", seed=0, n=10).estimate
    bounds = [interval(simulated(rng), metric="accuracy", seed=seed, n=300) for seed in range(120)]
    covered = np.mean([b.low <= truth <= b.high for b in bounds])
    assert 0.82 <= covered <= 0.97  # 120 sets: standard error 0.027


def test_equal_arms_are_rarely_told_apart_and_unequal_ones_are():
    rng = np.random.default_rng(4)
    p_equal = []
    for seed in range(60):
        a = simulated(rng, n_groups=20)
        other = np.where(rng.random(a.preds.shape) < 0.7, a.targets, rng.integers(0, 4, a.preds.shape))
        b = Oof(a.sample_ids, a.targets, other, a.groups, None, 4)
        twin = np.where(rng.random(a.preds.shape) < 0.7, a.targets, rng.integers(0, 4, a.preds.shape))
        p_equal.append(
            paired_difference(b, Oof(a.sample_ids, a.targets, twin, a.groups, None, 4), seed=seed)["p_value"]
        )
    assert np.mean(np.array(p_equal) < 0.1) <= 0.1 + 2.5 * np.sqrt(0.09 / 60)
    good, bad = simulated(rng, skill=0.9), None
    bad = Oof(good.sample_ids, good.targets, rng.integers(0, 4, good.preds.shape), good.groups, None, 4)
    found = paired_difference(good, bad, seed=0)
    assert found["p_value"] < 0.01
    assert found["low"] > 0


def test_arms_are_compared_on_the_samples_that_both_saw():
    a = simulated(np.random.default_rng(5))
    found = paired_difference(a, a.take(np.arange(50)), seed=0)
    assert (found["difference"], found["p_value"], found["n_samples"], found["n_groups"]) == (0.0, 1.0, 50, 10)


def test_holm_is_that_of_the_textbook():
    assert pytest.approx([0.03, 0.06, 0.06, 0.02]) == holm([0.01, 0.04, 0.03, 0.005])


def test_small_measures_by_hand():
    targets, preds = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert (recalls(targets, preds, 3), total_variation(targets, preds, 3)) == ({0: 0.5, 1: 1.0}, 0.25)
