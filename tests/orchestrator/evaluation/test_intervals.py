import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import accuracy_score, f1_score

from orchestrator.evaluation import intervals
from orchestrator.evaluation.intervals import (
    Interval,
    difference_of_scores,
    interval,
    label_interval,
)
from orchestrator.evaluation.predictions import Predictions


def simulated(rng, n_groups=40, per_group=5, skill=0.7, n_classes=4, seeds=1, spread=0.15):
    """People who are easier or harder to read than others."""
    targets = rng.integers(0, n_classes, n_groups * per_group)
    owners = np.repeat(np.arange(n_groups), per_group)
    ability = np.clip(skill + spread * rng.normal(size=n_groups), 0, 1)[owners]
    shape = (seeds, len(targets))
    preds = np.where(rng.random(shape) < ability, targets, rng.integers(0, n_classes, shape))
    ids = [f"s{i}" for i in range(len(targets))]
    return Predictions(ids, targets, preds, n_classes, [f"g{owner}" for owner in owners])


def alone(targets, preds, n_classes):
    ids = [f"s{i}" for i in range(len(targets))]
    return Predictions(ids, np.array(targets), np.atleast_2d(preds), n_classes, ids)


def test_scores_of_seeds_are_averaged():
    arm = simulated(np.random.default_rng(1), seeds=2)
    f1 = np.mean([f1_score(arm.targets, preds, average="macro") for preds in arm.preds])
    accuracy = np.mean([accuracy_score(arm.targets, preds) for preds in arm.preds])
    assert interval(arm, seed=0, n=50).estimate == pytest.approx(f1)
    assert interval(arm, metric="accuracy", seed=0, n=50).estimate == pytest.approx(accuracy)


def test_an_interval_over_groups_is_wider_than_one_over_photos():
    arm = simulated(np.random.default_rng(2), spread=0.4)
    photos = Predictions(arm.sample_ids, arm.targets, arm.preds, 4)
    by_group, by_photo = interval(arm, seed=0), interval(photos, seed=0)
    assert by_group.high - by_group.low > by_photo.high - by_photo.low
    assert (by_group.too_narrow, by_photo.too_narrow) == (False, True)


def test_the_interval_of_an_accuracy_of_groups_is_about_that_of_students_t():
    arm = simulated(np.random.default_rng(3), n_groups=60)
    per_group = (arm.preds[0] == arm.targets).reshape(60, 5).mean(1)
    reach = t.ppf(0.95, 59) * per_group.std(ddof=1) / 60**0.5
    bounds = interval(arm, metric="accuracy", seed=0)
    assert bounds.low == pytest.approx(per_group.mean() - reach, abs=0.01)
    assert bounds.high == pytest.approx(per_group.mean() + reach, abs=0.01)


def test_one_class_of_six_that_is_always_wrong_has_an_interval():
    """With strata its F1 never moves: .778 (.778 to .778)."""
    targets = np.repeat(np.arange(6), 10)
    preds = np.where(targets == 5, 4, targets)
    bounds = interval(alone(targets, preds, 6), seed=0)
    assert bounds.estimate == pytest.approx((4 + 2 / 3) / 6)
    assert bounds.low < bounds.estimate - 0.02
    assert bounds.high > bounds.estimate + 0.02


def test_a_class_that_vanishes_from_a_resample_stays_in_the_mean():
    """One of 60 people is the only one of class 2 and is never read right; out of the mean, the
    upper end would be that of the other two classes, above .85.
    """
    targets = np.array([0] * 30 + [1] * 29 + [2])
    preds = np.where(np.arange(60) % 10 == 0, 1 - np.minimum(targets, 1), np.minimum(targets, 1))
    bounds = interval(alone(targets, preds, 3), seed=0)
    assert bounds.estimate < 0.62
    assert bounds.high < 0.68
    assert (bounds.too_few_people, bounds.fewest_groups) == (True, 1)


def test_without_variation_the_interval_is_wilsons():
    bounds = interval(alone([0, 1] * 10, [0, 1] * 10, 2), seed=0)
    z = 1.6448536
    assert (bounds.estimate, bounds.high) == (1.0, pytest.approx(1.0))
    assert bounds.low == pytest.approx(20 / (20 + z**2))


def test_one_group_gives_a_wide_interval_and_no_error():
    one = Predictions(["a", "b"], np.array([0, 1]), np.array([[0, 0]]), 2, ["g", "g"])
    bounds = interval(one, seed=0)
    assert bounds.low < bounds.estimate < bounds.high
    assert bounds.too_few_people


def test_many_groups_are_resampled_in_pieces(monkeypatch):
    arm = simulated(np.random.default_rng(7))
    whole = interval(arm, seed=0)
    monkeypatch.setattr(intervals, "_CELLS", 1000)
    pieces = interval(arm, seed=0)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_a_labels_interval_is_over_the_labels_own_classes():
    arm = simulated(np.random.default_rng(8))
    bounds = label_interval(arm, arm.targets // 2, arm.preds // 2, 2, metric="macro_f1", seed=0)
    wanted = f1_score(arm.targets // 2, arm.preds[0] // 2, average="macro")
    assert bounds.estimate == pytest.approx(wanted)
    assert bounds.low < bounds.estimate < bounds.high


def test_a_difference_of_two_scores_has_the_variance_of_both():
    """A test score of .70 (.60 to .80) lies outside an estimate's .80 (.74 to .86), and is expected."""
    facts = {"level": 0.9, "n_groups": 40, "n_samples": 280, "fewest_groups": 9}
    marks = {"too_narrow": False, "too_few_people": False}
    first = Interval(0.80, 0.74, 0.86, **facts, **marks)
    second = Interval(0.70, 0.60, 0.80, **facts, **marks)
    bounds = difference_of_scores(first, second)
    reach = (0.06**2 + 0.10**2) ** 0.5
    assert (bounds.low, bounds.high) == pytest.approx((0.1 - reach, 0.1 + reach))
    assert bounds.low < 0 < bounds.high


def rare(rng, n_groups=60, per_group=5, is_ill=None):
    """About one of six people is ill; ill ones are read right in 6 of 10 photos, others in 9."""
    is_ill = rng.random(n_groups) < 1 / 6 if is_ill is None else is_ill
    targets = np.repeat(is_ill.astype(np.int64), per_group)
    luck = np.repeat(0.1 * rng.normal(size=n_groups), per_group)
    is_right = rng.random(len(targets)) < np.where(targets == 1, 0.6, 0.9) + luck
    preds = np.where(is_right, targets, 1 - targets)
    names = [f"g{i // per_group}" for i in range(len(targets))]
    return Predictions([f"s{i}" for i in range(len(targets))], targets, preds[None], 2, names)


def test_f1_of_the_rarer_class_has_an_interval_of_its_own_groups():
    arm = rare(np.random.default_rng(0), is_ill=np.arange(60) % 6 == 0)
    bounds = interval(arm, seed=0, only=1)
    assert bounds.estimate == pytest.approx(f1_score(arm.targets, arm.preds[0], pos_label=1))
    assert (bounds.n_groups, bounds.n_samples, bounds.fewest_groups) == (10, 50, 10)
    recall = interval(arm, metric="balanced_accuracy", seed=0, only=1)
    assert recall.estimate == pytest.approx(np.mean(arm.preds[0][arm.targets == 1]))
    perfect = interval(arm.answered_by(arm.targets), seed=0, only=1)
    assert perfect.high == 1
    assert perfect.low == pytest.approx(10 / (10 + 1.645**2), abs=1e-3)  # Wilson's, of ten groups


def test_the_interval_of_the_rarer_class_covers_as_it_says():
    rng = np.random.default_rng(1)
    whole = rare(rng, n_groups=60_000)
    truth = f1_score(whole.targets, whole.preds[0])
    n_covered = 0
    for _ in range(150):
        bounds = interval(rare(rng), seed=0, n=500, only=1)
        n_covered += bounds.low <= truth <= bounds.high
    assert 0.84 <= n_covered / 150 <= 0.98
