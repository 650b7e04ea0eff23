"""Heads: from a backbone's features to logits, one tensor per branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainers.config import DeepHead, ShallowHead, SingleHead


class Branches(nn.Module):
    """One classifier per branch over the same features.

    `branches` says what each one answers: the names of the labels whose joint class it gives.
    """

    branches: dict[str, tuple[str, ...]]

    def __init__(self, branches: Mapping[str, tuple[str, ...]], layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.branches = dict(branches)
        self.layers = nn.ModuleDict(layers)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Map (B, F) features to {branch: (B, k) logits}."""
        return {name: layer(features) for name, layer in self.layers.items()}


def _single(head: SingleHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model A: one linear layer over the joint classes."""
    labels = tuple(head.labels or sizes)
    k = math.prod(sizes[name] for name in labels)
    return Branches({"joint": labels}, {"joint": nn.Linear(n_features, k)})


def _shallow(head: ShallowHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model B: one linear layer per label."""
    del head
    return Branches({n: (n,) for n in sizes}, {n: nn.Linear(n_features, k) for n, k in sizes.items()})


def _deep(head: DeepHead, n_features: int, sizes: Mapping[str, int]) -> Branches:
    """Model C: per label features -> hidden, BatchNorm, ReLU, Dropout -> k."""

    def branch(k: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(n_features, head.hidden),
            nn.BatchNorm1d(head.hidden),
            nn.ReLU(),
            nn.Dropout(head.dropout),
            nn.Linear(head.hidden, k),
        )

    return Branches({n: (n,) for n in sizes}, {n: branch(k) for n, k in sizes.items()})


HEADS: dict[str, Callable[[Any, int, Mapping[str, int]], Branches]] = {
    "single": _single,
    "shallow": _shallow,
    "deep": _deep,
}


def joint_log_probs(logits: Mapping[str, Tensor], branches: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Join branches into log probabilities over the joint class: (B, n_classes), the first label weighing most.

    Branches are taken as independent, so a joint probability is the product of theirs.
    """
    total: Tensor | None = None
    for name in branches:
        one = torch.log_softmax(logits[name].float(), dim=1)
        total = one if total is None else (total[:, :, None] + one[:, None, :]).flatten(1)
    if total is None:
        raise ValueError("a head has at least one branch")
    return total
