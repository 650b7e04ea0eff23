"""What one branch of a head learns: its targets, and its loss with all weights of its classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainers.config import Train
from trainers.data import Numbers, Task
from trainers.heads import Branches
from trainers.metrics import Ints
from trainers.objectives.class_counts import (
    Floats,
    balanced_weights,
    class_counts,
    effective_weights,
    log_shares,
)
from trainers.objectives.losses import (
    BranchLoss,
    alpha_of,
    branch_loss,
    mean_over_samples,
    weighted_sum,
)
from trainers.objectives.ordered import (
    OrderedClasses,
    corn,
    corn_tasks,
    divergence,
    gaussian_cells,
)
from trainers.photos.group_draws import draw_shares
from trainers.settings.loss import BalancedSoftmax, LogitAdjustment, Mix, OneLoss
from trainers.settings.model import Corn, Distribution


@dataclass(frozen=True)
class Objective:
    """What a branch learns."""

    codes: Ints  # (N,) what its targets name for every row; -1 where a row lacks the label
    loss: BranchLoss


def objective_of(
    config: Train, task: Task, head: Branches, labels: tuple[str, ...], device: str
) -> Objective:
    """Return what a branch learns in a training.

    Args:
        config: the spec's section.
        task: rows and targets.
        head: with its cells in place.
        labels: that the branch answers together.
        device: where torch computes.

    Raises:
        ValueError: the loss counts groups, and the task has none.
    """
    name = labels[0]
    classes = head.ordered_branch(name) if len(labels) == 1 else None
    if classes is not None and isinstance(classes.settings, Corn):
        return _corn_objective(config, task, name, device)
    if classes is not None and isinstance(classes.settings, Distribution):
        return _distribution_objective(config, task, name, classes, classes.settings, device)
    return Objective(task.codes_of(labels), _loss(config, task, labels, device))


def place_cells(head: Branches, task: Task) -> None:
    """Place the cells of the branches that learn a number, by the numbers of the training part.

    Raises:
        ValueError: the task has no numbers of a label.
    """
    for name in head.ordered:
        classes = head.ordered_branch(name)
        if classes is not None and isinstance(classes.settings, Distribution):
            numbers = _numbers(task, name)
            first, second = task.parents(task.train)
            learned = numbers.values[np.concatenate([first, second])]
            learned = learned[np.isfinite(learned)]
            if len(learned):
                classes.place_cells(numbers.borders, learned)


def _numbers(task: Task, name: str) -> Numbers:
    if name not in task.numbers:
        raise ValueError(
            f"head.ordered.{name}: the numbers behind the classes were required in task.numbers, "
            "found none"
        )
    return task.numbers[name]


def _corn_objective(config: Train, task: Task, name: str, device: str) -> Objective:
    labels = (name,)
    n_tasks = corn_tasks(task.train_codes(labels), task.label_sizes[name])
    weights = _on(_branch_weights(config, task, labels), device)
    loss = mean_over_samples(partial(corn, n_tasks=n_tasks), weights)
    return Objective(task.codes_of(labels), loss)


def _distribution_objective(
    config: Train,
    task: Task,
    name: str,
    classes: OrderedClasses,
    settings: Distribution,
    device: str,
) -> Objective:
    """Return targets that number the distinct numbers, and a loss with a distribution for each."""
    numbers = _numbers(task, name)
    is_known = np.isfinite(numbers.values)
    distinct, place = np.unique(numbers.values[is_known], return_inverse=True)
    codes = np.full(len(numbers.values), -1, np.int64)
    codes[is_known] = place
    edges = classes.edges.double().cpu().numpy()
    shares = gaussian_cells(distinct, edges, settings.sigma)
    table = torch.tensor(shares, dtype=torch.float32).to(device)
    weights = _branch_weights(config, task, (name,))
    if weights is not None:
        of_number = np.searchsorted(numbers.borders, distinct, side="right")
        weights = weights[torch.from_numpy(of_number)]
    loss = mean_over_samples(partial(divergence, table=table), _on(weights, device))
    return Objective(codes, loss)


def _loss(config: Train, task: Task, labels: tuple[str, ...], device: str) -> BranchLoss:
    def plain(loss: OneLoss) -> BranchLoss:
        weights = _branch_weights(config, task, labels, loss)
        shares = None
        if isinstance(loss, LogitAdjustment | BalancedSoftmax):
            counts = _counts(config, task, labels, f"loss {loss.name!r}", loss.count)
            shares = torch.tensor(log_shares(counts), dtype=torch.float32).to(device)
        return branch_loss(loss, _on(weights, device), shares)

    if isinstance(config.loss, Mix):
        parts = config.loss.parts.values()
        return weighted_sum([(part.weight, plain(part.loss)) for part in parts])
    return plain(config.loss)


def _on(weights: Tensor | None, device: str) -> Tensor | None:
    return None if weights is None else weights.to(device)


def _branch_weights(
    config: Train, task: Task, labels: tuple[str, ...], loss: OneLoss | None = None
) -> Tensor | None:
    """Return the weight of each class of a branch, (k,): the balance times the loss's alpha."""
    balance = _balance_weights(config, task, labels)
    weights = None if loss is None else alpha_of(loss, labels, task.label_sizes)
    if balance is None or weights is None:
        return balance if weights is None else weights
    return weights * balance


def _balance_weights(config: Train, task: Task, labels: tuple[str, ...]) -> Tensor | None:
    """Return the weight that `balance` gives each class of a branch, (k,); None for 1."""
    effective = config.effective_number
    if effective is not None:
        counts = _counts(config, task, labels, "balance 'effective_number'", effective.count)
        return torch.tensor(effective_weights(counts, effective.beta), dtype=torch.float32)
    if config.balance == "class_weights":
        counts = _counts(config, task, labels, "balance 'class_weights'", "photos")
        return torch.tensor(balanced_weights(counts), dtype=torch.float32)
    return None


def _counts(config: Train, task: Task, labels: tuple[str, ...], purpose: str, count: str) -> Floats:
    """Count the classes of a branch over the training part, by groups or by photos.

    With `group_photos`, photos are counted as often as an epoch draws them on average.
    """
    codes = task.train_codes(labels)
    n_classes = math.prod(task.label_sizes[name] for name in labels)
    if count == "photos":
        shares = None
        if config.group_photos is not None:
            shares = draw_shares(task.train_groups(), config.group_photos)
        return class_counts(codes, n_classes, shares=shares)
    if task.groups is None:
        raise ValueError(f"{purpose} counts groups: task.groups was required, found none")
    first, _ = task.parents(task.train)
    return class_counts(codes, n_classes, task.groups[first])
