"""How many of each class there are, counted over groups or photos, and what losses make of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainers.metrics import Ints

Floats = NDArray[np.float64]

_LEAST_COUNT = 0.5  # of a class that the training part lacks: its share has a logarithm too


def class_counts(
    codes: Ints, n_classes: int, groups: Ints | None = None, *, shares: Floats | None = None
) -> Floats:
    """Count the rows of each class, (k,).

    Args:
        codes: (N,) classes; rows with a negative one are not counted.
        n_classes: k.
        groups: (N,) the group of each row; each group then counts once, divided among its classes
            by its rows. None counts rows.
        shares: (N,) how much each row counts where rows are counted; None for 1.
    """
    is_known = codes >= 0
    if groups is None:
        of_rows = None if shares is None else shares[is_known]
        return np.bincount(codes[is_known], of_rows, minlength=n_classes).astype(np.float64)
    _, owner = np.unique(groups[is_known], return_inverse=True)
    weight = 1.0 / np.bincount(owner)[owner]
    return np.bincount(codes[is_known], weight, minlength=n_classes).astype(np.float64)


def log_shares(counts: Floats) -> Floats:
    """Return the logarithm of each class's share, (k,); a class without rows counts half a one."""
    smoothed = np.maximum(counts, _LEAST_COUNT)
    return np.asarray(np.log(smoothed / smoothed.sum()))


def balanced_weights(counts: Floats) -> Floats:
    """Return weights by 1 / size, (k,): their mean over samples is one. A class of none has 0."""
    n_present = np.count_nonzero(counts)
    sizes = np.maximum(counts, 1)
    return np.where(counts > 0, counts.sum() / (n_present * sizes), 0.0)


def effective_weights(counts: Floats, beta: float) -> Floats:
    """Return weights by 1 / effective number, (k,): they add up to the number of classes present.

    The effective number of n samples is (1 - beta^n) / (1 - beta). A class of none has weight 0.
    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples", eq. 4.
    """
    is_present = counts > 0
    numbers = (1.0 - beta ** np.maximum(counts, np.finfo(np.float64).tiny)) / (1.0 - beta)
    weights = np.where(is_present, 1.0 / np.where(is_present, numbers, 1.0), 0.0)
    return np.asarray(weights * np.count_nonzero(is_present) / weights.sum())
