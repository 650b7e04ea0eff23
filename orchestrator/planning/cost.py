"""What a plan may cost, judged by what earlier trials of this store took."""

from __future__ import annotations

import heapq
import os
import statistics
from typing import Any

from orchestrator.spec.models import Experiment
from orchestrator.store.artifacts import Store
from trainers.config import Duration

_CARD = "an NVIDIA H200"
_CARD_RATES = {("efficientnet_b4", 380): 256.0, ("tf_efficientnet_lite0", 224): 890.0}
"""Samples a second by backbone and photo size: bf16, batch 32, policy basic, one trial at a time (2026-11-26)."""
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


def gpu_hours(experiment: Experiment, n_trials: int, n_photos: int | None) -> str | None:
    """Say what a plan costs on a card that was measured.

    Args:
        experiment: its trials ask for a GPU, otherwise nothing is said.
        n_trials: how many trainings there are at most.
        n_photos: that a training learns from at most; None where they are not counted yet.

    Returns:
        A sentence, None where a variant's backbone and photo size were not measured.
    """
    if not experiment.spec.resources.per_trial.gpu:
        return None
    seconds = []  # of a training on one photo
    for arm in experiment.arms.values():
        rate = _CARD_RATES.get((arm.train.model.backbone, arm.prep.size))
        epochs = _epochs(arm.train.duration)
        if rate is None or not epochs:
            return None
        seconds.append(epochs / rate)
    hours = n_trials * statistics.mean(seconds) * (n_photos or 1000) / 3600
    photos = "a thousand photos" if n_photos is None else f"{n_photos} photos"
    rates = sorted(
        {_CARD_RATES[arm.train.model.backbone, arm.prep.size] for arm in experiment.arms.values()}
    )
    measured = " and ".join(f"{rate:g}" for rate in rates)
    return (
        f"{n_trials} trainings on {photos} take at most about {hours:.1f} GPU hours on {_CARD}, "
        f"where {measured} samples a second were measured; frozen backbones take less"
    )


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
