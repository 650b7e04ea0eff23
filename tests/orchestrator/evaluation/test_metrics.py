import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from orchestrator.evaluation.metrics import (
    calibration_error,
    class_metrics,
    counts,
    linear_shares,
    macro_f1,
    recalls,
    score,
    total_variation,
)


def test_macro_f1_is_that_of_scikit_learn_over_the_classes_present():
    rng = np.random.default_rng(0)
    targets, preds = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    assert f1_score(targets, preds, average="macro", labels=range(5)) == pytest.approx(
        macro_f1(targets, preds, 6)
    )


def test_scores_per_class_are_those_of_scikit_learn():
    rng = np.random.default_rng(6)
    targets, preds = rng.integers(0, 4, 300), rng.integers(0, 5, 300)
    rows = class_metrics(targets, preds, 6)
    precision, recall, f1, n = precision_recall_fscore_support(
        targets, preds, labels=range(4), zero_division=0
    )
    assert [row.code for row in rows] == [0, 1, 2, 3]
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1), ("n", n)):
        assert wanted == pytest.approx([getattr(row, name) for row in rows])


def test_calibration_error_by_hand():
    sure, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    assert calibration_error(sure, right, n_bins=10) == pytest.approx((2 * 0.05 + 2 * 0.05) / 4)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0.0


def test_small_measures_by_hand():
    targets, preds = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert (recalls(targets, preds, 3), total_variation(targets, preds, 3)) == (
        {0: 0.5, 1: 1.0},
        0.25,
    )


def test_weights_below_one_scale_no_score():
    targets, preds = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    tally = counts(targets, preds, np.zeros(4, np.int64), 1, 2)
    for metric in ("macro_f1", "accuracy"):
        assert score(tally * 0.01, metric) == pytest.approx(score(tally, metric))


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_linear_shares_are_the_derivative_of_a_score(metric):
    rng = np.random.default_rng(1)
    targets, preds = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    tallies = counts(targets, preds, np.arange(200), 200, 4)
    whole = tallies.sum(0)
    shares = linear_shares(targets, preds, whole, metric)
    assert shares.sum() == pytest.approx(0, abs=1e-12)
    step = score(whole + 1e-6 * tallies, metric) - score(whole, metric)
    assert step / 1e-6 == pytest.approx(shares, abs=1e-5)
