"""The `track` section of a spec: other tools that show the trials of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from data_prep.section import Section

Mode = Literal["offline", "online", "disabled"]


class Wandb(Section):
    """Weights & Biases: one W&B run per trial.

    With mode offline they stay in the run's folder until `wandb sync`.
    """

    project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    """Name of the W&B project."""
    mode: Mode = "offline"
    """`offline` keeps the files in the run's folder until `wandb sync`."""


class Track(Section):
    """Where trials are shown. The Optuna journal `study.log` is always written."""

    wandb: Wandb | None = None
    """Settings of W&B; null for none."""
    tensorboard: bool = False
    """Write a folder that TensorBoard reads."""
