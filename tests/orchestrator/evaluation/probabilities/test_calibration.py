import numpy as np
import pytest
from sklearn.metrics import log_loss

from orchestrator.evaluation.metrics import Owners
from orchestrator.evaluation.probabilities.calibration import (
    calibrate,
    fit_temperature,
    label_probs,
    scale,
)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def model(rng, n_people=200, n_photos=5, temperature=2.0, n_classes=4):
    """A model whose logits are `temperature` times too sure; labels follow the honest ones."""
    honest = np.repeat(1.5 * rng.normal(size=(n_people, n_classes)), n_photos, 0)
    honest = honest + 0.5 * rng.normal(size=honest.shape)
    chances = softmax(honest).cumsum(1)
    targets = (rng.random((len(honest), 1)) > chances).sum(1).clip(0, n_classes - 1)
    owners = Owners(np.repeat(np.arange(n_people), n_photos), n_people)
    return softmax(temperature * honest), targets, owners


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_planted_temperature_is_found(temperature):
    probs, targets, _ = model(np.random.default_rng(0), 1000, temperature=temperature)
    assert fit_temperature(probs, targets) == pytest.approx(temperature, rel=0.1)


def test_the_fit_is_the_least_log_loss():
    probs, targets, _ = model(np.random.default_rng(1))
    best = fit_temperature(probs, targets)
    losses = [log_loss(targets, scale(probs, t)) for t in (best, 0.98 * best, 1.02 * best)]
    assert losses[0] < min(losses[1:])


def test_a_temperature_keeps_the_order_of_the_classes():
    probs, _, _ = model(np.random.default_rng(2))
    for temperature in (0.05, 0.7, 4.0, 20.0):
        scaled = scale(probs, temperature)
        assert np.array_equal(scaled.argmax(1), probs.argmax(1))
        assert scaled.sum(1) == pytest.approx(1)
    assert scale(probs, 1.0) == pytest.approx(probs, abs=1e-6)


def test_too_sure_probabilities_are_corrected_on_people_that_were_not_fitted():
    probs, targets, owners = model(np.random.default_rng(3), temperature=3.0)
    found = calibrate("age", probs, targets, owners, seed=0)
    assert found.helps
    assert found.log_loss.before == pytest.approx(log_loss(targets, probs), abs=1e-6)
    assert found.log_loss.after < found.log_loss.before
    assert found.calibration_error.high < 0
    assert found.calibration_error.after < 0.06


def test_honest_probabilities_are_seldom_said_to_be_corrected():
    """Nothing is to be gained: a gain is claimed in at most 5 % of data sets, and seldom at all."""
    n_helped = 0
    for seed in range(100):
        probs, targets, owners = model(np.random.default_rng(seed), 60, temperature=1.0)
        n_helped += calibrate("age", probs, targets, owners, seed=0).helps
    assert n_helped <= 8


def test_the_gain_by_cross_fitting_is_that_on_new_people():
    """Fitted and judged on the same 12 people the gain looks larger than it is."""
    stated, reached, naive = [], [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        probs, targets, owners = model(rng, 12, temperature=1.2)
        found = calibrate("age", probs, targets, owners, seed=seed)
        stated.append(found.log_loss.after - found.log_loss.before)
        fitted = scale(probs, found.temperature)
        naive.append(log_loss(targets, fitted, labels=range(4)) - found.log_loss.before)
        new, truth, _ = model(rng, 300, temperature=1.2)
        shift = log_loss(truth, scale(new, found.temperature)) - log_loss(truth, new)
        reached.append(shift)
    assert np.mean(stated) == pytest.approx(np.mean(reached), abs=0.006)
    assert np.mean(naive) < np.mean(reached) - 0.004


def test_the_interval_of_the_change_covers_the_truth():
    """90 % intervals of the gain of a temperature, 100 data sets: standard error .03."""
    rng = np.random.default_rng(5)
    new, truth, _ = model(rng, 4000, temperature=2.0)
    n_inside = 0
    for seed in range(100):
        probs, targets, owners = model(np.random.default_rng(seed), 60, temperature=2.0)
        found = calibrate("age", probs, targets, owners, seed=0)
        gain = log_loss(truth, scale(new, found.temperature)) - log_loss(truth, new)
        n_inside += found.log_loss.low <= gain <= found.log_loss.high
    assert n_inside >= 80


def test_one_person_alone_cannot_be_judged():
    owners = Owners(np.zeros(4, np.int64), 1)
    assert calibrate("age", np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), owners, seed=0) is None


def test_a_label_has_the_summed_probability_of_its_joint_classes():
    joint = np.array([[0.1, 0.2, 0.3, 0.4]])
    assert label_probs(joint, np.array([0, 0, 1, 1]), 2) == pytest.approx(np.array([[0.3, 0.7]]))
    assert label_probs(joint, np.array([0, 1, 0, 1]), 2) == pytest.approx(np.array([[0.4, 0.6]]))
