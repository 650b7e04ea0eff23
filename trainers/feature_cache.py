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
from trainers.model import Classifier
from trainers.inference import as_tensor

Features = NDArray[np.float32]  # (n, F)
_BATCH = 128


@dataclass(frozen=True)
class View:
    """One way to look at photos: as they are (number None), or augmented with the seed of an epoch."""

    number: int | None
    seed: int
    policy: object  # of the spec; says, with seed and number, what the augmentation does


PLAIN = View(None, 0, "none")
Keep = Callable[[dict[str, object], Callable[[], Features]], Features]
"""(what identifies the features, how to compute them) -> features, from wherever they are kept."""


class Bank:
    """Looks up features by row. `keep` may find what another training computed."""

    def __init__(
        self,
        model: Classifier,
        task: Task,
        augmented: Augmentation | None,
        keep: Keep | None = None,
    ) -> None:
        """Identify the backbone by its weights; nothing is computed yet.

        Args:
            model: on its device; its backbone is put into eval mode.
            task: rows and photos.
            augmented: of the training part.
            keep: where features are kept; None keeps nothing.
        """
        self._model, self._task, self._augmented = model, task, augmented
        self._keep: Keep = keep or (lambda _, compute: compute())
        model.backbone.eval()
        self._weights = weights_sha256(model)
        self._tables: dict[View, tuple[Ints, Features]] = {}

    def __call__(self, rows: Ints, view: View) -> torch.Tensor:
        """Return the features of rows in a view, (B, F) float32."""
        if view not in self._tables:
            task = self._task
            held = np.sort(
                task.train if view.number is not None else np.concatenate([task.train, task.val])
            )
            ids = hashlib.sha256(
                "\n".join(task.name(row) for row in held).encode("utf-8", "surrogateescape")
            )
            identity: dict[str, object] = {
                "weights": self._weights,
                "samples": ids.hexdigest(),
                "view": [view.number, view.seed, view.policy],
                "dtype": "float32",
            }
            self._tables[view] = held, self._keep(identity, lambda: self._compute(held, view))
        held, features = self._tables[view]
        return torch.from_numpy(np.asarray(features[np.searchsorted(held, rows)]))

    @torch.no_grad()
    def _compute(self, rows: Ints, view: View) -> Features:
        device, found = next(self._model.parameters()).device, []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            photos = self._task.photos(part)
            if self._augmented is not None and view.number is not None:
                photos = self._augmented(photos, sample_seeds(view.seed, view.number, part))
            found.append(self._model.features(as_tensor(photos).to(device)).float().cpu().numpy())
        return np.concatenate(found)


def weights_sha256(model: Classifier) -> str:
    """Return the sha256 of a backbone's parameters and buffers, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
