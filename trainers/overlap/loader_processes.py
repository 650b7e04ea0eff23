"""Processes that augment photos into shared memory, so that the loop need not share its interpreter.

A network that is bound by launches is bound by one interpreter, and threads beside it hold that one's
lock for every photo (`make bench ONLY=loop_beside_augmentation`).

One program imports what policies need, without torch, and forks a process per socket. It is started and
not forked, because a process that has opened CUDA cannot fork.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from trainers.photos import augmentation
from trainers.settings.augment import Policy
from trainers.settings.policies import Erasing

_AT_MOST = 4  # processes of a training; one makes 500 photos of 380 px a second by policy `strong`
_PROGRAM = f"""
import sys
sys.modules["torch"] = None  # a policy needs none, and importing it takes seconds
from {__name__} import main
main([int(handle) for handle in sys.argv[1:]])
"""
_DEPTH = 2  # batches that a process works ahead


@dataclass(frozen=True)
class Work:
    """One batch to make."""

    rows: NDArray[np.int64]
    seeds: NDArray[np.uint64]


@dataclass(frozen=True)
class _Mapped:
    """An array in a file, to be mapped by any process of this machine."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def open(self, mode: Any) -> NDArray[np.uint8]:
        return np.memmap(self.path, np.uint8, mode, self.offset, self.shape)


@dataclass(frozen=True)
class _Job:
    """What a process has to know of a training."""

    images: _Mapped
    slots: _Mapped
    policy: Policy
    erasing: Erasing | None


@dataclass(frozen=True)
class _Order:
    serial: int
    slot: int
    work: Work


@dataclass(frozen=True)
class _Answer:
    serial: int  # of the order
    problem: str | None


_serials = itertools.count()


class LoaderProcesses:
    """Makes the batches of one training. The processes stay for the next training of this process."""

    def __init__(
        self,
        images: np.memmap[Any, np.dtype[np.uint8]],
        policy: Policy,
        erasing: Erasing | None = None,
        *,
        n_processes: int,
        batch_size: int,
    ) -> None:
        """Map the shared memory and tell the processes about the training.

        Args:
            images: (N, H, W, 3), C-contiguous in its file.
            policy: of the augmentation.
            erasing: likewise.
            n_processes: at most four are used.
            batch_size: the largest batch has one more.
        """
        self._connections = _started(min(n_processes, _AT_MOST)).connections
        n_slots = _DEPTH * len(self._connections)
        shape = (n_slots, batch_size + 1, *images.shape[1:])
        # /dev/shm has 64 MB in many containers; a file in memory has no such limit
        self._memory = os.memfd_create("batches")
        os.ftruncate(self._memory, int(np.prod(shape)))
        slots = _Mapped(f"/proc/{os.getpid()}/fd/{self._memory}", 0, shape)
        self._slots = slots.open("r+")
        mapped = _Mapped(str(images.filename), int(images.offset), images.shape)
        for connection in self._connections:
            connection.send(_Job(mapped, slots, policy, erasing))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        os.close(self._memory)

    def batches(self, works: Iterable[Work]) -> Iterator[NDArray[np.uint8]]:
        """Yield the photos of each work in order, (B, H, W, 3); they may be overwritten after the next.

        Raises:
            ValueError: an operation cannot be used.
            RuntimeError: a process has died.
        """
        remaining = iter(works)
        coming: deque[_Order] = deque()
        for slot, work in enumerate(itertools.islice(remaining, len(self._slots))):
            coming.append(self._send(slot, work))
        while coming:
            order = coming.popleft()
            self._receive(order)
            yield self._slots[order.slot, : len(order.work.rows)]
            for work in itertools.islice(remaining, 1):
                coming.append(self._send(order.slot, work))

    def _send(self, slot: int, work: Work) -> _Order:
        order = _Order(next(_serials), slot, work)
        try:
            self._connection(order).send(order)
        except OSError as error:
            raise _died() from error
        return order

    def _receive(self, order: _Order) -> None:
        answer = _Answer(-1, None)
        while answer.serial != order.serial:  # an epoch that was left early has answers to come
            try:
                answer = self._connection(order).recv()
            except (EOFError, OSError) as error:
                raise _died() from error
        if answer.problem is not None:
            raise ValueError(answer.problem)

    def _connection(self, order: _Order) -> Connection:
        return self._connections[order.slot % len(self._connections)]


def _died() -> RuntimeError:
    _started.cache_clear()  # the next training gets new ones
    return RuntimeError("a process that augments photos has died; look at free memory")


@dataclass(frozen=True)
class _Started:
    program: subprocess.Popen[bytes]
    connections: tuple[Connection, ...]


@functools.cache
def _started(n_processes: int) -> _Started:
    """Start processes; they end when this one closes its sockets, at its end at the latest."""
    pairs = [socket.socketpair() for _ in range(n_processes)]
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    handles = [there.fileno() for _, there in pairs]
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, handles)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        pass_fds=handles,
        stdin=subprocess.DEVNULL,
    )
    connections = []
    for here, there in pairs:
        there.close()
        connections.append(Connection(here.detach()))
    return _Started(program, tuple(connections))


@dataclass(frozen=True)
class _Training:
    """A job with its files open."""

    images: NDArray[np.uint8]
    slots: NDArray[np.uint8]
    augment: augmentation.Augmentation

    @classmethod
    def of(cls, job: _Job) -> _Training:
        augment = augmentation.build(job.policy, job.erasing)
        if augment is None:
            raise ValueError("a policy with operations was required, found none")
        return cls(job.images.open("r"), job.slots.open("r+"), augment)

    def make(self, order: _Order) -> None:
        photos = np.take(self.images, order.work.rows, axis=0)
        self.slots[order.slot, : len(photos)] = self.augment(photos, order.work.seeds)


def _serve(connection: Connection) -> NoReturn:
    """Make batches until the training process closes its end."""
    job: _Job | None = None
    training: _Training | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = connection.recv()
            if isinstance(message, _Job):
                job = message
                training = None
                continue
            problem = None
            try:
                if training is None and job is not None:
                    training = _Training.of(job)
                if training is not None:
                    training.make(message)
            except Exception as error:  # noqa: BLE001 - the training raises it
                problem = f"{type(error).__name__}: {error}"
            connection.send(_Answer(message.serial, problem))
    os._exit(0)


def main(handles: list[int]) -> NoReturn:
    """Import what policies need, and fork a process per socket."""
    import albumentations  # noqa: F401, PLC0415 - once for all
    import cv2  # noqa: PLC0415

    cv2.setNumThreads(1)
    for number, handle in enumerate(handles[1:], 1):
        if os.fork() == 0:
            for other in handles[:number] + handles[number + 1 :]:
                os.close(other)
            _serve(Connection(handle))
    for other in handles[1:]:
        os.close(other)
    _serve(Connection(handles[0]))
