"""What a plan may cost, judged by what earlier trials of this store took."""

from __future__ import annotations

import heapq
import os
import statistics
from typing import Any

from orchestrator.spec.models import Experiment
from orchestrator.store.artifacts import Store
from trainers.config import Duration

_LOOKED_AT = 50  # the newest trials; reading all of ten thousand manifests would take seconds


def training_s(experiment: Experiment, store: Store, n_trials: int) -> tuple[float, int] | None:
    """Estimate the training time of a plan, trial after trial.

    Args:
        experiment: its backbones and durations count.
        store: its newest trials are looked at.
        n_trials: how many trainings there are at most.

    Returns:
        Seconds, and the number of earlier trials behind them; None where no trial of these backbones, frozen or not,
        ran here, or a duration is counted in steps. Photos of another size or number change it in proportion.
    """
    arms = [arm.train for arm in experiment.arms.values()]
    lengths = [_epochs(train.duration) for train in arms]
    known = _epoch_seconds(store)
    kinds = [_kind(train.model.model_dump()) for train in arms]
    found = [known.get(kind, []) for kind in kinds]
    if not all(found) or not all(lengths):
        return None
    each = [length * statistics.median(took) for length, took in zip(lengths, found, strict=True)]
    return n_trials * statistics.mean(each), sum(len(known[kind]) for kind in set(kinds))


def _epochs(duration: str) -> int:
    parsed = Duration.parse(duration)
    return parsed.n if parsed.unit == "epochs" else 0


def _kind(model: dict[str, Any]) -> tuple[str, bool]:
    """Return a model's backbone, and whether its features are kept: their training is a hundred times as fast."""
    head = model.get("head") or {}
    return model["backbone"], model.get("frozen") is not None or head.get("name") == "frozen_deep"


def _epoch_seconds(store: Store) -> dict[tuple[str, bool], list[float]]:
    """Return, per kind of model, the median seconds per epoch of each of its newest trials."""
    folder = store.root / "trial"
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        done = [
            (entry.stat().st_mtime, entry.name)
            for entry in entries
            if not entry.name.startswith(".")
        ]
    found: dict[tuple[str, bool], list[float]] = {}
    for _, key in heapq.nlargest(_LOOKED_AT, done):
        if (artifact := store.find("trial", key)) is None:
            continue
        model: dict[str, Any] = artifact.manifest["params"]["train"]["model"]
        took = [epoch["epoch_s"] for epoch in artifact.result["history"] if "epoch_s" in epoch]
        if took:
            found.setdefault(_kind(model), []).append(statistics.median(took))
    return found
