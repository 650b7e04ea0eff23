"""What one training sees: rows of a memory-mapped array, targets, and which rows are for what."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.metrics import joint_class

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A training problem. Rows outside `train` and `val` are never read by the trainer."""

    images: NDArray[np.uint8]  # (N, H, W, 3), may be a memory map
    targets: Ints  # (N, L), one code per label
    sample_ids: list[str]
    label_sizes: Mapping[str, int]  # name -> number of classes; the order gives the joint class
    train: Ints  # row numbers
    val: Ints

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.label_sizes.values())

    @property
    def n_classes(self) -> int:
        return math.prod(self.sizes)

    def codes_of(self, labels: tuple[str, ...]) -> Ints:
        """Return the joint class over some of the labels for every row, (N,)."""
        columns = [list(self.label_sizes).index(name) for name in labels]
        return joint_class(self.targets[:, columns], tuple(self.label_sizes[name] for name in labels))


def seed_of(*parts: object) -> int:
    """Derive a 32-bit seed from anything that has a text."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:4], "big")


def epoch_order(task: Task, *, seed: int, epoch: int, balance: str) -> Ints:
    """Return the rows of one epoch in order: a pure function of (task, seed, epoch).

    With `weighted_sampler`, rows are drawn with replacement, every joint class equally often on average.
    """
    rng = np.random.default_rng(seed_of(seed, "order", epoch))
    if balance != "weighted_sampler":
        return rng.permutation(task.train)
    classes = task.codes_of(tuple(task.label_sizes))[task.train]
    counts = np.bincount(classes, minlength=task.n_classes)
    weights = 1.0 / counts[classes]
    return rng.choice(task.train, size=len(task.train), p=weights / weights.sum())


def batches(order: Ints, size: int, *, drop_single: bool = False) -> Iterator[Ints]:
    """Cut rows into batches; the last may be smaller. A lone last row joins the batch before where BatchNorm needs two."""
    cuts = list(range(0, len(order), size))
    if drop_single and len(cuts) > 1 and len(order) - cuts[-1] == 1:
        cuts.pop()
    for start, end in zip(cuts, [*cuts[1:], len(order)], strict=True):
        yield order[start:end]
