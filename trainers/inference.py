"""Probabilities out of stored weights."""

from __future__ import annotations

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
    weights, facts = checkpoint.load_weights(folder)
    model = build(
        Model.model_validate(facts["model"]),
        facts["label_sizes"],
        size=facts["size"],
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
) -> NDArray[np.float32]:
    """Return the probabilities of prepared photos over the joint class.

    Args:
        model: from `load`.
        images: (N, H, W, 3) uint8, may be a memory map.
        rows: (M,) which of them; None for all.
        batch_size: photos at a time.
        device: where torch computes.

    Returns:
        (M, n_classes) float32, each row summing to one. A one-label head answers over that label's classes.
    """
    model.to(device).eval()
    wanted = np.arange(len(images)) if rows is None else rows
    if not len(wanted):
        raise ValueError("at least one photo was required, found none")
    out = []
    for start in range(0, len(wanted), batch_size):
        x = as_tensor(np.asarray(images[wanted[start : start + batch_size]]))
        out.append(model.head.log_probs(model(x.to(device))).exp().cpu().numpy())
    return np.concatenate(out)


def as_tensor(photos: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W) over the same memory, channels last."""
    return torch.from_numpy(photos).permute(0, 3, 1, 2)
