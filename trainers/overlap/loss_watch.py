"""Losses that are read some steps late, so that no step waits for its own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from trainers.data import Ints
from trainers.overlap.device_copies import Copies, Reading, read


class TrainingDiverged(RuntimeError):  # noqa: N818 - says what happened
    """A loss or a metric that is not a finite number."""


@dataclass(frozen=True)
class _Pending:
    reading: Reading
    rows: Ints
    step: int
    lr: float


class LossWatch:
    """The mean of losses over samples; a loss that is not finite is named with its place."""

    def __init__(
        self, what: str, name_of: Callable[[int], str], copies: Copies | None, lag: int
    ) -> None:
        """Begin with no loss.

        Args:
            what: the loss's name in the message.
            name_of: row -> sample id.
            copies: from the device; None: losses are on the host.
            lag: a loss is read when so many later ones have been added.
        """
        self._what = what
        self._name_of = name_of
        self._copies = copies
        self._lag = lag
        self._pending: deque[_Pending] = deque()
        self._total = 0.0
        self._n_samples = 0

    def add(self, loss: Tensor, rows: Ints, *, step: int, lr: float) -> None:
        """Take in the loss of some rows.

        Raises:
            TrainingDiverged: this one or one of the last `lag` is not finite.
        """
        self._pending.append(_Pending(read(self._copies, loss), rows, step, lr))
        while len(self._pending) > self._lag:
            self._take(self._pending.popleft())

    def mean(self) -> float:
        """Read all that is left and return the mean over samples, 0 where there were none.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        while self._pending:
            self._take(self._pending.popleft())
        return self._total / max(self._n_samples, 1)

    def _take(self, pending: _Pending) -> None:
        loss = float(pending.reading.array())
        if not math.isfinite(loss):
            samples = ", ".join(self._name_of(row) for row in pending.rows.tolist())
            raise TrainingDiverged(
                f"{self._what} is {loss} at step {pending.step}, lr {pending.lr:g}, "
                f"samples {samples}; lower the learning rate"
            )
        self._total += loss * len(pending.rows)
        self._n_samples += len(pending.rows)
