"""What one training sees: rows of a memory-mapped array, targets, and the part of each row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.metrics import Ints, joint_class
from trainers.objectives.losses import Targets
from trainers.photos.group_draws import draw_per_group, n_drawn

__all__ = [
    "Ints",
    "Mixable",
    "Numbers",
    "Task",
    "ahead",
    "batches",
    "epoch_order",
    "gather",
    "seed_of",
]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Mixable:
    """What MixUp needs to know of every row."""

    fits: NDArray[np.bool_]  # (N,) True if it may be mixed
    within: Ints  # (N,) mixed only with rows of the same number
    group: Ints  # (N,) never mixed offline with a row of the same number


def _no_pairs() -> Ints:
    return np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Numbers:
    """The numbers that a label's classes are bins of."""

    values: NDArray[np.float64]  # (N,), NaN where a row has none
    borders: tuple[float, ...]  # (k - 1,) ascending; a class begins with its border


@dataclass(frozen=True)
class Task:
    """A training problem. Rows outside `train` and `val` are never read by the trainer."""

    images: NDArray[np.uint8]  # (N, H, W, 3), may be a memory map
    targets: Ints  # (N, L), one code per label; -1 where a row of `train` lacks it
    sample_ids: list[str]
    label_sizes: Mapping[str, int]  # name -> number of classes; the order gives the joint class
    train: Ints  # row numbers; from N on they are mixed from `pairs`
    val: Ints
    mixable: Mixable | None = None
    pairs: Ints = field(default_factory=_no_pairs)  # (M, 2) parents of row N + m, half and half
    groups: Ints | None = None  # (N,) whose photo a row is; None where no loss counts groups
    numbers: Mapping[str, Numbers] = field(default_factory=dict)  # of the labels that need them

    @property
    def n_classes(self) -> int:
        """Return the number of joint classes."""
        return math.prod(self.label_sizes.values())

    def with_pairs(self, pairs: Ints) -> Task:
        """Add one training row per pair of parents; its photo is mixed when it is read."""
        mixed_rows = len(self.images) + np.arange(len(pairs))
        return replace(self, pairs=pairs, train=np.concatenate([self.train, mixed_rows]))

    def learnable(self, branches: Iterable[tuple[str, ...]]) -> Task:
        """Leave out the rows of `train` that lack a label of every branch: they would teach nothing.

        Args:
            branches: the labels that each branch of the head answers together.
        """
        has_branch = np.zeros(len(self.targets), np.bool_)
        for labels in branches:
            has_branch |= self.codes_of(labels) >= 0
        kept = has_branch[self.train]
        return self if kept.all() else replace(self, train=self.train[kept])

    def codes_of(self, labels: tuple[str, ...]) -> Ints:
        """Return the joint class over some of the labels for every row of the array, (N,).

        It is -1 where a row lacks one of them.
        """
        columns = [list(self.label_sizes).index(name) for name in labels]
        sizes = tuple(self.label_sizes[name] for name in labels)
        return joint_class(self.targets[:, columns], sizes)

    def train_codes(self, labels: tuple[str, ...]) -> Ints:
        """Return the joint class of every training row; a mixed row has its first parent's."""
        first, _ = self.parents(self.train)
        return self.codes_of(labels)[first]

    def train_groups(self) -> Ints:
        """Return the group of every training row; a mixed row has its first parent's.

        Raises:
            ValueError: the groups are not known.
        """
        if self.groups is None:
            raise ValueError("train.group_photos: task.groups was required, found none")
        first, _ = self.parents(self.train)
        return self.groups[first]

    def parents(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return both parents of each row, (B,) and (B,); a photo is its own twice."""
        first = rows.copy()
        second = rows.copy()
        mixed = rows >= len(self.images)
        first[mixed], second[mixed] = self.pairs[rows[mixed] - len(self.images)].T
        return first, second

    def photos(self, rows: Ints, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Gather photos, (B, H, W, 3) uint8, a copy; a mixed one is A/2 + B/2.

        Args:
            rows: (B,) row numbers, also of mixed rows.
            out: of the shape of the result, gets it.
        """
        if not len(self.pairs):
            return gather(self.images, rows, out)
        first, second = self.parents(rows)
        photos = gather(self.images, first, out)
        mixed = first != second
        if mixed.any():
            total = photos[mixed].astype(np.uint16) + self.images[second[mixed]]
            photos[mixed] = total // 2
        return photos

    def targets_of(self, codes: Ints, rows: Ints) -> Targets:
        """Return the targets of rows: one part each, two where pairs exist.

        A part that lacks the label has weight 0.
        """
        if len(self.pairs):
            first, second = self.parents(rows)
            parts = np.stack([codes[first], codes[second]], 1)
            share = np.where(first == second, 1.0, 0.5).astype(np.float32)
            weight = np.stack([share, 1 - share], 1)
        else:
            parts = codes[rows][:, None]
            weight = np.ones(parts.shape, np.float32)
        weight[parts < 0] = 0.0
        return Targets(torch.from_numpy(np.maximum(parts, 0)), torch.from_numpy(weight))

    def name(self, row: int) -> str:
        """Return the sample id of a row; a mixed one is named by its parents."""
        if row < len(self.sample_ids):
            return self.sample_ids[row]
        return "+".join(self.sample_ids[parent] for parent in self.pairs[row - len(self.images)])


def gather(
    images: NDArray[np.uint8], rows: Ints, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return rows of an array as a copy, in `out` where it is given."""
    if out is None:
        return np.take(np.asarray(images), rows, axis=0)
    # mode `raise` would gather into memory of its own first
    return np.take(np.asarray(images), rows, axis=0, out=out, mode="clip")


def seed_of(*parts: object) -> int:
    """Derive a 32-bit seed from anything that has a text."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def epoch_size(task: Task, group_photos: int | None = None) -> int:
    """Return the number of rows in an epoch, where a group has at most `group_photos`."""
    if group_photos is None:
        return len(task.train)
    return n_drawn(task.train_groups(), group_photos)


def epoch_order(
    task: Task, *, seed: int, epoch: int, balance: object, group_photos: int | None = None
) -> Ints:
    """Return the rows of one epoch in order: a pure function of (task, seed, epoch).

    With `group_photos`, so many photos of each group are drawn first. Mixed rows are drawn among
    those of their first parent's group.

    With `weighted_sampler`, rows are drawn with replacement, every joint class equally often on
    average. A row that lacks a label has no joint class and is drawn as often as the mean row.
    """
    rng = np.random.default_rng(seed_of(seed, "order", epoch))
    train = task.train
    if group_photos is not None:
        train = train[draw_per_group(task.train_groups(), group_photos, rng)]
    if balance != "weighted_sampler":
        return rng.permutation(train)
    classes = replace(task, train=train).train_codes(tuple(task.label_sizes))
    is_known = classes >= 0
    counts = np.bincount(classes[is_known], minlength=task.n_classes)
    weights = np.empty(len(classes))
    weights[is_known] = 1.0 / counts[classes[is_known]]
    weights[~is_known] = weights[is_known].mean()
    return rng.choice(train, size=len(train), p=weights / weights.sum())


def batches(order: Ints, size: int, *, drop_single: bool = False) -> Iterator[Ints]:
    """Cut rows into batches; the last may be smaller.

    Args:
        order: row numbers.
        size: of a batch.
        drop_single: let a lone last row join the batch before it, because BatchNorm needs two.
    """
    starts = list(range(0, len(order), size))
    if drop_single and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:end]


def ahead(function: Callable[[T], U], items: Iterable[T], n_threads: int) -> Iterator[U]:
    """Map a pure function over items in order, on threads that work ahead; 0 threads: here."""
    if n_threads < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: list[Future[U]] = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * n_threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
