"""How many trials share a card, as a function of four numbers."""

import pytest

from orchestrator.search.card_sharing.capacity import CardUse, size_of, trials_per_card
from tests.orchestrator.search.card_sharing.fixed_card import GB
from trainers.config import Train


@pytest.mark.parametrize(
    ("total", "reserve", "peak", "busy", "n"),
    [
        (100, 10, 30, 0.4, 3),  # 90 GB hold three; the third adds a fifth of a card
        (100, 10, 31, 0.4, 2),  # the memory decides
        (100, 10, 5, 0.4, 3),  # the work decides
        (100, 10, 5, 0.5, 2),
        (
            100,
            10,
            5,
            0.66,
            2,
        ),  # the second one meets an idle card for a little over half of its work
        (100, 10, 5, 0.67, 1),  # ... and here for less
        (100, 10, 5, 1.0, 1),
        (100, 10, 1, 0.0, 8),  # nothing but the limit decides
        (100, 10, 95, 0.1, 1),  # it ran, so it fits alone, reserve or not
        (100, 10, 0, 0.1, 8),
    ],
)
def test_memory_and_work_decide_how_many_share_a_card(total, reserve, peak, busy, n):
    assert n == trials_per_card(total * GB, reserve * GB, peak * GB, busy)


def test_peaks_fit_beside_the_reserve_and_the_last_trial_meets_an_idle_card():
    for peak in range(1, 101, 3):
        for percent in range(1, 101, 3):
            n = trials_per_card(100, 10, peak, percent / 100)
            assert n == 1 or n * peak <= 90
            assert n == 1 or (n - 1 / 2) * percent / 100 <= 1 + 1e-9


def test_a_tenth_of_the_card_is_left_free():
    assert 3 == CardUse("test card", 100 * GB, 30 * GB, 0.1).trials_per_card
    assert 2 == CardUse("test card", 100 * GB, 31 * GB, 0.1).trials_per_card


def test_a_size_is_what_decides_memory_and_work():
    train = Train.model_validate({"model": {"backbone": "resnet18"}, "batch_size": 64})
    size = size_of(train, 224)
    assert "resnet18 with head single, 224 px, 64 photos at once, fp32" == str(size)
    assert size == size_of(train.model_copy(update={"duration": "99 epochs"}), 224)
    frozen = Train.model_validate({"model": {"backbone": "resnet18", "frozen": {"views": 1}}})
    others = [
        size_of(train, 160),
        size_of(train, 224, micro_batch=16),
        size_of(train.model_copy(update={"micro_batch": 32}), 224),
        size_of(train.model_copy(update={"precision": "bf16"}), 224),
        size_of(frozen, 224),
    ]
    assert 6 == len({size, *others})
    assert str(size_of(frozen, 224)).startswith("frozen resnet18")
