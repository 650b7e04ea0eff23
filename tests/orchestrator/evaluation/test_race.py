"""The race of finalists. Its long simulation is tests/campaign/race.py."""

import numpy as np

from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.race import RaceRules, stop_losers
from tests.campaign.race import RaceDesign, race, simulate

LADDER = RaceDesign("a ladder", 300, 3, 0.0, 0.0)


def arms_of(design=LADDER, seed=0):
    return simulate(design, np.random.default_rng(seed))


def test_a_finalist_far_behind_is_stopped_and_the_test_is_stated():
    arms = arms_of()
    rules = RaceRules(5, 2, 1, ())
    stopped = stop_losers(arms, rules, look=2)
    (last,) = (row for row in stopped if row.setting == "arm04")
    tested = paired_difference(arms["arm04"], arms[last.behind])
    assert last.difference == tested.difference < 0
    assert last.p_value == tested.p_value / 2
    assert last.p_adjusted == min(1.0, last.p_value * 4 * 2) < 0.10
    assert (last.look, last.n_seeds) == (2, 3)


def test_a_protected_finalist_is_never_stopped():
    rules = RaceRules(5, 2, 1, {"arm04"})
    assert "arm04" not in {row.setting for row in stop_losers(arms_of(), rules, look=1)}


def test_a_finalist_needs_as_many_better_ones_as_there_are_members():
    """With four members of five, arm03 may be the fourth: only the last can be out."""
    design = RaceDesign("a ladder", 1000, 5, 0.0, 0.0)
    arms = arms_of(design)
    by_members = {}
    for n_members in (1, 4, 5):
        rows = stop_losers(arms, RaceRules(5, 2, n_members, ()), look=1)
        by_members[n_members] = {row.setting for row in rows}
    assert {"arm03", "arm04"} <= by_members[1]
    assert by_members[4] <= {"arm04"}
    assert by_members[5] == set()


def test_more_looks_and_rivals_make_each_look_stricter():
    assert RaceRules(2, 1, 1, ()).n_tests == 1
    assert RaceRules(5, 4, 1, ()).n_tests == 16


def test_two_folds_of_one_seed_decide_nothing():
    arms = {}
    for name, arm in arms_of().items():
        first = arm.of_seeds(np.array([0]))
        arms[name] = first.take(np.flatnonzero(first.folds[0] < 2))
    assert stop_losers(arms, RaceRules(5, 2, 1, ()), look=1) == []


def test_a_best_finalist_is_stopped_in_at_most_a_tenth_of_races():
    """Four designs x 60: standard error of a rate of .10 is .04."""
    for design in (
        RaceDesign("all equal", 50, 3, 0.02, 0.0),
        RaceDesign("all equal", 50, 2, 0.0, 0.0),
        RaceDesign("a ladder", 100, 3, 0.01, 0.15),
        RaceDesign("all equal", 50, 3, 0.01, 0.0, n_members=3),
    ):
        assert race(design, 60).stops_a_best <= 0.10 + 2 * 0.04


def test_bad_finalists_save_trainings():
    assert race(RaceDesign("two good, eight bad", 200, 5, 0.01, 0.0), 10).saves > 0.3
