"""What every loss keeps to, and that each equals its formula or a library's value."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from trainers.config import Train
from trainers.objectives.losses import (
    Targets,
    alpha_of,
    branch_loss,
    mean_over_samples,
    total_loss,
    weighted_sum,
)
from trainers.objectives.ordered import corn, divergence, gaussian_cells
from trainers.settings.loss import (
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    SoftF1,
)

SHARES = torch.tensor([0.6, 0.3, 0.1])


def plain(config):
    return branch_loss(config, None, SHARES.log())


def of_classes(branch, outputs):
    """The loss of an ordered branch as one of the logits of its classes."""
    return lambda logits, targets: branch(outputs(logits), targets)


def corn_outputs(logits):
    """The logits of y > j given y > j - 1 that give classes their softmax."""
    columns = [logits[:, j + 1 :].logsumexp(1) - logits[:, j] for j in range(logits.shape[1] - 1)]
    return torch.stack(columns, 1)


CELLS = torch.tensor(gaussian_cells(np.array([5.0, 15.0, 25.0]), np.linspace(0, 30, 13), 2.0))
LOSSES = {
    "corn": of_classes(mean_over_samples(partial(corn, n_tasks=5 / 3), None), corn_outputs),
    "distribution": of_classes(
        mean_over_samples(partial(divergence, table=CELLS.float()), None),
        lambda logits: logits.repeat_interleave(4, 1),
    ),
    "focal": plain(Focal()),
    "focal of gamma 0": plain(Focal(gamma=0.0)),
    "focal of gamma 0.5": plain(Focal(gamma=0.5)),
    "cross_entropy": plain(CrossEntropy()),
    "label_smoothing": plain(LabelSmoothing()),
    "f1": plain(SoftF1()),
    "logit_adjustment": plain(LogitAdjustment()),
    "logit_adjustment of tau 0.5": plain(LogitAdjustment(tau=0.5)),
    "balanced_softmax": plain(BalancedSoftmax()),
    "mix": weighted_sum([(0.4, plain(SoftF1())), (0.6, plain(Focal()))]),
}
LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 0.0, 3.0]])


def whole(y):
    return Targets(y[:, None], torch.ones(len(y), 1))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
class TestConformance:
    def test_it_is_a_finite_scalar_that_falls_when_the_answer_gets_better(self, loss):
        y = torch.tensor([0, 1, 2])
        right, wrong = torch.eye(3) * 4, torch.eye(3).roll(1, 0) * 4
        assert () == tuple(loss(right, whole(y)).shape)
        assert loss(right, whole(y)) < loss(torch.zeros(3, 3), whole(y)) < loss(wrong, whole(y))

    def test_extreme_logits_give_finite_gradients(self, loss):
        for answer in (0, 1):  # certain and right, certain and wrong
            logits = (torch.eye(3) * 200 - 100).roll(answer, 0).requires_grad_()
            loss(logits, whole(torch.tensor([0, 1, 2]))).backward()
            assert torch.isfinite(logits.grad).all()

    def test_a_mix_of_a_sample_with_itself_is_that_sample(self, loss):
        y = torch.tensor([0, 2, 1])
        mixed = whole(y).mixed(torch.arange(3), torch.tensor([0.3, 0.5, 1.0]))
        torch.testing.assert_close(loss(LOGITS, whole(y)), loss(LOGITS, mixed))

    def test_a_sample_without_a_label_leaves_the_loss_of_the_others(self, loss):
        y, kept = torch.tensor([0, 0, 1]), [0, 2]
        lacking = Targets(y[:, None], torch.tensor([[1.0], [0.0], [1.0]])).over_labelled()
        logits = LOGITS.clone().requires_grad_()
        value = loss(logits, lacking)
        torch.testing.assert_close(loss(LOGITS[kept], whole(y[kept])), value)
        value.backward()
        assert not logits.grad[1].any()
        assert logits.grad[kept].any(1).all()

    def test_a_batch_without_a_label_teaches_nothing(self, loss):
        lacking = Targets(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1)).over_labelled()
        logits = LOGITS.clone().requires_grad_()
        value = loss(logits, lacking)
        value.backward()
        assert 0 == value.item()
        assert not logits.grad.any()


def test_micro_batches_of_partly_labelled_samples_add_up_to_their_batch():
    y, weight = torch.tensor([0, 1, 2]), torch.tensor([[1.0], [0.0], [1.0]])
    mixed = Targets(y[:, None], weight).mixed(torch.tensor([1, 2, 0]), torch.full((3,), 0.7))
    targets, loss = (
        mixed.over_labelled(),
        branch_loss(CrossEntropy(), torch.tensor([1.0, 2.0, 3.0])),
    )
    log_p = torch.log_softmax(LOGITS, 1)
    # of the parts, 0.7 and 0.3 of each sample, those of sample 1 have no label
    known = -(0.7 * log_p[0, 0] + 0.3 * 3 * log_p[1, 2] + 0.7 * 3 * log_p[2, 2] + 0.3 * log_p[2, 0])
    torch.testing.assert_close(known / 2, loss(LOGITS, targets))
    parts = [loss(LOGITS[rows], targets.part(rows)) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(known / 2, parts[0] / 3 + parts[1] * 2 / 3)


def test_losses_equal_their_formulas():
    logits, y, z = LOGITS[:2], torch.tensor([0, 2]), torch.tensor([1, 2])
    p = torch.softmax(logits, 1)
    targets = Targets(torch.stack([y, z], 1), torch.tensor([[0.75, 0.25], [1.0, 0.0]]))

    def focal(row, k):
        return -((1 - p[row, k]) ** 2) * p[row, k].log()

    wanted = (0.75 * focal(0, 0) + 0.25 * focal(0, 1) + focal(1, 2)) / 2
    torch.testing.assert_close(wanted, branch_loss(Focal(), None)(logits, targets))


def test_losses_equal_what_other_libraries_compute():
    y = torch.tensor([0, 2, 1])
    torch.testing.assert_close(
        F.cross_entropy(LOGITS, y), branch_loss(CrossEntropy(), None)(LOGITS, whole(y))
    )
    torch.testing.assert_close(
        F.cross_entropy(LOGITS, y), branch_loss(Focal(gamma=0.0), None)(LOGITS, whole(y))
    )
    torch.testing.assert_close(
        LabelSmoothingCrossEntropy(0.1)(LOGITS, y),
        branch_loss(LabelSmoothing(), None)(LOGITS, whole(y)),
    )
    mixed = whole(y).mixed(torch.tensor([1, 2, 0]), torch.tensor([0.7, 0.7, 0.7]))
    soft = 0.7 * F.one_hot(y, 3) + 0.3 * F.one_hot(y[[1, 2, 0]], 3)
    torch.testing.assert_close(
        SoftTargetCrossEntropy()(LOGITS, soft), branch_loss(CrossEntropy(), None)(LOGITS, mixed)
    )


def test_focal_of_two_classes_is_torchvisions():
    logits, y = torch.tensor([[0.3, 1.2], [2.0, -1.0], [0.0, 0.1]]), torch.tensor([1, 1, 0])
    theirs = sigmoid_focal_loss(
        logits[:, 1] - logits[:, 0], y.float(), alpha=-1, gamma=2, reduction="mean"
    )
    torch.testing.assert_close(theirs, branch_loss(Focal(), None)(logits, whole(y)))


def test_soft_f1_of_certain_answers_is_scikit_learns():
    pred, y = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 1, 2, 1, 1, 2])
    logits = F.one_hot(pred, 3).float() * 100
    loss = branch_loss(SoftF1(), None)(logits, whole(y))
    assert 1 - f1_score(y, pred, average="macro") == pytest.approx(loss.item(), abs=1e-6)


def test_alpha_weighs_a_sample_by_its_class_and_a_joint_class_by_its_labels():
    config = Train.model_validate(
        {"loss": {"name": "focal", "alpha": {"age": [1, 2, 4], "gender": [1, 3]}}}
    ).loss
    sizes = {"gender": 2, "age": 3, "mask": 2}
    assert [1, 2, 4] == alpha_of(config, ("age",), sizes).tolist()
    assert [1, 1] == alpha_of(config, ("mask",), sizes).tolist()
    assert [1, 2, 4, 3, 6, 12] == alpha_of(config, ("gender", "age"), sizes).tolist()
    assert [0.25] * 6 == alpha_of(Focal(alpha=0.25), ("gender", "age"), sizes).tolist()
    y = torch.tensor([2, 0, 1])
    losses = [branch_loss(config, None)(LOGITS[[i]], whole(y[[i]])) for i in range(3)]
    wanted = (4 * losses[0] + 1 * losses[1] + 2 * losses[2]) / 3
    torch.testing.assert_close(
        wanted, branch_loss(config, torch.tensor([1.0, 2.0, 4.0]))(LOGITS, whole(y))
    )


def test_branches_add_up_by_their_weights():
    y, loss = whole(torch.tensor([0, 2, 1])), branch_loss(CrossEntropy(), None)
    total = total_loss(
        {"a": LOGITS, "b": -LOGITS}, {"a": y, "b": y}, {"a": loss, "b": loss}, {"b": 2.5}
    )
    torch.testing.assert_close(loss(LOGITS, y) + 2.5 * loss(-LOGITS, y), total)


def test_logit_adjustment_is_menons_formula_and_balanced_softmax_rens():
    y = torch.tensor([0, 2, 1])
    powers = SHARES**0.7 * LOGITS.exp()  # eq. 10 of Menon et al.: pi^tau e^f, normalized
    wanted = -(powers[range(3), y] / powers.sum(1)).log().mean()
    torch.testing.assert_close(wanted, plain(LogitAdjustment(tau=0.7))(LOGITS, whole(y)))
    sizes = 1000 * SHARES  # eq. 3 of Ren et al.: n e^f, normalized; one factor changes nothing
    powers = sizes * LOGITS.exp()
    wanted = -(powers[range(3), y] / powers.sum(1)).log().mean()
    torch.testing.assert_close(wanted, plain(BalancedSoftmax())(LOGITS, whole(y)))
    torch.testing.assert_close(wanted, plain(LogitAdjustment())(LOGITS, whole(y)))


def test_what_is_learned_of_the_class_sizes_alone_is_nothing_under_logit_adjustment():
    """A model that sees nothing learns the shares by cross entropy, and equal classes by this."""
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([6, 3, 1]))
    learned = {}
    for config in (CrossEntropy(), LogitAdjustment()):
        logits = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=100)

        def step(optimizer=optimizer, logits=logits, config=config):
            optimizer.zero_grad()
            loss = plain(config)(logits.expand(10, 3), whole(y))
            loss.backward()
            return loss

        optimizer.step(step)
        learned[config.name] = logits.softmax(0).detach()
    torch.testing.assert_close(SHARES, learned["cross_entropy"], atol=1e-3, rtol=0)
    third = torch.full((3,), 1 / 3)
    torch.testing.assert_close(third, learned["logit_adjustment"], atol=1e-3, rtol=0)


def test_a_mix_is_the_sum_of_its_losses_by_weight():
    y = whole(torch.tensor([0, 2, 1]))
    wanted = 0.4 * plain(SoftF1())(LOGITS, y) + 0.6 * plain(Focal())(LOGITS, y)
    torch.testing.assert_close(wanted, LOSSES["mix"](LOGITS, y))
