"""The `track` section of a spec: other tools that show the trials of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from data_prep.section_base import Section, since

Mode = Literal["offline", "online", "disabled"]
Address = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+\S*$", max_length=2000)]
_URI = r"^(https?://[^\s/]+|sqlite:///|databricks$)\S*$"


class Wandb(Section):
    """Weights & Biases: one W&B run per trial and one of the ensemble, in one group.

    With mode offline they stay in the run's folder until `wandb sync`.
    """

    project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    """Name of the W&B project."""
    mode: Mode = "offline"
    """`offline` keeps the files in the run's folder until `wandb sync`."""


class Mlflow(Section):
    """MLflow: one MLflow run for the whole, with one nested run per trial.

    It needs the extra `mlflow` of this package.
    """

    experiment: Annotated[str, StringConstraints(pattern=r"^[^/\s][^/]{0,127}$")]
    """Name of the MLflow experiment."""
    uri: Annotated[str, StringConstraints(pattern=_URI, max_length=2000)] | None = None
    """A server (`http://...`) or a file (`sqlite:////shared/mlflow.db`); null for the file
    `mlflow/mlflow.db` in the run's folder.
    """


class Track(Section):
    """Where trials are shown. The Optuna journal `study.log` is always written."""

    wandb: Wandb | None = None
    """Settings of W&B; null for none."""
    tensorboard: bool = False
    """Write a folder that TensorBoard reads."""
    mlflow: Mlflow | None = since(None)
    """Settings of MLflow; null for none."""
    notify: Address | None = since(None)
    """An address that gets JSON by POST when the run ends or fails. The variable
    `ORCHESTRATOR_NOTIFY_SECRET` signs it. The address stands in the run's files.
    """
