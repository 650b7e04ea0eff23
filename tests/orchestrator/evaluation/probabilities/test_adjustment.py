"""Adjusted answers on planted probabilities: what is found, what it is worth, and that it is honest."""

import numpy as np
import pytest

from data_prep.catalog.label_schema import Schema
from data_prep.section_base import identity
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.probabilities.adjustment import (
    AdjustedLabel,
    adjusted,
    cross_fitted,
    fit,
)
from orchestrator.spec.models import FittedAdjustment, NoAdjustment, PriorAdjustment, Select

KIND = Schema({"kind": ["a", "b", "c"]})
TWO = Schema({"kind": ["a", "b", "c"], "light": ["dark", "bright"]})
PRIOR = np.array([0.7, 0.2, 0.1])
AS_FOUND = FittedAdjustment(classes="as_found")


def arm_of(probs, targets, people):
    """One seed per first index of probs (S, N, C)."""
    names = [f"p{person}" for person in people]
    samples = [f"s{row:05}" for row in range(len(targets))]
    preds = probs.argmax(2)
    return Predictions(samples, targets, preds, probs.shape[2], names, probs.astype(np.float32))


def world(rng, *, n_people, n_photos=2, n_seeds=2, believed=None, sharpness=1.0, signal=1.5):
    """People of classes by PRIOR; a model that knows the evidence and believes in other shares."""
    person_class = rng.choice(3, n_people, p=PRIOR)
    people = np.repeat(np.arange(n_people), n_photos)
    targets = person_class[people]
    believed = np.full(3, 1 / 3) if believed is None else believed
    seeds = []
    for _ in range(n_seeds):
        x = rng.normal(size=(len(targets), 3)) + signal * np.eye(3)[targets]
        logits = signal * x + np.log(believed)  # log p(x | class) + log share
        powers = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
        seeds.append(powers / powers.sum(1, keepdims=True))
    return arm_of(np.array(seeds), targets, people)


def test_off_is_the_same_arm_and_no_key():
    arm = world(np.random.default_rng(0), n_people=20)
    assert cross_fitted(arm, NoAdjustment(), KIND, seed=0) is arm
    assert fit(arm, NoAdjustment(), KIND) == ()
    assert adjusted(arm.probs, ()) is arm.probs
    assert "adjust" not in identity(Select())
    assert "adjust" not in identity(Select.model_validate({"adjust": "none"}))
    assert identity(Select.model_validate({"adjust": "fitted"}))["adjust"]["classes"] == "alike"


def test_a_wrong_prior_and_a_wrong_sharpness_are_found_and_mended():
    """The model believes in equal classes and is twice too sure; both are put right."""
    rng = np.random.default_rng(1)
    arm = world(rng, n_people=4000, sharpness=2.0)
    (label,) = fit(arm, AS_FOUND, KIND)
    assert label.temperature == pytest.approx(2.0, rel=0.1)
    wanted = np.log(PRIOR) - np.log(PRIOR).mean()
    assert label.shift == pytest.approx(wanted.tolist(), abs=0.15)
    honest = world(np.random.default_rng(1), n_people=4000, believed=PRIOR)
    moved = cross_fitted(arm, AS_FOUND, KIND, seed=0)
    hits = [np.mean(run.preds == run.targets) for run in (arm, moved, honest)]
    assert hits[1] > hits[0] + 0.02
    assert hits[1] == pytest.approx(hits[2], abs=0.005), "as good as the model that knew the shares"


@pytest.mark.parametrize("settings", [FittedAdjustment(), PriorAdjustment()], ids=lambda s: s.name)
def test_classes_count_alike_where_that_is_asked_for(settings):
    arm = world(np.random.default_rng(2), n_people=3000, believed=PRIOR)
    (label,) = fit(arm, settings, KIND)
    assert label.shift == pytest.approx((np.log(PRIOR).mean() - np.log(PRIOR)).tolist(), abs=0.15)
    moved = cross_fitted(arm, settings, KIND, seed=0)

    def mean_recall(run):
        hits = run.preds[0] == run.targets
        return np.mean([hits[run.targets == k].mean() for k in range(3)])

    assert mean_recall(moved) > mean_recall(arm) + 0.05


def test_a_person_counts_once_however_many_photos_it_has():
    rng = np.random.default_rng(3)
    targets = np.array([0] * 300 + [1, 2] * 10)
    people = np.array([0] * 300 + list(range(1, 21)))
    arm = arm_of(rng.dirichlet(np.ones(3), (1, 320)), targets, people)
    (label,) = fit(arm, PriorAdjustment(), KIND)
    shares = np.array([1, 10, 10]) / 21
    assert label.shift == pytest.approx((np.log(shares).mean() - np.log(shares)).tolist())


def test_labels_are_adjusted_each_by_its_own():
    rng = np.random.default_rng(4)
    kind, light = rng.dirichlet(np.ones(3), 50), rng.dirichlet(np.ones(2), 50)
    joint = (kind[:, :, None] * light[:, None, :]).reshape(50, 6)
    labels = (
        AdjustedLabel("kind", 2.0, (0.5, 0.0, -0.5)),
        AdjustedLabel("light", 0.5, (1.0, -1.0)),
    )

    def moved(probs, label):
        powers = probs ** (1 / label.temperature) * np.exp(label.shift)
        return powers / powers.sum(1, keepdims=True)

    wanted = moved(kind, labels[0])[:, :, None] * moved(light, labels[1])[:, None, :]
    np.testing.assert_allclose(wanted.reshape(50, 6), adjusted(joint, labels), rtol=1e-6)
    single = joint.astype(np.float32)
    single[:, 2] = 0.0  # a joint class that does not exist
    after = adjusted(single, labels)
    assert after.dtype == np.float32
    assert not after[:, 2].any()
    np.testing.assert_allclose(1.0, after.sum(1), rtol=1e-5)


def test_a_fit_of_two_labels_finds_each():
    rng = np.random.default_rng(5)
    n = 3000
    kind = rng.choice(3, n, p=PRIOR)
    light = rng.choice(2, n, p=[0.8, 0.2])
    flat = np.full((n, 6), 1 / 6)  # a model that knows nothing believes in equal shares
    arm = arm_of(flat[None], kind * 2 + light, np.arange(n))
    labels = fit(arm, AS_FOUND, TWO)
    assert [label.label for label in labels] == ["kind", "light"]
    marginals = adjusted(flat[:1], labels).reshape(3, 2)
    assert marginals.sum(1) == pytest.approx(PRIOR, abs=0.03)
    assert marginals.sum(0) == pytest.approx([0.8, 0.2], abs=0.03)


def guesses(rng, n_people):
    """A model of eight classes that knows nothing: two photos of each person, one seed."""
    targets = np.repeat(rng.integers(0, 8, n_people), 2)
    people = np.repeat(np.arange(n_people), 2)
    return arm_of(rng.dirichlet(np.full(8, 5.0), (1, len(targets))), targets, people)


def test_the_nested_estimate_is_not_optimistic():
    """On the 24 people of the fit it looks better than it is; what is published does not.

    As production calls it: `cross_fitted` gives the score that is published, `fit` what is deployed.
    """
    schema = Schema({"kind": list("abcdefgh")})
    gaps = {"nested": [], "naive": []}
    for repeat in range(30):
        rng = np.random.default_rng(repeat)
        arm, new = guesses(rng, 24), guesses(rng, 400)
        fitted = fit(arm, AS_FOUND, schema)
        truth = macro_f1(new.targets, adjusted(new.probs, fitted)[0].argmax(1), 8)
        nested = cross_fitted(arm, AS_FOUND, schema, seed=0).preds[0]
        naive = adjusted(arm.probs, fitted)[0].argmax(1)
        for name, preds in (("nested", nested), ("naive", naive)):
            gaps[name].append(macro_f1(arm.targets, preds, 8) - truth)
    errors = {name: np.std(gap) / np.sqrt(30) for name, gap in gaps.items()}
    assert np.mean(gaps["nested"]) < 2 * errors["nested"]
    assert np.mean(gaps["naive"]) > 3 * errors["naive"], "the test can tell them apart"


def test_no_label_of_a_person_moves_its_own_answers():
    arm = world(np.random.default_rng(6), n_people=30)
    moved = cross_fitted(arm, FittedAdjustment(), KIND, seed=0)
    first = np.array([name == "p0" for name in arm.groups])
    changed = arm.targets.copy()
    changed[first] = (changed[first] + 1) % 3
    from dataclasses import replace

    again = cross_fitted(replace(arm, targets=changed), FittedAdjustment(), KIND, seed=0)
    assert np.array_equal(again.probs[:, first], moved.probs[:, first])
    assert not np.array_equal(again.probs, moved.probs)


def test_parts_do_not_depend_on_the_order_of_photos():
    arm = world(np.random.default_rng(7), n_people=30)
    order = np.random.default_rng(0).permutation(len(arm.targets))
    moved = cross_fitted(arm, FittedAdjustment(), KIND, seed=0)
    shuffled = cross_fitted(arm.take(order), FittedAdjustment(), KIND, seed=0)
    np.testing.assert_allclose(moved.take(order).probs, shuffled.probs, atol=1e-4)


def test_one_person_alone_is_left_as_it_is():
    arm = world(np.random.default_rng(8), n_people=1, n_photos=5)
    assert cross_fitted(arm, FittedAdjustment(), KIND, seed=0) is arm
    assert fit(arm, FittedAdjustment(), KIND) == ()
