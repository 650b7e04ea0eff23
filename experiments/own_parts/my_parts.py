"""One part of each kind, as a spec may name them: `use: "my_parts.py:function"`.

Settings that stand beside `use` in the spec arrive by name. A file runs with your rights, so a command that
runs it needs `--allow-code`.
"""

import numpy as np
import torch
from torch import nn


def gray_patches(photo, rng, *, p=0.5, side=24):
    """A policy: turn one square of a photo gray.

    Args:
        photo: (H, W, 3) uint8, a copy that may be changed.
        rng: numpy's Generator, seeded by photo, epoch and trial; draw from nothing else.
        p: a setting of the spec, as is `side`.

    Returns:
        A photo of the same shape and type.
    """
    if rng.random() < p:
        top = rng.integers(0, max(1, photo.shape[0] - side))
        left = rng.integers(0, max(1, photo.shape[1] - side))
        square = photo[top : top + side, left : left + side]
        square[:] = square.mean(axis=2, keepdims=True).astype(np.uint8)
    return photo


def small_network(*, size, pretrained, width=16):
    """A backbone: photos as normalized floats (B, 3, size, size) to features (B, num_features).

    Args:
        size: of the photos, in pixels.
        pretrained: True where the spec wants weights to begin with, False where stored ones follow.
        width: a setting of the spec.

    Returns:
        A module with `num_features`. It may also have `mean` and `std`; without them photos are
        normalized by ImageNet's.
    """
    del size, pretrained  # this one has any size, and no weights
    layers = []
    channels = 3
    for wide in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, wide, 3, stride=2, padding=1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        ]
        channels = wide
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.num_features = channels
    return network


class Cosine(nn.Module):
    """Logits that are the cosine between features and a direction per class, times a scale."""

    def __init__(self, n_features, n_classes, scale):
        super().__init__()
        self.directions = nn.Parameter(torch.randn(n_classes, n_features))
        self.scale = scale

    def forward(self, features):
        """Map (B, F) to (B, n_classes)."""
        features = nn.functional.normalize(features.float(), dim=1)
        return self.scale * features @ nn.functional.normalize(self.directions, dim=1).T


def cosine_head(n_features, n_classes, *, scale=16.0):
    """A head: called once per label, returns a module from features (B, F) to logits (B, n_classes)."""
    return Cosine(n_features, n_classes, scale)


def tempered(logits, codes, *, temperature=1.0):
    """A loss: one number per sample; mixes, class weights and the mean are the service's.

    Args:
        logits: (B, n_classes) float32 of one branch.
        codes: (B,) int64, the classes.
        temperature: a setting of the spec.

    Returns:
        (B,) losses, with a gradient.
    """
    return nn.functional.cross_entropy(logits / temperature, codes, reduction="none")
