"""CutMix and MixUp: photos pixel by pixel, targets exactly, and never across a split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.config import Train
from trainers.data import Mixable, Task
from trainers.objectives.losses import branch_loss
from trainers.photos.mixing import half_cutmix, mix, mixup, offline_pairs, random_cutmix
from trainers.settings.augment import OfflineMixUp, OnlineMixUp
from trainers.settings.loss import CrossEntropy

SIZES = {"mask": 3, "gender": 2, "age": 3}


def task(n=10):
    codes = np.stack([np.arange(n) % 3, np.arange(n) % 2, np.arange(n) // 8], 1)
    photos = (
        np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 4, 3), np.uint8) * 10
    )
    return Task(
        photos, codes, [f"p{i}" for i in range(n)], SIZES, np.arange(n - 3), np.arange(n - 3, n)
    )


def test_half_cutmix_of_two_known_photos_pixel_by_pixel_and_its_loss_by_hand():
    left, right = torch.arange(24.0).view(1, 3, 2, 4), 100 + torch.arange(24.0).view(1, 3, 2, 4)
    x = torch.cat([left, right])
    mixed = half_cutmix(x, torch.tensor([1, 0]))
    for row in range(2):
        for column in range(4):
            kept, other = (left, right) if column < 2 else (right, left)
            assert kept[0, :, row, column].tolist() == mixed.x[0, :, row, column].tolist()
            assert other[0, :, row, column].tolist() == mixed.x[1, :, row, column].tolist()
    assert (0.0, 123.0) == (x.min().item(), x.max().item())  # its argument is left alone
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    mixed_task = task()
    targets = mixed_task.targets_of(np.array([0, 1]), np.array([0, 1])).mixed(
        mixed.partner, mixed.weight
    )
    log_p = torch.log_softmax(logits, 1)
    by_hand = -(0.5 * log_p[0, 0] + 0.5 * log_p[0, 1] + 0.5 * log_p[1, 1] + 0.5 * log_p[1, 0]) / 2
    torch.testing.assert_close(by_hand, branch_loss(CrossEntropy(), None)(logits, targets))


@pytest.mark.parametrize("width", [4, 5, 225])
def test_half_cutmix_weighs_a_photo_by_the_share_of_columns_that_stay(width):
    x = torch.stack([torch.ones(3, 2, width), torch.zeros(3, 2, width)])
    mixed = half_cutmix(x, torch.tensor([1, 0]))
    torch.testing.assert_close(mixed.x[0].mean(), mixed.weight[0])
    assert (0.5 if width == 4 else (width - 1) / (2 * width)) == pytest.approx(
        mixed.weight[0].item()
    )


def test_a_partner_order_that_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match="permutation"):
        half_cutmix(torch.zeros(2, 3, 2, 2), torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("lam", "at"), [(0.3, (0.5, 0.5)), (0.9, (0.0, 1.0)), (0.0, (0.5, 0.5)), (1.0, (0.2, 0.2))]
)
def test_a_random_box_weighs_what_is_left_of_the_photo(lam, at):
    x = torch.stack([torch.zeros(1, 40, 30), torch.ones(1, 40, 30)])
    mixed = random_cutmix(x, torch.tensor([1, 0]), lam, at)
    assert 1 - mixed.x[0].mean().item() == pytest.approx(mixed.weight[0].item(), abs=1e-6)


def test_mixup_blends():
    x = torch.tensor([[[[10]]], [[[0]]], [[[7]]]], dtype=torch.uint8)
    mixed = mixup(x, torch.tensor([1, 0, 2]), 0.7)
    assert [7.0, 3.0, 7.0] == pytest.approx(mixed.x.flatten().tolist())
    assert [0.7, 0.7, 1.0] == pytest.approx(mixed.weight.tolist())


def test_online_mixup_leaves_samples_alone_that_do_not_fit():
    config = Train.model_validate(
        {"augment": {"mixup": {"name": "online", "only": {"age": [60, 99]}}}}
    ).augment
    assert isinstance(config.mixup, OnlineMixUp)
    x, fits = torch.rand(16, 3, 2, 2), np.arange(16) % 2 == 0
    mixed = mix(x, config, np.random.default_rng(0), fits)
    assert mixed.partner[1::2].tolist() == list(range(1, 16, 2))
    assert {0} == set((mixed.partner[::2] % 2).tolist())
    torch.testing.assert_close(x[1::2], mixed.x[1::2])
    assert not torch.equal(x[::2], mixed.x[::2])


def test_an_extra_sample_is_half_of_each_parent_and_so_is_its_target():
    mixed_task = task().with_pairs(np.array([[1, 4]]))
    assert (10, "p1+p4") == (mixed_task.train[-1], mixed_task.name(10))
    assert (
        25
        == mixed_task.photos(np.array([3, 10]))[1].max()
        == mixed_task.photos(np.array([3, 10]))[1].min()
    )
    targets = mixed_task.targets_of(mixed_task.codes_of(("mask",)), np.array([3, 10]))
    assert [[0, 0], [1, 1]] == targets.codes.tolist()
    assert [[1.0, 0.0], [0.5, 0.5]] == targets.weight.tolist()


def test_an_extra_sample_that_is_cut_again_has_four_parts():
    mixed_task = task().with_pairs(np.array([[1, 6]]))
    mixed = mixed_task.targets_of(mixed_task.codes_of(("mask",)), np.array([2, 10])).mixed(
        torch.tensor([1, 0]), torch.full((2,), 0.5)
    )
    assert [[2, 2, 1, 0], [1, 0, 2, 2]] == mixed.codes.tolist()
    assert [[0.5, 0, 0.25, 0.25], [0.25, 0.25, 0.5, 0]] == mixed.weight.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_offline_mixup_pairs_people_of_the_training_part_alone(data):
    n = data.draw(st.integers(2, 40))
    numbers = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    mixable = Mixable(
        np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))),
        np.array(data.draw(numbers)),
        np.array(data.draw(numbers)),
    )
    train = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True)), np.int64)
    config = OfflineMixUp(ratio=data.draw(st.sampled_from([0.5, 1.0, 2.5])))
    pairs = offline_pairs(config, train, mixable, seed=1)
    assert pairs.tolist() == offline_pairs(config, train[::-1], mixable, seed=1).tolist()
    assert set(pairs.flatten().tolist()) <= set(train[mixable.fits[train]].tolist())
    assert (mixable.within[pairs[:, 0]] == mixable.within[pairs[:, 1]]).all()
    assert (mixable.group[pairs[:, 0]] != mixable.group[pairs[:, 1]]).all()


def test_every_fitting_row_becomes_a_parent_as_often_as_the_ratio_says():
    mixable = Mixable(np.ones(8, bool), np.zeros(8, int), np.arange(8))
    for ratio, n in ((1.0, 8), (2.0, 16), (0.5, 4)):
        pairs = offline_pairs(OfflineMixUp(ratio=ratio), np.arange(8), mixable, seed=0)
        assert n == len(pairs)
        assert min(8, n) == len(set(pairs[:, 0].tolist()))
