"""Probabilities from stored weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers import checkpoint
from trainers.config import Model
from trainers.model import Classifier, build


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
    return model.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def predict(
    model: Classifier,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 128,
    device: str = "cpu",
    features: Callable[[NDArray[np.int64]], Tensor] | None = None,
) -> NDArray[np.float32]:
    """Return the probabilities of prepared photos over the joint class.

    Args:
        model: from `load`.
        images: (N, H, W, 3) uint8, may be a memory map.
        rows: (M,) row numbers; None for all.
        batch_size: photos at a time.
        device: where torch computes.
        features: gives the features of rows, (B, F), where the backbone is frozen and they are kept.

    Returns:
        (M, n_classes) float32, each row sums to one. A one-label head answers over that label's
        classes.

    Raises:
        ValueError: there is no photo.
    """
    model.to(device).eval()
    if rows is None:
        rows = np.arange(len(images))
    if not len(rows):
        raise ValueError("at least one photo was required, found none")
    probabilities = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        if features is None:
            logits = model(as_tensor(np.asarray(images[batch])).to(device))
        else:
            logits = model.head(features(batch).to(device))
        probabilities.append(model.head.log_probs(logits).exp().cpu().numpy())
    return np.concatenate(probabilities)


def as_tensor(photos: NDArray[np.uint8]) -> Tensor:
    """Return (B, H, W, 3) as (B, 3, H, W) over the same memory, channels last."""
    return torch.from_numpy(photos).permute(0, 3, 1, 2)
