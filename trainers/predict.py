"""Probabilities out of stored weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainers import checkpoint
from trainers.config import Model
from trainers.heads import joint_log_probs
from trainers.model import Classifier, build


def load(folder: Path) -> Classifier:
    """Rebuild a model from its folder alone, in eval mode."""
    weights, facts = checkpoint.load_weights(folder)
    model = build(Model.model_validate(facts["model"]), facts["label_sizes"], pretrained=False)
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def predict(
    model: Classifier, images: NDArray[np.uint8], *, batch_size: int = 128, device: str = "cpu"
) -> NDArray[np.float32]:
    """Return the probabilities of prepared photos over the joint class.

    Args:
        model: from `load`.
        images: (N, H, W, 3) uint8.
        batch_size: photos at a time.
        device: where torch computes.

    Returns:
        (N, n_classes) float32, each row summing to one. A one-label head answers over that label's classes.
    """
    model.to(device).eval()
    if not len(images):
        raise ValueError("at least one photo was required, found none")
    out = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(np.array(images[start : start + batch_size], copy=True)).permute(0, 3, 1, 2).float()
        logits = model(x.to(device, memory_format=torch.channels_last))
        out.append(joint_log_probs(logits, model.head.branches).exp().cpu().numpy())
    return np.concatenate(out)
