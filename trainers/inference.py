"""Probabilities from stored weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers import checkpoint
from trainers.compute_settings import autocast, scoring_precision
from trainers.data import Ints, gather
from trainers.model import Classifier, build
from trainers.overlap.device_copies import Copies, read
from trainers.overlap.feeder import Batch, feed
from trainers.overlap.overlap_choice import Overlap, overlap_on
from trainers.photos.views import TestView, seen
from trainers.settings.model import Model

KeptFeatures = Callable[[NDArray[np.int64], TestView], Tensor]
"""Gives the features of rows in a view, (B, F)."""


def load(folder: Path) -> Classifier:
    """Rebuild a model from its folder alone, in eval mode."""
    weights, description = checkpoint.load_weights(folder)
    model = build(
        Model.model_validate(description["model"]),
        description["label_sizes"],
        size=description["size"],
        pretrained=False,
    )
    model.load_state_dict(weights)
    model.precision = description["precision"]
    return model.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def predict(
    model: Classifier,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 128,
    device: str = "cpu",
    features: KeptFeatures | None = None,
    overlap: Overlap | None = None,
) -> NDArray[np.float32]:
    """Return the probabilities of prepared photos over the joint class: the mean over its views.

    A GPU computes in the precision of the model's training, a CPU in fp32.

    Args:
        model: from `load`.
        images: (N, H, W, 3) uint8, may be a memory map.
        rows: (M,) row numbers; None for all.
        batch_size: photos at a time.
        device: where torch computes.
        features: of `kept_features`, where the backbone is frozen.
        overlap: how photos come to the device; None: what pays there.

    Returns:
        (M, n_classes) float32, each row sums to one. A one-label head answers over that label's
        classes.

    Raises:
        ValueError: there is no photo.
    """
    model.to(device).eval()
    overlap = overlap_on(device) if overlap is None else overlap
    if rows is None:
        rows = np.arange(len(images))
    if not len(rows):
        raise ValueError("at least one photo was required, found none")
    copies = overlap.copies
    readings = []
    with autocast(device, scoring_precision(device, model.precision)):
        if features is None:
            for batch in feed(_batches(images, rows, batch_size, copies), copies):
                readings.append(read(copies, _mean_over_views(model, batch.x)))
        else:
            of_views = _features(model.views, features, rows, batch_size)
            for batch in feed(of_views, copies):
                answers = [_answered(model, values) for values in batch.x.unbind(1)]
                readings.append(read(copies, _mean(answers)))
    return np.concatenate([reading.array() for reading in readings])


def _mean_over_views(model: Classifier, photos: Tensor) -> Tensor:
    """Return the mean probability over a model's views of photos, (B, n_classes)."""
    return _mean([_answered(model, model.features(seen(photos, view))) for view in model.views])


def _answered(model: Classifier, features: Tensor) -> Tensor:
    return model.head.log_probs(model.head(features)).exp()


def _mean(answers: list[Tensor]) -> Tensor:
    return answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)


def _batches(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    size: int,
    copies: Copies | None,
) -> Generator[Batch]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield Batch(part, gathered(partial(gather, images), part, images.shape[1:], copies))


def _features(
    views: Sequence[TestView], features: KeptFeatures, rows: NDArray[np.int64], size: int
) -> Generator[Batch]:
    """Yield the features of every view, (B, views, F)."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        of_views = [features(part, view) for view in views]
        yield Batch(part, torch.stack(of_views, 1))


def as_tensor(photos: NDArray[np.uint8]) -> Tensor:
    """Return (B, H, W, 3) as (B, 3, H, W) over the same memory, channels last."""
    return torch.from_numpy(photos).permute(0, 3, 1, 2)


def gathered(
    read_photos: Callable[[Ints, NDArray[np.uint8] | None], NDArray[np.uint8]],
    rows: Ints,
    shape: tuple[int, ...],
    copies: Copies | None,
) -> Tensor:
    """Return photos as (B, 3, H, W), in memory from which the copy to the device begins.

    Args:
        read_photos: (rows, out) -> photos (B, H, W, 3), in `out` where it is given.
        rows: (B,) row numbers.
        shape: of one photo, (H, W, 3).
        copies: to the device; None where torch computes on the host.
    """
    if copies is None:
        return as_tensor(read_photos(rows, None))
    buffer = copies.host_buffer((len(rows), *shape))
    read_photos(rows, buffer.numpy())
    return buffer.permute(0, 3, 1, 2)


class _Deployed(nn.Module):
    """Photos as they lie in memory -> probabilities, with everything between."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, photos: Tensor) -> Tensor:
        """Map (N, H, W, 3) uint8 to (N, n_classes) float32."""
        x = (photos.float() * self.model.scale + self.model.shift).permute(0, 3, 1, 2)
        answers = []
        for view in self.model.views:  # to cut and to mirror is the same before and after scaling
            answers.append(_answered(self.model, self.model.backbone(seen(x, view))))
        return _mean(answers)


def export_onnx(folder: Path, out: Path) -> None:
    """Write a stored model as ONNX, with its normalization inside.

    The input `photos` is (N, H, W, 3) uint8 for any N; the output `probabilities` is (N, n_classes)
    float32, as `predict` returns it on a CPU.

    Args:
        folder: the model, as for `load`.
        out: the file to write.

    Raises:
        RuntimeError: ONNX has no form for an operation of this model.
    """
    size = checkpoint.load_weights(folder)[1]["size"]
    model = _Deployed(load(folder).to(memory_format=torch.contiguous_format)).eval()
    photos = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the newer exporter needs one more package
        torch.onnx.export(
            model,
            (photos,),
            str(out),
            dynamo=False,
            opset_version=17,
            input_names=["photos"],
            output_names=["probabilities"],
            dynamic_axes={"photos": {0: "n"}, "probabilities": {0: "n"}},
        )
