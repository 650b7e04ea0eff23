"""Ordered labels: CORN and label distributions by their papers, and classes that keep to the order.

coral-pytorch had its last release in 2022, so its two functions are written out here: the loss over
conditional subsets, and the label by products of probabilities above one half.
"""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional as F

from tests.trainers.objectives.colors import people_of_ages, quick, scores, stopped_and_resumed
from trainers.heads import HEADS
from trainers.inference import export_onnx, load, predict
from trainers.objectives.branches import objective_of, place_cells
from trainers.objectives.losses import Targets
from trainers.objectives.ordered import (
    OrderedClasses,
    corn,
    corn_log_probs,
    corn_tasks,
    gaussian_cells,
    n_outputs,
)
from trainers.settings.model import Corn, Distribution, Model, Softmax
from trainers.training_loop import train

KINDS = [
    kind(decode=decode)
    for kind in (Corn, Distribution, Softmax)
    for decode in ("mode", "median", "expectation")
]
BORDERS = (30.0, 60.0)
OUTPUTS = torch.manual_seed(0) and torch.randn(64, 200) * 3


def classes_of(settings, n_classes=3):
    classes = OrderedClasses(settings, n_classes)
    classes.place_cells(BORDERS, np.array([4.0, 80.0]))
    return classes, OUTPUTS[:, : n_outputs(settings, n_classes)]


def corn_loss_of_the_paper(logits, y, n_classes):
    """Eq. 5 of Shi et al. 2021, as coral-pytorch computes it: subset by subset, over all pairs."""
    total, n_pairs = 0.0, 0
    for border in range(n_classes - 1):
        subset = y > border - 1
        above = (y[subset] > border).float()
        pred = logits[subset, border]
        total -= (F.logsigmoid(pred) * above + (F.logsigmoid(pred) - pred) * (1 - above)).sum()
        n_pairs += len(above)
    return total / n_pairs


def test_corn_is_the_loss_of_the_paper_where_the_batch_is_the_training_part():
    y = torch.tensor([0, 3, 1, 2, 4, 4, 0, 2])
    logits = OUTPUTS[:8, :4]
    mine = corn(logits, y, corn_tasks(y.numpy(), 5)).mean()
    torch.testing.assert_close(corn_loss_of_the_paper(logits, y, 5), mine)
    without = corn_tasks(np.array([-1, *y.tolist()]), 5)
    assert without == corn_tasks(y.numpy(), 5), "a photo without the label is not counted"


def test_corns_probabilities_are_products_of_its_conditional_ones():
    logits = OUTPUTS[:, :4]
    probs = corn_log_probs(logits).exp()
    above = torch.sigmoid(logits).cumprod(1)  # P(y > j)
    torch.testing.assert_close(above, 1 - probs.cumsum(1)[:, :-1], atol=1e-5, rtol=0)
    assert (above.diff(dim=1) <= 0).all(), "rank consistent"
    torch.testing.assert_close(torch.ones(64), probs.sum(1))


def test_the_median_of_corn_is_coral_pytorchs_label():
    classes, logits = classes_of(Corn(decode="median"), 5)
    theirs = (torch.sigmoid(logits).cumprod(1) > 0.5).sum(1)
    assert classes(logits).argmax(1).tolist() == theirs.tolist()
    assert len(set(theirs.tolist())) > 2


@pytest.mark.parametrize("settings", KINDS, ids=lambda kind: f"{kind.name} {kind.decode}")
class TestEveryKind:
    def test_gives_a_proper_distribution(self, settings):
        classes, outputs = classes_of(settings)
        log_probs = classes(100 * outputs)
        assert tuple(log_probs.shape) == (64, 3)
        torch.testing.assert_close(torch.ones(64), log_probs.exp().sum(1))
        assert torch.isfinite(classes(outputs)).all()

    def test_a_decoded_one_has_one_peak(self, settings):
        if settings.decode == "mode":
            return
        classes, outputs = classes_of(settings)
        steps = classes(outputs).diff(dim=1).sign()
        assert (steps.diff(dim=1) <= 0).all(), "it may rise, then it falls"

    def test_weights_alone_rebuild_it(self, settings):
        classes, outputs = classes_of(settings)
        other = OrderedClasses(settings, 3)
        other.load_state_dict(classes.state_dict())
        assert torch.equal(classes(outputs), other(outputs))


def test_cells_hold_the_share_of_a_gaussian_and_add_up_to_classes():
    classes, outputs = classes_of(Distribution(sigma=5.0, cells=4))
    edges = classes.edges.double().numpy()
    assert edges[[0, 4, 8, 12]].tolist() == [4, 30, 60, 80]
    table = gaussian_cells(np.array([20.0, 58.5]), edges, 5.0)
    for row, number in zip(table, (20.0, 58.5), strict=True):
        wanted = np.diff(norm.cdf(edges, number, 5.0))
        np.testing.assert_allclose(wanted / wanted.sum(), row, rtol=1e-5, atol=1e-9)
    probs = classes(outputs).exp()
    of_cells = torch.softmax(outputs, 1)
    torch.testing.assert_close(of_cells.view(64, 3, 4).sum(2), probs)


def test_the_expected_number_decides_the_class():
    classes, outputs = classes_of(Distribution(decode="expectation"))
    edges = classes.edges.double().numpy()
    centers = (edges[1:] + edges[:-1]) / 2
    means = torch.softmax(outputs, 1).double().numpy() @ centers
    wanted = np.searchsorted(BORDERS, means, side="right")
    assert classes(outputs).argmax(1).tolist() == wanted.tolist()
    likeliest = OrderedClasses(Distribution(), 3)(outputs).argmax(1)
    assert (likeliest != torch.tensor(wanted)).any(), "the decodings differ somewhere"


def test_the_expected_rank_decides_the_class_of_others():
    classes, outputs = classes_of(Softmax(decode="expectation"))
    ranks = torch.softmax(outputs, 1) @ torch.arange(3.0)
    assert classes(outputs).argmax(1).tolist() == ranks.round().int().tolist()


def test_numbers_beyond_those_of_the_training_part_are_taken_for_the_last():
    classes, _ = classes_of(Distribution(sigma=2.0, cells=4))
    edges = classes.edges.double().numpy()
    table = gaussian_cells(np.array([-500.0, 500.0]), edges, 2.0)
    assert np.isfinite(table).all()
    assert (table.argmax(1) == [0, 11]).all()


HEAD = {"shallow": {}, "deep": {"hidden": 8}, "frozen_deep": {"from": "A", "hidden": 8}}


@pytest.mark.parametrize("kind", ["corn", "distribution", "softmax"])
@pytest.mark.parametrize("name", HEAD)
def test_every_head_of_branches_answers_over_the_same_joint_classes(name, kind):
    settings = {"name": name, "ordered": {"age": {"name": kind, "decode": "expectation"}}}
    head = Model.model_validate({"head": {**settings, **HEAD[name]}}).head
    layers = HEADS[name](head, 24, {"color": 2, "age": 3}).eval()
    logits = layers(torch.randn(5, 24))
    joint = layers.log_probs(logits).exp().view(5, 2, 3)
    torch.testing.assert_close(torch.ones(5), joint.sum((1, 2)))
    torch.testing.assert_close(logits["color"].softmax(1), joint.sum(2))
    torch.testing.assert_close(layers.ordered["age"](logits["age"]).exp(), joint.sum(1))


def test_a_head_without_order_has_the_weights_that_it_had():
    head = Model.model_validate({"head": "shallow"}).head
    layers = HEADS["shallow"](head, 4, {"color": 2, "age": 3})
    names = ["layers.color.weight", "layers.color.bias", "layers.age.weight", "layers.age.bias"]
    assert list(layers.state_dict()) == names
    assert "ordered" not in head.model_dump()


def test_a_label_that_is_not_there_is_named():
    head = Model.model_validate({"head": {"name": "shallow", "ordered": {"ages": "corn"}}}).head
    with pytest.raises(ValueError, match="one of the labels color, age was required, found 'ages'"):
        HEADS["shallow"](head, 4, {"color": 2, "age": 3})


@pytest.mark.parametrize("kind", ["corn", {"name": "distribution", "sigma": 10.0, "cells": 4}])
def test_a_number_is_learned_and_its_class_answered(kind):
    """Features that hold the number: the head learns to put it into the right bin."""
    torch.manual_seed(0)
    task = people_of_ages()
    config = quick({"name": "shallow", "ordered": {"age": kind}})
    head = HEADS["shallow"](config.model.head, 2, task.label_sizes)
    place_cells(head, task)
    branch = objective_of(config, task, head, ("age",), "cpu")
    x = torch.tensor(np.stack([task.numbers["age"].values / 50 - 1] * 2, 1), dtype=torch.float32)
    x[:, 1] = x[:, 0] ** 2
    targets = task.targets_of(branch.codes, task.train)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        branch.loss(head(x[task.train])["age"], targets).backward()
        optimizer.step()
    answers = head.ordered["age"](head(x)["age"]).argmax(1).numpy()
    assert np.mean(answers == task.targets[:, 1]) > 0.9


def test_targets_name_the_number_and_weights_its_class():
    task = people_of_ages()
    kind = {"name": "distribution", "cells": 4}
    config = quick({"name": "shallow", "ordered": {"age": kind}}, balance="class_weights")
    head = HEADS["shallow"](config.model.head, 2, task.label_sizes)
    place_cells(head, task)
    weighed = objective_of(config, task, head, ("age",), "cpu")
    plain = objective_of(quick(config.model.head.model_dump()), task, head, ("age",), "cpu")
    counts = np.bincount(task.train_codes(("age",)), minlength=3)
    weights = counts.sum() / (3 * counts)
    for row in task.train[[0, 5, 9]]:
        part = Targets(torch.tensor([[weighed.codes[row]]]), torch.ones(1, 1))
        ratio = weighed.loss(OUTPUTS[:1, :12], part) / plain.loss(OUTPUTS[:1, :12], part)
        assert ratio.item() == pytest.approx(weights[task.targets[row, 1]], rel=1e-5)


ORDERED = {
    "corn": {"age": {"name": "corn", "decode": "median"}},
    "distribution": {"age": {"name": "distribution", "sigma": 8, "decode": "expectation"}},
}


@pytest.mark.parametrize("ordered", ORDERED.values(), ids=list(ORDERED))
def test_a_stopped_training_ends_with_the_same_bits_and_answers_as_onnx(tmp_path, ordered):
    config = quick(
        {"name": "deep", "hidden": 8, "ordered": ordered},
        augment={"policy": "none", "mixup": "online"},
        balance="effective_number",
    )
    (tmp_path / "a").mkdir()
    settings = {"seed": 1, "report": lambda *_: None, "threads": 1}
    whole = train(config, people_of_ages(), work_dir=tmp_path / "a", **settings)
    resumed = stopped_and_resumed(config, people_of_ages(), tmp_path / "b")
    assert scores(resumed) == scores(whole)
    first, second = (load(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    probs = predict(load(tmp_path / "a"), people_of_ages().images)
    assert probs.shape == (60, 6)
    np.testing.assert_allclose(1.0, probs.sum(1), rtol=1e-5)
    export_onnx(tmp_path / "a", tmp_path / "model.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (answered,) = session.run(["probabilities"], {"photos": people_of_ages().images})
    np.testing.assert_allclose(probs, answered, atol=1e-4)
