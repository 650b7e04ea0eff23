"""Heads, losses, mixes and schedules against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.backbones import known_backbones
from trainers.config import CrossEntropy, Focal, LabelSmoothing, Model, SoftF1, Train
from trainers.data import Task, batches, epoch_order
from trainers.heads import HEADS, joint_log_probs
from trainers.losses import Targets, branch_loss
from trainers.metrics import joint_class, macro_f1, split_class
from trainers.mixing import half_cutmix, mixup, random_cutmix
from trainers.optim import Plateau, lr_at

SIZES = {"mask": 3, "gender": 2, "age": 3}


def head(name, **settings):
    config = Model.model_validate({"head": {"name": name, **settings}}).head
    return HEADS[name](config, 1792, SIZES)


@pytest.mark.parametrize(
    ("name", "n_params"),
    [
        ("single", 1792 * 18 + 18),
        ("shallow", 1792 * 8 + 8),
        ("deep", 3 * (1792 * 512 + 512 + 2 * 512) + 512 * 8 + 8),
    ],
)
def test_a_head_has_the_parameters_of_its_formula_and_joins_to_eighteen_classes(name, n_params):
    one = head(name).eval()
    assert n_params == sum(p.numel() for p in one.parameters())
    logits = one(torch.randn(4, 1792))
    joint = joint_log_probs(logits, one.branches).exp()
    assert (4, 18) == tuple(joint.shape)
    torch.testing.assert_close(torch.ones(4), joint.sum(1))


def test_a_joint_probability_is_the_product_of_its_branches():
    logits = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    joint = joint_log_probs(logits, {"a": ("a",), "b": ("b",)}).exp()
    by_hand = logits["a"].softmax(1)[2, 1] * logits["b"].softmax(1)[2, 0]
    assert by_hand.item() == pytest.approx(joint[2, 1 * 2 + 0].item(), rel=1e-5)


def test_one_label_alone_has_its_own_classes():
    assert 3 == head("single", labels=["age"]).layers["joint"].out_features


def test_losses_equal_their_formulas():
    logits, y, z = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]), torch.tensor([0, 2]), torch.tensor([1, 2])
    targets, p = Targets(y, z, torch.tensor([0.75, 1.0])), torch.softmax(logits, 1)

    def focal(row, k):
        return -((1 - p[row, k]) ** 2) * p[row, k].log()

    wanted = (0.75 * focal(0, 0) + 0.25 * focal(0, 1) + focal(1, 2)) / 2
    torch.testing.assert_close(wanted, branch_loss(Focal(), None)(logits, targets))
    whole = Targets(y, y, torch.ones(2))
    torch.testing.assert_close(F.cross_entropy(logits, y), branch_loss(CrossEntropy(), None)(logits, whole))
    torch.testing.assert_close(
        F.cross_entropy(logits, y, label_smoothing=0.1), branch_loss(LabelSmoothing(), None)(logits, whole)
    )
    torch.testing.assert_close(F.cross_entropy(logits, y), branch_loss(Focal(gamma=0.0), None)(logits, whole))


def test_soft_f1_of_certain_and_right_answers_is_zero_and_of_wrong_ones_is_one():
    logits, y = torch.eye(3) * 50, torch.tensor([0, 1, 2])
    loss = branch_loss(SoftF1(), None)
    assert loss(logits, Targets(y, y, torch.ones(3))).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits, Targets(y.roll(1), y.roll(1), torch.ones(3))).item() == pytest.approx(1, abs=1e-6)


def test_half_cutmix_takes_the_right_half_of_the_partner():
    x = torch.stack([torch.full((3, 4, 6), value) for value in (1.0, 2.0)])
    mixed = half_cutmix(x, torch.tensor([1, 0]))
    assert [[1, 1, 1, 2, 2, 2], [2, 2, 2, 1, 1, 1]] == mixed.x[:, 0, 0].tolist()
    assert [0.5, 0.5] == mixed.weight.tolist()
    assert [1.0, 2.0] == [x[0].max().item(), x[1].max().item()]
    with pytest.raises(ValueError, match="permutation"):
        half_cutmix(x, torch.tensor([0, 0]))


@pytest.mark.parametrize(("lam", "at"), [(0.3, (0.5, 0.5)), (0.9, (0.0, 1.0)), (0.0, (0.5, 0.5)), (1.0, (0.2, 0.2))])
def test_a_random_box_weighs_what_is_left_of_the_photo(lam, at):
    x = torch.stack([torch.zeros(1, 40, 30), torch.ones(1, 40, 30)])
    mixed = random_cutmix(x, torch.tensor([1, 0]), lam, at)
    assert 1 - mixed.x[0].mean().item() == pytest.approx(mixed.weight[0].item(), abs=1e-6)


def test_mixup_blends():
    assert 0.7 == pytest.approx(mixup(torch.tensor([[[[1.0]]], [[[0.0]]]]), torch.tensor([1, 0]), 0.7).x[0].item())


def task(n=10):
    codes = np.stack([np.arange(n) % 3, np.zeros(n, int), np.arange(n) // 8], 1)
    return Task(np.zeros((n, 2, 2, 3), np.uint8), codes, [str(i) for i in range(n)], SIZES, np.arange(n), np.arange(0))


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    orders = [
        epoch_order(task(), seed=s, epoch=e, balance="none").tolist() for s, e in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert 3 == len({tuple(order) for order in orders})
    assert list(range(10)) == sorted(orders[0])


def test_no_batch_is_dropped_and_none_is_too_small_for_batchnorm():
    assert [4, 4, 2] == [len(rows) for rows in batches(np.arange(10), 4)]
    assert [3, 3, 4] == [len(rows) for rows in batches(np.arange(10), 3, drop_single=True)]


def test_classes_join_and_part_again():
    codes = np.array([[2, 1, 0], [0, 0, 2]])
    assert [2 * 6 + 3, 2] == joint_class(codes, (3, 2, 3)).tolist()
    assert codes.tolist() == split_class(joint_class(codes, (3, 2, 3)), (3, 2, 3)).tolist()
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 2, 1])) == pytest.approx((2 / 3 + 1) / 2)


def test_schedules_follow_their_formulas():
    def at(schedule, step, cuts=0):
        config = Train.model_validate({"schedule": schedule}).schedule
        return lr_at(config, 1.0, step=step, steps_per_epoch=10, n_steps=110, cuts=cuts)

    cosine = {"name": "cosine", "warmup": "1 epochs"}
    assert [0.1, 1.0, 1.0, 0.5] == pytest.approx([at(cosine, s) for s in (0, 9, 10, 60)])
    assert math.isclose(at(cosine, 110), 0, abs_tol=1e-9)
    assert [1.0, 0.1] == pytest.approx([at({"name": "step", "every": 2}, s) for s in (19, 20)])
    assert [1.0, 0.01] == pytest.approx([at("reduce_on_plateau", 5, cuts=c) for c in (0, 2)])


def test_a_plateau_is_cut_after_its_patience():
    plateau = Plateau()
    for score in (0.5, 0.4, 0.4, 0.4):
        plateau.see(score, 2)
    assert (1, 0) == (plateau.cuts, plateau.waited)


def test_backbones_are_known_without_importing_timm():
    assert {
        "tf_efficientnet_lite0",
        "efficientnet_b4",
        "resnet50",
        "densenet121",
        "convnext_tiny",
        "vit_base_patch16_224",
    } <= known_backbones()
