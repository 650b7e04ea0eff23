"""The moving average and the soup against numbers that a hand can compute."""

import pytest
import torch
from torch import nn

from trainers.config import Train
from trainers.finetuning.moving_average import MovingAverage
from trainers.finetuning.soup import greedy_soup


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1, bias=False)
        self.norm = nn.BatchNorm1d(1)
        with torch.no_grad():
            self.head.weight.fill_(1.0)


def average(settings, module):
    return MovingAverage(Train.model_validate({"ema": settings}).ema, module)


def test_an_average_follows_its_formula_statistics_too():
    body = Body()
    ema = average({"decay": 0.75, "warmup": False}, body)
    for step, value in enumerate((5.0, 9.0), 1):
        with torch.no_grad():
            body.head.weight.fill_(value)
            body.norm.running_mean.fill_(value)
            body.norm.num_batches_tracked.fill_(step)
        ema.update(step)
    weights = ema.weights(body)
    assert 0.75 * (0.75 * 1 + 0.25 * 5) + 0.25 * 9 == weights["head.weight"].item()
    assert 0.75 * (0.25 * 5) + 0.25 * 9 == weights["norm.running_mean"].item()
    assert 2 == weights["norm.num_batches_tracked"].item()
    assert 9.0 == body.head.weight.item()
    with ema.in_place():
        assert weights["head.weight"].item() == body.head.weight.item()
    assert 9.0 == body.head.weight.item()


def test_a_warm_up_forgets_the_start():
    body = Body()
    ema = average({"decay": 0.999}, body)
    expected = 1.0
    for step in (1, 2, 3):
        with torch.no_grad():
            body.head.weight.fill_(float(step))
        ema.update(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * step
    assert expected == pytest.approx(ema.weights(body)["head.weight"].item())


def test_the_average_of_a_part_stands_in_the_weights_of_the_whole_and_off_is_off():
    body = Body()
    ema = average({"decay": 0.5, "warmup": False}, body.head)
    with torch.no_grad():
        body.head.weight.fill_(3.0)
    ema.update(1)
    assert (2.0, 3.0) == (ema.weights(body)["head.weight"].item(), body.head.weight.item())
    off = MovingAverage(None, body)
    off.update(1)
    with off.in_place():
        assert off.weights(body)["head.weight"].data_ptr() == body.head.weight.data_ptr()
    assert {} == off.state()


WEIGHTS = {1: 4.0, 2: 1.0, 3: 9.0, 4: 3.0}


def stir(epochs, best):
    """Score by the distance to a best value."""
    looked = []

    def score(weights):
        looked.append(weights["w"].item())
        return {"val_macro_f1": -abs(weights["w"].item() - best)}

    def weights_of(epoch):
        return {"w": torch.tensor(WEIGHTS[epoch]), "n": torch.tensor(epoch)}

    return greedy_soup(epochs, weights_of, score), looked


def test_an_ingredient_stays_if_the_score_does_not_fall():
    soup, looked = stir([1, 2, 3, 4], best=3.0)
    # 4; with 1 the mean is 2.5; with 9 it would be 4.67; with 3 it is 2.67
    assert [4.0, 2.5, pytest.approx(14 / 3), pytest.approx(8 / 3)] == looked
    assert (1, 2, 4) == soup.epochs
    assert 8 / 3 == pytest.approx(soup.weights["w"].item())
    assert 1 == soup.weights["n"].item()
    assert {"val_macro_f1": pytest.approx(-1 / 3)} == soup.metrics


def test_the_soup_is_never_worse_than_its_best_ingredient_and_equal_tensors_keep_their_bits():
    soup, _ = stir([4, 1, 2, 3], best=3.0)
    assert ((4,), 3.0) == (soup.epochs, soup.weights["w"].item())
    same = torch.rand(1000)
    shared = greedy_soup([1, 2, 3], lambda _: {"w": same.clone()}, lambda _: {"val_macro_f1": 0.5})
    assert (1, 2, 3) == shared.epochs
    assert torch.equal(same, shared.weights["w"])
