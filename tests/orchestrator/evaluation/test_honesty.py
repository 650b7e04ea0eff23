"""Short forms of tests/campaign/verdicts.py and checkpoints.py: what intervals and tests promise.

The functions are those that production calls. Long form and figures: `make campaign`, LOG.md.
"""

from dataclasses import replace

import numpy as np
import pytest

from tests.campaign.checkpoints import CurveDesign, errors
from tests.campaign.verdicts import (
    COVERAGE,
    CoverageDesign,
    TestDesign,
    coverage,
    equality,
    looks,
    promises,
    told_apart,
)


def test_the_90_percent_interval_covers_90_percent():
    """Six designs x 60 sets: standard error .016."""
    designs = [
        CoverageDesign(n, n_photos, accuracy, 0.8, unequal=False)
        for n, n_photos in ((7, 1), (15, 7))
        for accuracy in (0.5, 0.85, 0.98)
    ]
    assert set(designs) <= set(COVERAGE)
    rates = [coverage(design, 60, n=300).inside for design in designs]
    assert 0.88 - 2 * 0.016 <= np.mean(rates) <= 0.92 + 2 * 0.016
    assert min(rates) >= 0.85 - 2 * 0.046


def test_equal_arms_are_told_apart_in_a_tenth_of_cases():
    """The swap test reached .41 with luck .02 and 300 people. Six designs x 100: standard error .012."""
    designs = [
        TestDesign(300, 2, 0.02, 0.0),
        TestDesign(300, 5, 0.02, 0.0),
        TestDesign(100, 3, 0.01, 0.15),
        TestDesign(30, 2, 0.0, 0.0),
        TestDesign(100, 1, 0.01, 0.0),
        TestDesign(100, 3, 0.0, 0.0, training_set_luck=0.01),
    ]
    rates = [told_apart(design, 100).decided for design in designs]
    assert 0.08 - 2 * 0.012 <= np.mean(rates) <= 0.11 + 2 * 0.012
    assert max(rates) <= 0.12 + 2 * 0.033


def test_a_planted_effect_is_found():
    assert told_apart(TestDesign(300, 3, 0.01, 0.0, effect=0.04), 60).decided > 0.8


def test_four_looks_are_wrong_as_rarely_as_one():
    """At 0.10 each time they are wrong in .22 to .24. Standard error of 150: .025."""
    assert looks(150, n_people=60) <= 0.10 + 2 * 0.025


@pytest.mark.parametrize("design", [TestDesign(30, 3, 0.0, 0.0, effect=0.03)])
def test_a_number_that_is_named_decides_as_often_as_planned(design):
    """Planned for 80 %; the standard error of 100 is .04."""
    named = list(promises(design, 100))
    assert {promise.what for promise in named} == {"n_groups", "n_seeds"}
    for promise in named:
        assert promise.decided == pytest.approx(0.80, abs=0.08 + 2 * 0.04)


def test_equal_within_a_margin_is_rarely_said_at_the_margins_edge():
    """Two one-sided tests at .05; the standard error of 150 is .018."""
    design = TestDesign(300, 2, 0.0, 0.0, effect=0.03, accuracy=0.6)
    assert equality(design, 0.03, 150).equal <= 0.05 + 2 * 0.018
    assert equality(replace(design, effect=0.0), 0.03, 60).equal > 0.3


def test_arms_of_two_splits_are_told_apart_in_a_tenth_of_cases():
    design = TestDesign(100, 3, 0.02, 0.0, other_split=True)
    assert told_apart(design, 200).decided <= 0.10 + 2 * 0.021


def test_the_extrapolated_score_of_more_checkpoints_is_about_what_they_reach():
    """Three checkpoints out of fold are too low by .06 for nine."""
    row = errors(CurveDesign(120, 3, 6, 2.0, 1.0, 0.5, 1.5), 20)
    assert row.out_of_fold < -0.03
    assert abs(row.bias) < 0.01 + 2 * row.error / 20**0.5
    assert row.inside >= 0.7
