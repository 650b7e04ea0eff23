"""Brings batches to the device while it works on the batches before them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import Tensor

from trainers.data import Ints
from trainers.objectives.losses import Targets
from trainers.overlap.device_copies import Arrival, Copies

_DEPTH = 2  # batches on their way


@dataclass(frozen=True)
class Batch:
    """What a step or a forward pass needs."""

    rows: Ints  # (B,), stays on the host
    x: Tensor  # (B, 3, H, W), or features (B, F)
    targets: Mapping[str, Targets] = field(default_factory=dict)  # branch -> targets

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order that `on` takes them."""
        listed = [self.x]
        for target in self.targets.values():
            listed += [target.codes, target.weight]
        return listed

    def on(self, tensors: list[Tensor]) -> Batch:
        """Return the batch with other tensors in the place of its own."""
        remaining = iter(tensors)
        x = next(remaining)
        targets = {name: Targets(next(remaining), next(remaining)) for name in self.targets}
        return Batch(self.rows, x, targets)


@dataclass(frozen=True)
class _Sent:
    batch: Batch
    arrival: Arrival


def feed(batches: Generator[Batch], copies: Copies | None) -> Iterator[Batch]:
    """Yield batches in order, on the device.

    One thread makes a batch and begins to copy it while the device works on the ones before.

    Args:
        batches: on the host; closed at the end, also at an early one.
        copies: to the device; None where torch computes on the host: nothing is copied then, and no
            thread is started.
    """
    if copies is None:
        yield from batches
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="feeder")
    try:
        yield from _fed(pool, batches, copies)
    finally:
        pool.shutdown(cancel_futures=True)
        batches.close()


def _fed(pool: ThreadPoolExecutor, batches: Iterator[Batch], copies: Copies) -> Iterator[Batch]:
    def send_next() -> _Sent | None:
        batch = next(batches, None)
        return None if batch is None else _Sent(batch, copies.send(batch.tensors()))

    coming: deque[Future[_Sent | None]] = deque()
    for _ in range(_DEPTH):
        coming.append(pool.submit(send_next))
    for _ in itertools.count():
        sent = coming.popleft().result()
        if sent is None:
            return
        coming.append(pool.submit(send_next))
        yield sent.batch.on(sent.arrival.tensors())
