"""What each branch learns in a training: the loss that settings and sizes of classes give it."""

import numpy as np
import pytest
import torch

from tests.trainers.objectives.colors import colors, quick, scores, stopped_and_resumed
from trainers.heads import HEADS
from trainers.inference import load, predict
from trainers.objectives.branches import objective_of
from trainers.objectives.class_counts import effective_weights
from trainers.objectives.losses import Targets
from trainers.settings.loss import Focal
from trainers.training_loop import train

SETTINGS = {
    "logit adjustment": {"loss": "logit_adjustment"},
    "balanced softmax": {"loss": {"name": "balanced_softmax", "count": "groups"}},
    "effective numbers": {"balance": "effective_number", "loss": "cross_entropy"},
    "mix": {"loss": {"f1": 0.4, "focal": {"weight": 0.6, "gamma": 1.0}, "weights": {"light": 2}}},
    "mix in micro-batches": {
        "loss": {"label_smoothing": 1, "logit_adjustment": 0.5},
        "micro_batch": 6,
        "balance": {"name": "effective_number", "beta": 0.9},
        "augment": {"policy": "none", "cutmix": "half"},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path, settings):
    config = quick("shallow", **settings)
    (tmp_path / "a").mkdir()
    settings = {"seed": 1, "report": lambda *_: None, "threads": 1}
    whole = train(config, colors(), work_dir=tmp_path / "a", **settings)
    resumed = stopped_and_resumed(config, colors(), tmp_path / "b")
    assert scores(resumed) == scores(whole)
    assert np.isfinite(list(whole.metrics.values())).all()
    first, second = (load(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert predict(load(tmp_path / "a"), colors().images).sum(1) == pytest.approx(1, abs=1e-5)


def loss_of(task, y, **settings):
    config = quick("shallow", **settings)
    head = HEADS["shallow"](config.model.head, 4, task.label_sizes)
    loss = objective_of(config, task, head, ("light",), "cpu").loss
    y = torch.tensor(y)
    return loss(torch.zeros(len(y), 2), Targets(y[:, None], torch.ones(len(y), 1))).item()


def test_shares_are_those_of_the_training_part_over_people():
    """Ten people of the training part: eight are light in all photos, two are dark in all."""
    task = colors(light=lambda person: person % 5 != 0)
    rare = loss_of(task, [0], loss="logit_adjustment")
    assert rare == pytest.approx(-np.log(0.2), rel=1e-5)
    assert loss_of(task, [0], loss="cross_entropy") == pytest.approx(np.log(2))
    by_photos = {"name": "balanced_softmax", "count": "photos"}
    assert loss_of(task, [0], loss=by_photos) == pytest.approx(rare), "all have as many photos"


def test_weights_of_a_mix_are_those_of_each_loss_times_the_balance():
    task = colors(light=lambda person: person % 5 != 0)
    alpha = {"weight": 2, "gamma": 0.0, "alpha": {"light": [3.0, 1.0]}}
    mix = {"focal": alpha, "cross_entropy": 0.5}
    weights = effective_weights(np.array([2.0, 8.0]), 0.9)
    balance = {"name": "effective_number", "beta": 0.9}
    value = loss_of(task, [0], loss=mix, balance=balance)
    assert value == pytest.approx((2 * 3 + 0.5) * weights[0] * np.log(2), rel=1e-5)


def test_people_are_required_where_they_are_counted():
    task = colors(groups=False)
    with pytest.raises(ValueError, match=r"loss 'logit_adjustment' counts groups: task.groups was"):
        loss_of(task, [0], loss="logit_adjustment")
    assert loss_of(task, [0], loss=Focal().name) > 0
