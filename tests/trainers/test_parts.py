"""Heads, losses, mixes and schedules against their formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest

from trainers.config import Train
from trainers.data import Task, batches, epoch_order
from trainers.finetuning.optim import Plateau, lr_at
from trainers.library_names import known_backbones
from trainers.metrics import joint_class, macro_f1, split_class

SIZES = {"mask": 3, "gender": 2, "age": 3}


def task(n=10):
    codes = np.stack([np.arange(n) % 3, np.zeros(n, int), np.arange(n) // 8], 1)
    return Task(
        np.zeros((n, 2, 2, 3), np.uint8),
        codes,
        [str(i) for i in range(n)],
        SIZES,
        np.arange(n),
        np.arange(0),
    )


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    orders = [
        epoch_order(task(), seed=s, epoch=e, balance="none").tolist()
        for s, e in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert 3 == len({tuple(order) for order in orders})
    assert list(range(10)) == sorted(orders[0])


def test_a_row_without_a_joint_class_is_drawn_as_often_as_the_mean_row():
    whole = task()
    codes = whole.targets.copy()
    codes[[0, 9], 0] = -1
    partly = replace(whole, targets=codes)
    drawn = [epoch_order(partly, seed=s, epoch=1, balance="weighted_sampler") for s in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=10) / 2000
    assert counts[[0, 9]] == pytest.approx([1, 1], abs=0.1)
    known = [row for row in range(10) if row not in (0, 9)]
    of_class = [counts[[row for row in known if codes[row, 0] == k]].sum() for k in range(3)]
    # rows 1 to 7 have age 0 and row 8 age 1: four joint classes, each drawn equally often
    assert of_class == pytest.approx([2, 2, 4], abs=0.2)


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
        plateau.update(score, 2)
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
