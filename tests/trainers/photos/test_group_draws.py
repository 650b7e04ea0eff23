"""One photo of each group in an epoch: who is drawn, how often, and with what it composes."""

from dataclasses import replace

import numpy as np
import pytest

from trainers.data import Mixable, Task, epoch_order, epoch_size
from trainers.photos.group_draws import draw_per_group, draw_shares, n_drawn
from trainers.photos.mixing import offline_pairs
from trainers.settings.augment import OfflineMixUp

GROUPS = np.array([5, 5, 5, 5, 2, 2, 9, 7, 7, 7])


def draws(n, epochs=3000):
    rng = np.random.default_rng(0)
    return [draw_per_group(GROUPS, n, rng) for _ in range(epochs)]


@pytest.mark.parametrize(("n", "expected"), [(1, 4), (2, 7), (3, 9), (9, 10)])
def test_each_group_has_at_most_n_rows_and_small_ones_have_all(n, expected):
    for drawn in draws(n, epochs=50):
        assert expected == len(set(drawn.tolist())) == n_drawn(GROUPS, n)
        _, sizes = np.unique(GROUPS[drawn], return_counts=True)
        assert sizes.max() <= n
        assert set(GROUPS) == set(GROUPS[drawn])


@pytest.mark.parametrize("n", [1, 2])
def test_each_row_of_a_group_is_drawn_equally_often(n):
    counts = np.bincount(np.concatenate(draws(n)), minlength=len(GROUPS)) / 3000
    np.testing.assert_allclose(draw_shares(GROUPS, n), counts, atol=0.04)


@pytest.fixture
def task():
    rows = np.arange(40)
    codes = np.stack([rows % 2, (rows // 20) % 2], 1)
    images = np.zeros((40, 4, 4, 3), np.uint8)
    names = [f"s{row}" for row in rows]
    group = rows // 5
    mixable = Mixable(np.ones(40, bool), np.zeros(40, int), group)
    return Task(images, codes, names, {"a": 2, "b": 2}, rows[:30], rows[30:], mixable, groups=group)


def order_of(task, epoch=1, balance="none", n=1, seed=3):
    return epoch_order(task, seed=seed, epoch=epoch, balance=balance, group_photos=n)


def test_an_epoch_is_a_function_of_seed_and_epoch_and_never_holds_val_rows(task):
    first = order_of(task)
    np.testing.assert_array_equal(first, order_of(task))
    assert not np.array_equal(np.sort(first), np.sort(order_of(task, epoch=2)))
    assert not np.array_equal(np.sort(first), np.sort(order_of(task, seed=4)))
    assert sorted(set(task.groups[first])) == sorted(task.groups[first]) == list(range(6))
    assert epoch_size(task, 1) == len(first) == 6
    assert first.max() < 30
    seen = set()
    for epoch in range(60):
        seen |= set(order_of(task, epoch=epoch).tolist())
    assert set(range(30)) == seen


def test_without_the_setting_the_order_is_what_it_was(task):
    rng_order = epoch_order(task, seed=3, epoch=1, balance="none")
    without = epoch_order(replace(task, groups=None), seed=3, epoch=1, balance="none")
    np.testing.assert_array_equal(without, rng_order)
    assert 30 == epoch_size(task) == len(rng_order)


def test_a_weighted_sampler_draws_classes_equally_among_the_photos_of_the_epoch(task):
    skewed = replace(task, targets=np.stack([np.arange(40) % 5 == 0, np.zeros(40)], 1).astype(int))
    counts = np.zeros(2)
    for epoch in range(400):
        order = order_of(skewed, epoch=epoch, balance="weighted_sampler", n=2)
        assert 12 == len(order)
        _, sizes = np.unique(task.groups[np.unique(order)], return_counts=True)
        assert sizes.max() <= 2
        counts += np.bincount(skewed.targets[order, 0], minlength=2)
    assert counts[1] / counts.sum() == pytest.approx(0.5, abs=0.06)


def test_mixed_rows_are_drawn_with_the_group_of_their_first_parent(task):
    pairs = offline_pairs(OfflineMixUp(ratio=1.0), task.train, task.mixable, seed=0)
    mixed = task.with_pairs(pairs)
    n_mixed = 0
    for epoch in range(200):
        order = order_of(mixed, epoch=epoch)
        first, _ = mixed.parents(order)
        assert list(range(6)) == sorted(task.groups[first])
        n_mixed += np.count_nonzero(order >= 40)
    assert n_mixed / 1200 == pytest.approx(0.5, abs=0.06)  # as many blends as photos


def test_groups_are_required(task):
    with pytest.raises(ValueError, match=r"group_photos: task.groups was required"):
        order_of(replace(task, groups=None))
