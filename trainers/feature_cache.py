"""Features of a frozen backbone: computed once per photo and view, then read like any array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.compute_settings import autocast, scoring_precision
from trainers.data import Ints, Task
from trainers.inference import KeptFeatures, as_tensor, gathered
from trainers.model import Classifier
from trainers.overlap.device_copies import Copies, read
from trainers.overlap.feeder import Batch, feed
from trainers.overlap.overlap_choice import Overlap, overlap_on
from trainers.photos.augmentation import Augmentation, sample_seeds
from trainers.photos.views import PLAIN_VIEW, TestView, seen

Features = NDArray[np.float32]  # (n, F)
_BATCH = 128
_BLOCK = 2048
"""Photos whose features are computed and kept together. Several workers compute several blocks."""


class FeatureStore(Protocol):
    """Where features are kept."""

    def __call__(
        self, identity: dict[str, object], compute: Callable[[], Features], *, wait: bool = True
    ) -> Features | None:
        """Return the features of an identity; compute them where they are not kept.

        Args:
            identity: what decides the features.
            compute: makes them.
            wait: False to return None where another process is computing them.
        """


@dataclass(frozen=True)
class View:
    """One version of the photos: as they are (number None), or augmented by an epoch's seed."""

    number: int | None
    seed: int
    policy: object  # of the spec; with seed and number it decides the augmentation
    seen: TestView = PLAIN_VIEW


PLAIN = View(None, 0, "none")


class FeatureCache:
    """Features by row, computed in blocks that depend on photos and view, never on a training's part.

    So all folds, seeds, heads and predictions that share a frozen backbone share its features.
    """

    def __init__(
        self,
        model: Classifier,
        task: Task,
        augment: Augmentation | None = None,
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
            overlap: how photos come to the device; None: what pays there.
        """
        self._model = model
        self._task = task
        self._augment = augment
        self._store: FeatureStore = store or _keep_nothing
        self._precision = precision
        self._overlap = overlap
        model.backbone.eval()
        self._weights = weights_sha256(model)
        self._blocks = _blocks(task)
        n_rows = len(task.images) + len(task.pairs)
        self._block_of = np.empty(n_rows, np.int64)
        self._place_of = np.empty(n_rows, np.int64)
        for number, rows in enumerate(self._blocks):
            self._block_of[rows] = number
            self._place_of[rows] = np.arange(len(rows))
        self._kept: dict[tuple[str, int], Features] = {}  # by view and block

    def __call__(self, rows: Ints, view: View = PLAIN) -> torch.Tensor:
        """Return the features of rows in a view, (B, F) float32."""
        if not len(rows):
            raise ValueError("at least one row was required, found none")
        numbers = self._block_of[rows]
        places = self._place_of[rows]
        blocks = self._take(np.unique(numbers).tolist(), view)
        width = next(iter(blocks.values())).shape[1]
        values = np.empty((len(rows), width), np.float32)
        for number, features in blocks.items():
            chosen = numbers == number
            values[chosen] = features[places[chosen]]
        return torch.from_numpy(values)

    def _take(self, numbers: list[int], view: View) -> dict[int, Features]:
        """Return the features of blocks, from the store where it knows them.

        Blocks that another process is computing are waited for at the end, so that processes that
        begin together share the work.
        """
        name = repr(view)  # a policy may be a list, which has no hash
        for wait in (False, True):
            for number in numbers:
                if (name, number) in self._kept:
                    continue
                features = self._look_up(number, view, wait=wait)
                if features is not None:
                    self._kept[name, number] = features
        return {number: self._kept[name, number] for number in numbers}

    def _look_up(self, number: int, view: View, *, wait: bool) -> Features | None:
        """Ask the store for the features of a block."""
        rows = self._blocks[number]
        names = "\n".join(self._task.name(row) for row in rows)
        identity: dict[str, object] = {
            "weights": self._weights,
            "samples": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "view": [view.number, view.seed, view.policy],
            "dtype": "float32",
        }
        if view.seen != PLAIN_VIEW:
            identity["seen"] = [view.seen.margin, view.seen.is_mirrored]
        precision = self._scored_in
        if precision != "fp32":
            identity["precision"] = precision
        return self._store(identity, lambda: self._compute(rows, view), wait=wait)

    @property
    def _device(self) -> str:
        return str(next(self._model.parameters()).device)

    @property
    def _scored_in(self) -> str:
        return scoring_precision(self._device, self._precision)

    @torch.no_grad()
    def _compute(self, rows: Ints, view: View) -> Features:
        overlap = self._overlap or overlap_on(self._device)
        readings = []
        with autocast(self._device, self._scored_in):
            for batch in feed(self._batches(rows, view, overlap.copies), overlap.copies):
                values = self._model.features(seen(batch.x, view.seen)).float()
                readings.append(read(overlap.copies, values))
        return np.concatenate([reading.array() for reading in readings])

    def _batches(self, rows: Ints, view: View, copies: Copies | None) -> Generator[Batch]:
        shape = self._task.images.shape[1:]
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            if self._augment is not None and view.number is not None:
                seeds = sample_seeds(view.seed, view.number, batch)
                yield Batch(batch, as_tensor(self._augment(self._task.photos(batch), seeds)))
            else:
                yield Batch(batch, gathered(self._task.photos, batch, shape, copies))


def _keep_nothing(
    identity: dict[str, object], compute: Callable[[], Features], *, wait: bool = True
) -> Features:
    del identity, wait
    return compute()


def kept_features(
    model: Classifier, images: NDArray[np.uint8], sample_ids: list[str], store: FeatureStore
) -> KeptFeatures | None:
    """Return what gives features for a prediction, None where the backbone is not frozen.

    Args:
        model: on its device.
        images: (N, H, W, 3), may be a memory map.
        sample_ids: N names.
        store: where features are kept.
    """
    if not model.frozen:
        return None
    none = np.zeros(0, np.int64)
    cache = FeatureCache(
        model,
        Task(images, np.zeros((len(images), 0), np.int64), sample_ids, {}, none, none),
        None,
        store,
        precision=model.precision,
    )
    return lambda rows, view: cache(rows, replace(PLAIN, seen=view))


def _blocks(task: Task) -> list[Ints]:
    """Cut all rows into blocks of one folder each: photos of the test set are not those of training.

    Mixed rows are last, in blocks of their own, because every training mixes others.
    """
    by_folder: dict[str, list[int]] = {}
    for row, name in enumerate(task.sample_ids):
        folder, slash, _ = name.partition("/")
        by_folder.setdefault(folder if slash else "", []).append(row)
    n_photos = len(task.images)
    parts = [sorted(rows, key=task.name) for rows in by_folder.values()]
    parts.append(list(range(n_photos, n_photos + len(task.pairs))))
    blocks = []
    for part in parts:
        rows = np.array(part, np.int64)
        blocks += [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    return blocks


def weights_sha256(model: Classifier) -> str:
    """Return the sha256 of a backbone's parameters and buffers, 64 hex digits."""
    digest = hashlib.sha256(model.code.encode())
    for name, value in sorted(model.backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
