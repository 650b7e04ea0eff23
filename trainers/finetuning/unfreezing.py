"""Which layers of a backbone train in which epoch."""

from __future__ import annotations

import math

from trainers.finetuning.layers import layer_numbers
from trainers.model import Classifier
from trainers.settings.finetuning import Gradual, HeadFirst, Unfreeze, Upper


class Unfreezing:
    """Lets more layers train from some epochs on. It is a pure function of the epoch."""

    def __init__(self, config: Unfreeze | None, model: Classifier) -> None:
        """Change nothing yet.

        Args:
            config: the spec's section; None trains everything from the start.
            model: on its device.
        """
        self._config = config
        self._model = model
        self._n_resting = 0  # stages from the first one on
        self._stages: dict[str, int] = {}  # parameter or module of the backbone -> its stage
        self._last = 0  # stage that has parameters
        if config is None:
            return
        parameters = [name for name, _ in model.backbone.named_parameters()]
        modules = [name for name, _ in model.backbone.named_modules() if name]
        numbers = layer_numbers(model.backbone, {*parameters, *modules}, coarse=True)
        self._last = max(numbers[name] for name in parameters)
        # the network itself and a final pooling have no stage: they rest while all of it rests
        self._stages = {name: min(number, self._last) for name, number in numbers.items()}
        self._stages[""] = self._last

    def enter(self, epoch: int) -> bool:
        """Let the layers of an epoch (from 1) train and put the others into eval mode.

        Returns:
            True if other layers train than before, so that a recorded step no longer fits.
        """
        n_resting = self._n_resting_at(epoch)
        if n_resting == self._n_resting:
            return False
        self._n_resting = n_resting
        backbone = self._model.backbone
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self._stages[name] >= n_resting)
        self._model.resting = []
        for name, module in backbone.named_modules():
            if self._stages[name] < n_resting:
                self._model.resting.append(module)
        return True

    def _n_resting_at(self, epoch: int) -> int:
        """Return how many stages of the backbone rest."""
        n_stages = self._last + 1
        if isinstance(self._config, HeadFirst):
            return n_stages if epoch <= self._config.epochs else 0
        if isinstance(self._config, Gradual):
            return max(0, n_stages - (epoch - 1) // self._config.every)
        if isinstance(self._config, Upper):
            return n_stages - math.ceil(self._config.share * n_stages)
        return 0
