"""Sizes of classes over people and photos, and the weights that losses make of them."""

import numpy as np
import pytest

from trainers.objectives.class_counts import (
    balanced_weights,
    class_counts,
    effective_weights,
    log_shares,
)

CODES = np.array([0, 0, 0, 0, 1, 1, 2, -1])
PEOPLE = np.array([7, 7, 7, 7, 7, 9, 9, 9])


def test_a_person_counts_once_divided_among_its_classes():
    assert class_counts(CODES, 4).tolist() == [4, 2, 1, 0]
    # of person 7 four of five photos are of class 0; person 9 has one photo of each of two classes
    assert class_counts(CODES, 4, PEOPLE) == pytest.approx([0.8, 0.2 + 0.5, 0.5, 0])


def test_many_photos_of_one_person_do_not_make_a_class_large():
    codes = np.repeat([0, 1, 1], [100, 1, 1])
    assert class_counts(codes, 2, np.repeat([0, 1, 2], [100, 1, 1])) == pytest.approx([1, 2])


def test_shares_have_a_logarithm_for_a_class_of_none_too():
    shares = np.exp(log_shares(np.array([8.0, 1.5, 0.0])))
    assert shares.tolist() == pytest.approx([0.8, 0.15, 0.05])


def test_effective_numbers_are_cuis():
    """Eq. 4 of Cui et al. 2019 with the weights normalized as in section 4.2: they sum to C."""
    counts, beta = np.array([1000.0, 100.0, 10.0]), 0.999
    raw = np.array([(1 - beta) / (1 - beta**n) for n in counts])
    wanted = raw * 3 / raw.sum()
    assert effective_weights(counts, beta) == pytest.approx(wanted)
    # the limits: beta near 0 weighs alike, beta near 1 by 1 / size
    assert effective_weights(counts, 1e-9) == pytest.approx([1, 1, 1])
    by_size = (1 / counts) * 3 / (1 / counts).sum()
    assert effective_weights(counts, 1 - 1e-9) == pytest.approx(by_size, rel=1e-4)


def test_a_class_of_none_weighs_nothing():
    counts = np.array([6.0, 2.0, 0.0])
    assert effective_weights(counts, 0.99)[2] == 0
    assert effective_weights(counts, 0.99).sum() == pytest.approx(2)
    assert balanced_weights(counts).tolist() == pytest.approx([8 / 12, 8 / 4, 0])
