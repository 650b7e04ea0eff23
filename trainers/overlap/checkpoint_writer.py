"""Writes the files of a training, beside it where the device has time of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from trainers import checkpoint
from trainers.checkpoint import Description, State
from trainers.overlap.device_copies import read_all
from trainers.overlap.overlap_choice import Overlap

_ReadWeights = Callable[[], tuple[dict[str, Tensor], Description]]


class CheckpointWriter:
    """Keeps the resumable state and the weights of the best epochs of one folder.

    The weights of an epoch are written under a name with its number, then the state that counts on
    them. So a state that is found always finds its weights, wherever the process was killed.
    """

    def __init__(self, folder: Path, overlap: Overlap, n_best: int = 1) -> None:
        self._folder = folder
        self._overlap = overlap
        self._n_best = n_best
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._began = -float("inf")
        self._best: dict[int, _ReadWeights] = {}  # epoch -> weights that are not written yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def load(self) -> State | None:
        """Return the state that a training goes on from, None where it starts from the beginning."""
        return checkpoint.load_state_with_weights(self._folder, self._n_best)

    def keep_best(self, epoch: int, weights: dict[str, Tensor], description: Description) -> None:
        """Take in the weights of one of the best epochs so far; they are written with its state."""
        self._best[epoch] = self._reader((weights, description))

    def save(self, state: State, *, is_last: bool) -> None:
        """Write a state; it may be left out if the last one is young and this is not the last.

        Where nothing runs beside, the state is on the disk when this returns. Otherwise its tensors
        may change from now on.

        Raises:
            OSError: this state or one before it could not be written.
        """
        best = {}
        for epoch in checkpoint.best_epochs(state["history"], self._n_best):
            best[epoch] = self._best.get(epoch)
        self._best = {epoch: read for epoch, read in best.items() if read is not None}
        is_young = time.monotonic() - self._began < self._overlap.write_every_s
        is_busy = self._writing is not None and not self._writing.done()
        if not is_last and (is_young or is_busy):
            return
        self._wait()
        self._began = time.monotonic()
        read_state = self._reader(state)
        self._best = {}
        if not self._overlap.writes_beside:
            self._write(read_state, best)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._pool.submit(self._write, read_state, best)

    def finish(self, best_epoch: int) -> None:
        """Wait for what is being written and give the best weights their final name.

        Raises:
            OSError: a state could not be written.
        """
        self._wait()
        checkpoint.rename_best(self._folder, best_epoch)

    def epoch_weights(self, epoch: int) -> dict[str, Tensor]:
        """Wait for what is being written and return the weights of one of the best epochs.

        Raises:
            OSError: a state could not be written.
        """
        self._wait()
        return checkpoint.epoch_weights(self._folder, epoch)

    def _reader(self, tree: Any) -> Callable[[], Any]:
        if not self._overlap.writes_beside:
            return lambda: tree
        return read_all(self._overlap.copies, tree)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(
        self, read_state: Callable[[], Any], best: Mapping[int, _ReadWeights | None]
    ) -> None:
        for epoch, read_best in best.items():
            if read_best is not None:  # else it is written
                weights, description = read_best()
                checkpoint.save_weights(self._folder, weights, description, epoch=epoch)
        checkpoint.save_state(self._folder, read_state())
        checkpoint.remove_weights(self._folder, except_epochs=best)
