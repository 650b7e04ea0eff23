"""Ordered labels: what their branches give, how classes come of it, and their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.settings.model import Corn, Distribution, Ordered

Floats = NDArray[np.float64]

_LEAST_SPREAD = 0.1  # of a decoded distribution, in classes; a certain answer has a spread too


def n_outputs(settings: Ordered, n_classes: int) -> int:
    """Return the width of the layer that an ordered branch ends with."""
    if isinstance(settings, Corn):
        return n_classes - 1
    if isinstance(settings, Distribution):
        return n_classes * settings.cells
    return n_classes


class OrderedClasses(nn.Module):
    """Log probabilities over the classes of an ordered branch, from its outputs.

    Each row is a proper distribution. Under `decode: median` or `expectation` it is a Gaussian over
    the places of the classes, of the centre that is asked for and of the spread that the outputs
    have; so it has one peak, and the best class is the one that holds the centre.
    """

    edges: Tensor
    places: Tensor

    def __init__(self, settings: Ordered, n_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.n_classes = n_classes
        if isinstance(settings, Distribution):
            n_edges = n_classes * settings.cells + 1
            self.register_buffer("edges", torch.arange(n_edges, dtype=torch.float32))
        self.register_buffer("places", torch.arange(n_classes).float(), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """Map (B, n_outputs) to (B, k)."""
        outputs = outputs.float()
        log_probs = self._log_probs(outputs)
        if self.settings.decode == "mode":
            return log_probs
        probs = log_probs.exp()
        if self.settings.decode == "median":
            # the number of borders that the label lies above with more than one half
            center = (probs.cumsum(1)[:, :-1] < 0.5).float().sum(1, keepdim=True)
        elif isinstance(self.settings, Distribution):
            center = self._place_of_the_mean(torch.softmax(outputs, 1))
        else:
            center = (probs * self.places).sum(1, keepdim=True)
        distance = (self.places - center).square()
        spread = (probs * distance).sum(1, keepdim=True).clamp_min(_LEAST_SPREAD**2)
        return torch.log_softmax(-distance / (2 * spread), dim=1)

    def place_cells(self, borders: Sequence[float], numbers: Floats) -> None:
        """Put equal cells between the borders, and out to the farthest number of each side.

        Args:
            borders: of the classes, ascending.
            numbers: of the training part.
        """
        if not isinstance(self.settings, Distribution):
            return
        least = self.settings.sigma
        low = min(float(numbers.min()), borders[0] - least)
        high = max(float(numbers.max()), borders[-1] + least)
        ends = np.array([low, *borders, high])
        n_cells = self.settings.cells
        steps = np.arange(len(self.edges)) / n_cells
        edges = np.interp(steps, np.arange(len(ends)), ends)
        self.edges[:] = torch.from_numpy(edges).float()

    def _log_probs(self, outputs: Tensor) -> Tensor:
        if isinstance(self.settings, Corn):
            return corn_log_probs(outputs)
        log_probs = torch.log_softmax(outputs, dim=1)
        if isinstance(self.settings, Distribution):
            return log_probs.reshape(-1, self.n_classes, self.settings.cells).logsumexp(2)
        return log_probs

    def _place_of_the_mean(self, cell_probs: Tensor) -> Tensor:
        """Return where the expected number lies among the classes, (B, 1).

        Borders lie halfway between two whole places, and inside a class places grow evenly.
        """
        lower = self.edges[:-1]
        width = self.edges[1:] - lower
        mean = (cell_probs * (lower + width / 2)).sum(1, keepdim=True)
        cells_below = ((mean - lower) / width).clamp(0, 1).sum(1, keepdim=True)
        return cells_below * (self.n_classes / len(width)) - 0.5


def corn_log_probs(logits: Tensor) -> Tensor:
    """Return log probabilities over k classes, (B, k), from CORN's conditional logits (B, k - 1).

    Logit j is that of y > j given y > j - 1 (Shi et al. 2021, eq. 3 and 4); P(y > j) is the product
    of the first, so it falls with j, and its differences are the classes' probabilities.
    """
    above = F.logsigmoid(logits).cumsum(1)  # log P(y > j)
    first = torch.zeros_like(above[:, :1])
    log_stays = torch.cat([F.logsigmoid(-logits), first], 1)
    return torch.cat([first, above], 1) + log_stays


def corn(logits: Tensor, target: Tensor, n_tasks: float) -> Tensor:
    """CORN's loss per sample, (B,): the cross entropies of the borders up to its class.

    Border j is learned from samples that lie above border j - 1 (Shi et al. 2021, eq. 5). The paper
    divides by the number of such pairs in the batch; here it is `n_tasks` per sample, their mean
    over the training part, so that micro-batches and mixed targets add up.

    Args:
        logits: (B, k - 1).
        target: (B,) classes.
        n_tasks: mean number of borders that a sample teaches.
    """
    borders = torch.arange(logits.shape[1], device=logits.device)
    is_taught = target[:, None] >= borders
    is_above = (target[:, None] > borders).to(logits.dtype)
    entropies = F.binary_cross_entropy_with_logits(logits, is_above, reduction="none")
    return (entropies * is_taught).sum(1) / n_tasks


def corn_tasks(codes: NDArray[np.int64], n_classes: int) -> float:
    """Return the mean number of borders that a sample teaches; negative codes are left out."""
    known = codes[codes >= 0]
    return float(np.minimum(known + 1, n_classes - 1).mean()) if len(known) else 1.0


def gaussian_cells(numbers: Floats, edges: Floats, sigma: float) -> Floats:
    """Return the share of a Gaussian around each number in each cell, (U, C); rows sum to one.

    A number outside the cells is taken for the nearest edge.
    """
    centers = np.clip(numbers, edges[0], edges[-1])
    scaled = (edges - centers[:, None]) / (sigma * math.sqrt(2))
    below = torch.erf(torch.from_numpy(scaled)).numpy()
    shares = np.diff(below, axis=1)
    return np.asarray(shares / shares.sum(1, keepdims=True))


def divergence(outputs: Tensor, target: Tensor, table: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the target's distribution, (B,) (Gao et al. 2017, eq. 3).

    Args:
        outputs: (B, C) of the cells.
        target: (B,) row numbers of the table.
        table: (U, C) distributions.
    """
    wanted = table[target]
    log_probs = torch.log_softmax(outputs, 1)
    return (torch.special.xlogy(wanted, wanted) - wanted * log_probs).sum(1)
