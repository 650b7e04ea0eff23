"""Features of a frozen backbone: computed once per photo and view, then read like any array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.augmentation import Augmentation, sample_seeds
from trainers.data import Ints, Task
from trainers.inference import as_tensor
from trainers.model import Classifier

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
    ) -> None:
        """Identify the backbone by its weights; nothing is computed yet.

        Args:
            model: on its device; its backbone is put into eval mode.
            task: rows and photos.
            augment: augmentation of the training part.
            store: where features are kept between trainings; None keeps nothing.
        """
        self._model = model
        self._task = task
        self._augment = augment
        self._store: FeatureStore = store or (lambda _, compute: compute())
        model.backbone.eval()
        self._weights = weights_sha256(model)
        self._tables: dict[str, tuple[Ints, Features]] = {}  # by the view's text

    def __call__(self, rows: Ints, view: View) -> torch.Tensor:
        """Return the features of rows in a view, (B, F) float32."""
        name = repr(view)  # a policy may be a list, which has no hash
        if name not in self._tables:
            self._tables[name] = self._table(view)
        stored_rows, features = self._tables[name]
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
        return rows, self._store(identity, lambda: self._compute(rows, view))

    @torch.no_grad()
    def _compute(self, rows: Ints, view: View) -> Features:
        device = next(self._model.parameters()).device
        features = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            photos = self._task.photos(batch)
            if self._augment is not None and view.number is not None:
                photos = self._augment(photos, sample_seeds(view.seed, view.number, batch))
            values = self._model.features(as_tensor(photos).to(device))
            features.append(values.float().cpu().numpy())
        return np.concatenate(features)


def weights_sha256(model: Classifier) -> str:
    """Return the sha256 of a backbone's parameters and buffers, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
