"""Features of a frozen backbone: computed once per photo and view, then read like any array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.augmentation import Augmentation, sample_seeds
from trainers.data import Ints, Task
from trainers.device import autocast, scoring_precision
from trainers.inference import as_tensor
from trainers.model import Classifier
from trainers.overlap.copies import HostReading
from trainers.overlap.feeder import Batch, feed
from trainers.overlap.plan import Overlap

Features = NDArray[np.float32]  # (n, F)
FeatureStore = Callable[[dict[str, object], Callable[[], Features]], Features]
"""(what identifies the features, how to compute them) -> the features, from where they are kept."""
_BATCH = 128


@dataclass(frozen=True)
class View:
    """One version of the photos: as they are (number None), or augmented by an epoch's seed."""

    number: int | None
    seed: int
    policy: object  # of the spec; with seed and number it decides the augmentation


PLAIN = View(None, 0, "none")


class FeatureCache:
    """Looks up features by row. A store may hold what another training computed."""

    def __init__(
        self,
        model: Classifier,
        task: Task,
        augment: Augmentation | None,
        store: FeatureStore | None = None,
        *,
        precision: str = "fp32",
        overlap: Overlap | None = None,
    ) -> None:
        """Identify the backbone by its weights; nothing is computed yet.

        Args:
            model: on its device; its backbone is put into eval mode.
            task: rows and photos.
            augment: augmentation of the training part.
            store: where features are kept between trainings; None keeps nothing.
            precision: of the training; a GPU computes the features in it.
            overlap: how photos come to the device; None: torch computes on the host.
        """
        self._model = model
        self._task = task
        self._augment = augment
        self._store: FeatureStore = store or (lambda _, compute: compute())
        self._device = str(next(model.parameters()).device)
        self._precision = scoring_precision(self._device, precision)
        self._copies = overlap.copies if overlap else None
        model.backbone.eval()
        self._weights = weights_sha256(model)
        self._tables: dict[View, tuple[Ints, Features]] = {}

    def __call__(self, rows: Ints, view: View) -> torch.Tensor:
        """Return the features of rows in a view, (B, F) float32."""
        if view not in self._tables:
            self._tables[view] = self._table(view)
        stored_rows, features = self._tables[view]
        return torch.from_numpy(np.asarray(features[np.searchsorted(stored_rows, rows)]))

    def _table(self, view: View) -> tuple[Ints, Features]:
        """Return the rows of a view in order, and their features."""
        task = self._task
        rows = np.sort(task.train)
        if view.number is None:
            rows = np.sort(np.concatenate([task.train, task.val]))
        names = "\n".join(task.name(row) for row in rows)
        identity: dict[str, object] = {
            "weights": self._weights,
            "samples": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "view": [view.number, view.seed, view.policy],
            "dtype": "float32",
        }
        if self._precision != "fp32":
            identity["precision"] = self._precision
        return rows, self._store(identity, lambda: self._compute(rows, view))

    @torch.no_grad()
    def _compute(self, rows: Ints, view: View) -> Features:
        readings = []
        with autocast(self._device, self._precision):
            for batch in feed(self._batches(rows, view), self._copies):
                values = self._model.features(batch.x).float()
                readings.append(self._copies.read(values) if self._copies else HostReading(values))
        return np.concatenate([reading.array() for reading in readings])

    def _batches(self, rows: Ints, view: View) -> Generator[Batch]:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            photos = self._task.photos(batch)
            if self._augment is not None and view.number is not None:
                photos = self._augment(photos, sample_seeds(view.seed, view.number, batch))
            yield Batch(batch, as_tensor(photos))


def weights_sha256(model: Classifier) -> str:
    """Return the sha256 of a backbone's parameters and buffers, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
