"""An exponential moving average of weights, beside those that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.settings.finetuning import Ema


class MovingAverage:
    """Averages of all tensors of a module; without settings it is the module itself, at no cost.

    BatchNorm's running statistics are averaged by the same rule, as timm's ModelEmaV3 does: they
    belong to weights of about the same steps. Whole numbers are copied.
    """

    def __init__(self, config: Ema | None, module: nn.Module) -> None:
        """Begin with the module's values.

        Args:
            config: the spec's section; None averages nothing.
            module: on its device; its tensors keep their memory.
        """
        self._config = config
        self._module = module
        self._averages: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}
        if config is not None:
            self._current = {name: value.detach() for name, value in module.state_dict().items()}
            self._averages = {name: value.clone() for name, value in self._current.items()}

    @torch.no_grad()
    def update(self, n_steps: int) -> None:
        """Take in the module's values after so many steps of the training."""
        if self._config is None:
            return
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, (1 + n_steps) / (10 + n_steps))
        averages = []
        values = []
        for name, average in self._averages.items():
            if average.is_floating_point():
                averages.append(average)
                values.append(self._current[name])
            else:
                average.copy_(self._current[name])
        torch._foreach_lerp_(averages, values, 1 - decay)  # one launch for all

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the module, where recorded steps read them, and its values back."""
        kept = {name: value.clone() for name, value in self._current.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._current[name].copy_(value)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a whole model's tensors, with averages where the module has them.

        Args:
            model: the module, or what it is a part of.
        """
        weights: dict[str, Tensor] = model.state_dict()
        for name, part in model.named_modules():
            if part is self._module:
                prefix = f"{name}." if name else ""
                weights |= {prefix + key: value for key, value in self._averages.items()}
        return weights

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds; empty without settings."""
        return self._averages

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, average in self._averages.items():
            average.copy_(state[name])
