"""Which photos of each group are in an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def draw_per_group(groups: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Draw at most n rows of each group, each row of a group equally likely.

    Args:
        groups: (N,) the group of each row.
        n: rows of a group; a group with fewer has all of them.
        rng: of the epoch.

    Returns:
        The places of the rows among N, ascending.
    """
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]  # by group, within one by chance
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = groups[order][1:] != groups[order][:-1]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    return np.sort(order[rank < n])


def n_drawn(groups: Ints, n: int) -> int:
    """Return how many rows `draw_per_group` draws."""
    _, sizes = np.unique(groups, return_counts=True)
    return int(np.minimum(sizes, n).sum())


def draw_shares(groups: Ints, n: int) -> NDArray[np.float64]:
    """Return how likely each row is drawn in an epoch, (N,)."""
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.minimum(1.0, n / sizes)[place]
