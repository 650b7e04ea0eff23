"""A greedy soup of weights (Wortsman et al. 2022, "Model soups")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.checkpoint import score_of

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Stirred:
    """The soup of a training."""

    epochs: tuple[int, ...]  # whose weights are in it, the best first
    weights: Weights
    metrics: dict[str, float]  # of the val part

    def sentence(self, history: Sequence[dict[str, float]]) -> str:
        """Say what is in the soup and what it gains; `history` has the metrics of all epochs."""
        best = score_of(history[self.epochs[0] - 1])
        names = ", ".join(map(str, self.epochs))
        return (
            f"soup of epochs {names}: val score {score_of(self.metrics):.4f}, best epoch {best:.4f}"
        )


def greedy_soup(
    epochs: Sequence[int],
    weights_of: Callable[[int], Weights],
    score: Callable[[Weights], dict[str, float]],
) -> Stirred:
    """Average the weights of epochs, from the best on; one stays if the val score does not fall.

    So the soup is never worse on the val part than the best epoch. BatchNorm's statistics are averaged
    like weights. Tensors that all epochs share keep their bits, those of a frozen backbone for instance.

    Args:
        epochs: the best first, at least one.
        weights_of: returns the weights of an epoch.
        score: returns the metrics of weights on the val part.
    """
    weights = weights_of(epochs[0])
    metrics = score(weights)
    taken = [epochs[0]]
    for epoch in epochs[1:]:
        mean = _with_one_more(weights, weights_of(epoch), n=len(taken))
        metrics_of_mean = score(mean)
        if score_of(metrics_of_mean) >= score_of(metrics):
            weights = mean
            metrics = metrics_of_mean
            taken.append(epoch)
    return Stirred(tuple(taken), weights, metrics)


@torch.no_grad()
def _with_one_more(mean: Weights, weights: Weights, *, n: int) -> Weights:
    """Return the mean of n + 1 weights, out of that of n and the next; whole numbers are the mean's."""
    result = {}
    for name, value in mean.items():
        is_real = value.is_floating_point()
        result[name] = value + (weights[name] - value) / (n + 1) if is_real else value
    return result
