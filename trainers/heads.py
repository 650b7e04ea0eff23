"""Heads: from a backbone's features to logits, one tensor per branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainers.objectives.ordered import OrderedClasses, n_outputs
from trainers.own_parts import OwnPartFailed, call
from trainers.settings.model import DeepHead, FrozenDeepHead, Head, ShallowHead, SingleHead
from trainers.settings.own_parts import OwnPart


class Branches(nn.Module):
    """One classifier per branch over the same features.

    `branches` says what each one answers: the names of the labels whose joint class it gives.
    """

    branches: dict[str, tuple[str, ...]]
    ordered: nn.ModuleDict  # branch -> OrderedClasses
    exists: Tensor | None

    def __init__(
        self,
        branches: Mapping[str, tuple[str, ...]],
        layers: Mapping[str, nn.Module],
        *,
        trunk: nn.Module | None = None,
        n_existing: int | None = None,
        ordered: Mapping[str, OrderedClasses] | None = None,
    ) -> None:
        """Hold the layers.

        Args:
            branches: name -> labels.
            layers: name -> what maps features to the branch's logits.
            trunk: what features pass before the branches.
            n_existing: the number of joint classes, if the joint is restricted to existing ones.
            ordered: name -> what makes classes of the outputs of an ordered branch.
        """
        super().__init__()
        self.branches = dict(branches)
        self.trunk = trunk or nn.Identity()
        self.layers = nn.ModuleDict(layers)
        self.ordered = nn.ModuleDict(ordered or {})
        exists = torch.ones(n_existing, dtype=torch.bool) if n_existing else None
        self.register_buffer("exists", exists)  # a buffer travels with the weights

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Map (B, F) features to {branch: (B, k) logits}."""
        shared = self.trunk(features)
        return {name: layer(shared) for name, layer in self.layers.items()}

    def ordered_branch(self, name: str) -> OrderedClasses | None:
        """Return what makes classes of an ordered branch's outputs; None where it has no order."""
        classes = dict(self.ordered.items()).get(name)
        return classes if isinstance(classes, OrderedClasses) else None

    def log_probs(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Join branches into log probabilities over the joint class, (B, n_classes)."""
        of_classes = dict(logits)
        for name, classes in self.ordered.items():
            of_classes[name] = classes(logits[name])
        return joint_log_probs(of_classes, self.branches, self.exists)


def branch_labels(head: Head, sizes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the labels that each branch of a head answers together, in the schema's order."""
    if isinstance(head, SingleHead):
        labels = tuple(name for name in sizes if head.labels is None or name in head.labels)
        return {"joint": labels}
    return {name: (name,) for name in sizes}


def _single(head: SingleHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model A: one linear layer over the joint classes, numbered in the schema's order."""
    branches = branch_labels(head, sizes)
    n_classes = math.prod(sizes[name] for name in branches["joint"])
    return Branches(branches, {"joint": nn.Linear(n_features, n_classes)})


def _shallow(head: ShallowHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model B: one linear layer per label."""
    return _per_label(head, sizes, lambda k: nn.Linear(n_features, k))


def _deep(head: DeepHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model C: per label features -> hidden, BatchNorm, activation, Dropout -> k."""
    return _per_label(head, sizes, lambda k: _deep_branch(head, n_features, k))


def _frozen_deep(head: FrozenDeepHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model A+C: features -> projection, then per label the deep branch of model C."""
    projection = nn.Linear(n_features, head.projection)
    return _per_label(
        head, sizes, lambda k: _deep_branch(head, head.projection, k), trunk=projection
    )


def _own(head: OwnPart, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Code of the user: per label (n_features, n_classes) -> what maps (B, F) to (B, n_classes)."""
    layers = {}
    for name, k in sizes.items():
        layer = call(head, n_features, k)
        if not isinstance(layer, nn.Module):
            raise OwnPartFailed(f"{head.use}: a torch.nn.Module was required, found {layer!r}")
        layers[name] = layer
    return Branches(branch_labels(head, sizes), layers)


def build_head(head: Head, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Build the head of a spec over so many features, for the classes of each label."""
    if isinstance(head, OwnPart):
        return _own(head, n_features, sizes)
    return HEADS[head.name](head, n_features, sizes)


def _per_label(
    head: ShallowHead | DeepHead | FrozenDeepHead,
    sizes: Mapping[str, int],
    layer: Callable[[int], nn.Module],
    *,
    trunk: nn.Module | None = None,
) -> Branches:
    n_existing = math.prod(sizes.values()) if head.joint == "existing" else None
    widths = dict(sizes)
    ordered = {}
    for name, settings in head.ordered.items():
        if name not in sizes:
            raise ValueError(
                f"head.ordered: one of the labels {', '.join(sizes)} was required, found {name!r}"
            )
        widths[name] = n_outputs(settings, sizes[name])
        ordered[name] = OrderedClasses(settings, sizes[name])
    layers = {name: layer(width) for name, width in widths.items()}
    branches = branch_labels(head, sizes)
    return Branches(branches, layers, trunk=trunk, n_existing=n_existing, ordered=ordered)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def _deep_branch(head: DeepHead | FrozenDeepHead, n_features: int, k: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_features, head.hidden),
        nn.BatchNorm1d(head.hidden),
        _ACTIVATIONS[head.activation](),
        nn.Dropout(head.dropout),
        nn.Linear(head.hidden, k),
    )


HEADS: dict[str, Callable[[Any, int, Mapping[str, int]], Branches]] = {
    "single": _single,
    "shallow": _shallow,
    "deep": _deep,
    "frozen_deep": _frozen_deep,
}


def joint_log_probs(
    logits: Mapping[str, Tensor],
    branches: Mapping[str, tuple[str, ...]],
    exists: Tensor | None = None,
) -> Tensor:
    """Join branches into log probabilities over the joint class; the first label weighs most.

    Branches are taken as independent, so a joint probability is the product of theirs, and the best
    joint class is that of the best class per label. With `exists` the other joint classes get
    probability 0 and the rest is normalized again; then the best joint class may differ from the
    best per label.

    Args:
        logits: branch -> (B, k).
        branches: branch -> its labels, in the order of the joint class.
        exists: (n_classes,) bool, the joint classes that exist; None for all.

    Returns:
        (B, n_classes).

    Raises:
        ValueError: there is no branch.
    """
    if not branches:
        raise ValueError("a head needs at least one branch, found none")
    first, *others = (torch.log_softmax(logits[name].float(), dim=1) for name in branches)
    joint = first
    for branch in others:
        joint = (joint[:, :, None] + branch[:, None, :]).flatten(1)
    if exists is None:
        return joint
    return torch.log_softmax(joint.masked_fill(~exists, -torch.inf), dim=1)
