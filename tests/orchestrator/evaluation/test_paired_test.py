import numpy as np
import pytest
from scipy.stats import t as student_t

from orchestrator.base.errors import UserError
from orchestrator.evaluation.paired_test import NEEDS_MORE, holm, paired_difference
from orchestrator.evaluation.power import needed
from orchestrator.evaluation.predictions import Predictions
from tests.campaign.verdicts import TestDesign, simulate


def arm(hits, *, folds=None, seeds=None, per_group=5):
    """Answers that are right where `hits` (S, N) is true; class 0 or 1 by turns."""
    hits = np.atleast_2d(hits)
    targets = np.arange(hits.shape[1]) % 2
    ids = [f"s{i}" for i in range(len(targets))]
    groups = [f"g{i // per_group}" for i in range(len(targets))]
    preds = np.where(hits, targets, 1 - targets)
    return Predictions(ids, targets, preds, 2, groups, None, folds, seeds)


def test_the_formula_by_hand():
    """Accuracy, 2 seeds, 2 folds dealt once, 4 people of one photo each, the second arm all right."""
    hits = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], bool)
    folds = np.array([[0, 1, 0, 1]] * 2)
    first = arm(hits, folds=folds, per_group=1)
    second = arm(np.ones((2, 4), bool), folds=folds, per_group=1)
    tested = paired_difference(first, second, metric="accuracy")
    gaps = np.array([0, -0.5, -1, -0.5]) / 4
    people = 4 / 3 * ((gaps - gaps.mean()) ** 2).sum()
    assert tested.difference == pytest.approx(-0.5)
    assert tested.v_people == pytest.approx(people)
    # rest of seed 0: 0, 1/8, 0, -1/8, whose people are both in fold 1: no luck, only noise
    assert tested.v_train == pytest.approx(0)
    assert tested.v_noise == pytest.approx(4 * (1 / 8) ** 2 / 2)
    assert (tested.df, tested.luck_of_one_training) == (pytest.approx(3), 0)
    assert tested.standard_error == pytest.approx(people**0.5)


def reference_p_value(arms):
    """The two-way test written a second time, person by person, from the sources' formulas.

    It shares nothing with the code under test but the definition of macro F1. Equal p values mean
    equal level and power on any data.
    """
    n_seeds, _ = arms[0].preds.shape
    targets, n_classes = arms[0].targets, arms[0].n_classes
    people = sorted(set(arms[0].groups))
    n_people, n_folds = len(people), 1 + max(int(a.folds.max()) for a in arms)
    of_person = [[i for i, g in enumerate(arms[0].groups) if g == name] for name in people]

    def table(preds, photos):  # hits, answers and targets of each class
        return np.array(
            [
                [sum(preds[i] == k == targets[i] for i in photos) for k in range(n_classes)],
                [sum(preds[i] == k for i in photos) for k in range(n_classes)],
                [sum(targets[i] == k for i in photos) for k in range(n_classes)],
            ],
            float,
        )

    tables = np.array(
        [[[table(row, photos) for photos in of_person] for row in a.preds] for a in arms]
    )  # (arms, seeds, people, 3, classes)
    totals = tables.sum(2)
    f1 = 2 * totals[:, :, 0] / (totals[:, :, 1] + totals[:, :, 2])
    difference = f1[0].mean() - f1[1].mean()
    hits, answers, truths = totals.mean((0, 1))
    middle = 2 * hits / (answers + truths)
    v = (2 * tables[..., 0, :] - middle * (tables[..., 1, :] + tables[..., 2, :])) / (
        answers + truths
    )
    v = v.mean(-1)  # (arms, seeds, people)
    gaps = v[0].mean(0) - v[1].mean(0)
    v_people = n_people / (n_people - 1) * sum((gaps - gaps.mean()) ** 2)
    v_train = v_noise = 0.0
    for a, of_arm in zip(arms, v, strict=True):
        rest = of_arm - of_arm.mean(0)
        is_anew = any((a.folds[s] != a.folds[0]).any() for s in range(n_seeds))
        c = (n_seeds - 1) * (n_seeds - 1 + 1 / n_folds if is_anew else n_seeds)
        for s in range(n_seeds):
            fold_of = [a.folds[s][photos[0]] for photos in of_person]
            for fold in range(n_folds):
                v_train += sum(rest[s][g] for g in range(n_people) if fold_of[g] == fold) ** 2 / c
            v_noise += sum(rest[s] ** 2) / c
    luck = max(0.0, v_train - v_noise)
    spread = v_people**2 / (n_people - 1)
    if luck > 0:
        spread += v_train**2 / (2 * n_folds * (n_seeds - 1))
    variance = v_people + luck
    return 2 * student_t.sf(abs(difference) / variance**0.5, variance**2 / spread)


@pytest.mark.parametrize("luck", [0.0, 0.1])
@pytest.mark.parametrize(("n_seeds", "anew"), [(2, True), (3, True), (3, False), (5, True)])
def test_the_test_is_that_of_its_sources(luck, n_seeds, anew):
    rng = np.random.default_rng([n_seeds, anew, int(100 * luck)])
    design = TestDesign(30, n_seeds, luck, 0.15, anew=anew, effect=0.03)
    arms = list(simulate(design, rng).values())
    tested = paired_difference(*arms)
    assert tested.p_value == pytest.approx(reference_p_value(arms), rel=1e-9)
    assert (luck > 0) <= (tested.v_train > tested.v_noise), "both branches are tried"


@pytest.mark.parametrize("seed", range(8))
def test_interval_and_p_value_never_contradict(seed):
    rng = np.random.default_rng(seed)
    folds = rng.integers(0, 3, (2, 20)).repeat(5, axis=1)
    first, second = (arm(rng.random((2, 100)) < skill, folds=folds) for skill in (0.75, 0.65))
    tested = paired_difference(first, second)
    assert (tested.p_value < 0.10) == (not tested.low <= 0 <= tested.high)


def test_a_p_value_is_never_0_with_unequal_seeds():
    """The swap test repeated the missing seed in its patterns and not in the difference: p was 0."""
    half_right = np.isin(np.arange(15), [0, 1, 5, 6, 7, 10])
    first = arm(np.ones((3, 15), bool), seeds=(0, 1, 2))
    second = arm(np.stack([half_right, np.zeros(15, bool)]), seeds=(0, 1))
    tested = paired_difference(first, second)
    assert tested.p_value > 0.05
    assert tested.n_seeds == 2
    assert tested.difference == pytest.approx(0.8)


def test_arms_are_compared_by_the_seeds_that_both_have():
    rng = np.random.default_rng(1)
    hits = rng.random((3, 100)) < 0.7
    tested = paired_difference(arm(hits, seeds=(4, 5, 6)), arm(hits[1:2], seeds=(5,)))
    assert (tested.difference, tested.p_value, tested.n_seeds) == (0.0, 1.0, 1)


def test_one_seed_of_two_folds_decides_nothing_and_says_what_it_needs():
    rng = np.random.default_rng(2)
    folds = np.repeat([0, 1], 50)[None]
    first, second = (arm(rng.random((1, 100)) < skill, folds=folds) for skill in (0.95, 0.3))
    tested = paired_difference(first, second)
    assert (tested.p_value, tested.low) == (None, None)
    assert NEEDS_MORE in tested.reason


def test_one_seed_of_five_folds_is_tested_by_folds():
    rng = np.random.default_rng(3)
    folds = np.repeat(np.arange(5), 20)[None]
    first, second = (arm(rng.random((1, 100)) < skill, folds=folds) for skill in (0.95, 0.3))
    tested = paired_difference(first, second, metric="accuracy")
    gaps = [
        np.mean(first.preds[0] == first.targets, where=folds[0] == f)
        - np.mean(second.preds[0] == second.targets, where=folds[0] == f)
        for f in range(5)
    ]
    assert (tested.rests_on, tested.df) == ("folds", 4)
    assert tested.standard_error == pytest.approx(np.std(gaps, ddof=1) / 5**0.5)


def test_two_votes_are_compared_by_people():
    rng = np.random.default_rng(4)
    tested = paired_difference(arm(rng.random(100) < 0.9), arm(rng.random(100) < 0.4))
    assert (tested.rests_on, tested.df, tested.luck_of_one_training) == ("people", 19, None)
    assert tested.low > 0


def test_arms_are_compared_on_the_samples_that_both_saw():
    first = arm(np.random.default_rng(5).random(100) < 0.7)
    tested = paired_difference(first, first.take(np.arange(50)))
    assert (tested.difference, tested.p_value) == (0.0, 1.0)
    assert (tested.n_samples, tested.n_groups, tested.n_left_out) == (50, 10, 50)
    with pytest.raises(UserError, match="photos that both arms predicted were required"):
        paired_difference(first.take(np.arange(50)), first.take(np.arange(50, 100)))


def test_the_luck_of_one_training_is_found():
    """Arms whose trainings differ by sd .05 over 400 people, 6 seeds x 3 folds dealt anew."""
    rng = np.random.default_rng(6)
    folds = rng.integers(0, 3, (6, 400)).repeat(5, axis=1)
    arms = []
    for _ in range(2):
        luck = 0.05 * rng.normal(size=(6, 3))
        skill = 0.8 + np.take_along_axis(luck, folds, axis=1)
        arms.append(arm(rng.random((6, 2000)) < skill, folds=folds))
    tested = paired_difference(*arms, metric="accuracy")
    assert tested.folds_anew
    assert tested.luck_of_one_training == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_arms_that_answer_almost_alike_have_no_interval_beyond_any_score(seed):
    """Each arm's answers are the other's with the seeds swapped, so people differ by nothing."""
    rng = np.random.default_rng(seed)
    folds = rng.integers(0, 5, (2, 300))
    hits = rng.random((2, 300)) < 0.7
    first = arm(hits, folds=folds, per_group=1)
    tested = paired_difference(first, arm(hits[::-1], folds=folds[::-1], per_group=1))
    assert tested.v_people == pytest.approx(0)
    if tested.df is not None:
        assert tested.df >= 1
        assert -0.5 < tested.low <= 0 <= tested.high < 0.5


def test_people_do_not_lower_luck_and_seeds_do_not_lower_the_peoples_part():
    rng = np.random.default_rng(7)
    folds = rng.integers(0, 3, (3, 400)).repeat(5, axis=1)
    lucky = [
        arm(
            rng.random((3, 2000))
            < 0.8 + np.take_along_axis(0.06 * rng.normal(size=(3, 3)), folds, axis=1),
            folds=folds,
        )
        for _ in range(2)
    ]
    needs = needed(paired_difference(*lucky), alpha=0.10, difference=0.02)
    assert needs.n_groups is None
    assert needs.n_seeds > 3
    people = [arm(np.tile(rng.random(2000) < 0.7, (3, 1)), folds=folds) for _ in range(2)]
    needs = needed(paired_difference(*people), alpha=0.10, difference=0.01)
    assert needs.n_groups > 400
    assert needs.n_seeds is None
    needs = needed(paired_difference(*people), alpha=0.10, difference=0.0)
    assert (needs.n_groups, needs.n_seeds, needs.both) == (None, None, None)


def test_holm_is_that_of_the_textbook():
    assert pytest.approx([0.03, 0.06, 0.06, 0.02]) == holm([0.01, 0.04, 0.03, 0.005])


def test_the_luck_of_each_arm_is_that_of_its_own_folds():
    """Luck by the folds of the first arm alone cannot be seen by the folds of the second."""
    rng = np.random.default_rng(8)
    folds = rng.integers(0, 3, (2, 4, 300)).repeat(5, axis=2)
    luck = 0.08 * rng.normal(size=(4, 3))
    skill = 0.75 + np.take_along_axis(luck, folds[0], axis=1)
    hits = rng.random((2, 4, 1500))
    lucky = arm(hits[0] < skill, folds=folds[0])
    steady = arm(hits[1] < 0.75, folds=folds[1])
    tested = paired_difference(lucky, steady, metric="accuracy")
    foreign = arm(hits[0] < skill, folds=folds[1])
    hidden = paired_difference(foreign, steady, metric="accuracy")
    assert tested.v_train - tested.v_noise > 3 * max(0, hidden.v_train - hidden.v_noise)
    assert tested.luck_of_one_training > 0.02 > hidden.luck_of_one_training


def test_one_group_is_not_tested():
    hits = np.random.default_rng(9).random((2, 2, 5)) < 0.7
    tested = paired_difference(arm(hits[0]), arm(hits[1]))
    assert (tested.p_value, tested.reason) == (None, "needs 2 groups or more")
