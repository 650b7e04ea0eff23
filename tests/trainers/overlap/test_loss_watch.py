import numpy as np
import pytest
import torch

from tests.trainers.overlap.late_copies import LateCopies
from trainers.overlap.loss_watch import LossWatch, TrainingDiverged


def watch(copies, lag):
    return LossWatch("loss", "s{}".format, copies, lag)


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_a_loss_is_read_only_after_so_many_later_ones(lag):
    copies = LateCopies()
    losses = watch(copies, lag)
    for number in range(8):
        losses.add(torch.tensor(float(number)), np.arange(2), step=number, lr=0.1)
    expected = 8 - lag
    assert list(range(expected)) == [n for kind, n in copies.events if kind == "wait"]
    for number in range(expected):
        assert copies.events.index(("wait", number)) > copies.events.index(("read", number + lag))
    assert 3.5 == losses.mean()
    assert list(range(8)) == [n for kind, n in copies.events if kind == "wait"]


def test_the_mean_is_over_samples_and_the_same_whenever_losses_are_read():
    rng = np.random.default_rng(0)
    sizes = [32, 32, 7]
    values = rng.random(3).astype(np.float32)
    expected = sum(float(v) * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
    for copies, lag in ((None, 0), (LateCopies(), 2)):
        losses = watch(copies, lag)
        for value, size in zip(values, sizes, strict=True):
            losses.add(torch.tensor(value), np.arange(size), step=0, lr=0.1)
        assert expected == losses.mean()


@pytest.mark.parametrize("lag", [0, 2])
def test_a_loss_that_is_not_finite_is_named_with_its_own_step_and_samples(lag):
    losses = watch(LateCopies() if lag else None, lag)
    for number in range(3 + lag):
        value = float("nan") if number == 3 else 1.0
        losses.add(torch.tensor(value), np.arange(2) + number, step=number, lr=0.1)
    value = torch.tensor(1.0 if lag else float("nan"))
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 3, lr 0\.1, samples s3, s4;"):
        losses.add(value, np.arange(2) + 3, step=3 + lag, lr=0.1)


def test_the_last_losses_are_looked_at_before_the_mean_is_told():
    losses = watch(LateCopies(), 2)
    losses.add(torch.tensor(float("inf")), np.arange(1), step=9, lr=0.1)
    with pytest.raises(TrainingDiverged, match="inf at step 9"):
        losses.mean()


def test_no_loss_at_all_has_the_mean_zero():
    assert 0.0 == watch(None, 0).mean()
