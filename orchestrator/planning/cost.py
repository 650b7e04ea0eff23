"""What a plan may cost, judged by what earlier trials of this store took."""

from __future__ import annotations

import heapq
import os
import statistics
from typing import Any, NamedTuple

from orchestrator.spec.models import Experiment
from orchestrator.store.artifacts import Store
from trainers.settings.duration import Duration

_CARD = "an NVIDIA H200"
_CARD_RATES = {("efficientnet_b4", 380): 632.0, ("tf_efficientnet_lite0", 224): 3962.0}
"""Samples a second by backbone and photo size: bf16, batch 32, policy basic, recorded steps, one
trial at a time (2026-11-27)."""
_N_NEWEST = 50  # trials; reading all of ten thousand manifests would take seconds


class CostEstimate(NamedTuple):
    """The training time of a plan, one trial after another."""

    seconds: float
    n_trials: int  # earlier trials that it rests on


class _ModelKind(NamedTuple):
    """A training with kept features is a hundred times as fast as one without."""

    backbone: str
    has_kept_features: bool


def training_s(experiment: Experiment, store: Store, n_trials: int) -> CostEstimate | None:
    """Estimate the training time of a plan.

    Photos of another size or number change it in proportion.

    Args:
        experiment: its backbones and durations count.
        store: its newest trials count.
        n_trials: how many trainings there are at most.

    Returns:
        None where a backbone, frozen or not, never ran here, or a duration is counted in steps.
    """
    known = _epoch_seconds(store)
    seconds = []
    kinds = set()
    for arm in experiment.arms.values():
        kind = _kind(arm.train.model.model_dump())
        n_epochs = _epochs(arm.train.duration)
        if kind not in known or not n_epochs:
            return None
        kinds.add(kind)
        seconds.append(n_epochs * statistics.median(known[kind]))
    n_earlier = sum(len(known[kind]) for kind in kinds)
    return CostEstimate(n_trials * statistics.mean(seconds), n_earlier)


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
        rate = _CARD_RATES.get((arm.train.model.backbone_text, arm.prep.size))
        epochs = _epochs(arm.train.duration)
        if rate is None or not epochs:
            return None
        seconds.append(epochs / rate)
    hours = n_trials * statistics.mean(seconds) * (n_photos or 1000) / 3600
    photos = "a thousand photos" if n_photos is None else f"{n_photos} photos"
    rates = sorted(
        {
            _CARD_RATES[arm.train.model.backbone_text, arm.prep.size]
            for arm in experiment.arms.values()
        }
    )
    measured = " and ".join(f"{rate:g}" for rate in rates)
    return (
        f"{n_trials} trainings on {photos} take at most about {hours:.1f} GPU hours on {_CARD}, "
        f"where {measured} samples a second were measured; frozen backbones take less"
    )


def _epochs(duration: str) -> int:
    parsed = Duration.parse(duration)
    return parsed.n if parsed.unit == "epochs" else 0


def _kind(model: dict[str, Any]) -> _ModelKind:
    head = model.get("head") or {}
    is_frozen = model.get("frozen") is not None or head.get("name") == "frozen_deep"
    backbone = model["backbone"]
    name = backbone["use"] if isinstance(backbone, dict) else backbone
    return _ModelKind(name, is_frozen)


def _epoch_seconds(store: Store) -> dict[_ModelKind, list[float]]:
    """Return, per kind of model, the median seconds per epoch of each of its newest trials."""
    folder = store.root / "trial"
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        trials = [(e.stat().st_mtime, e.name) for e in entries if not e.name.startswith(".")]
    seconds: dict[_ModelKind, list[float]] = {}
    for _, key in heapq.nlargest(_N_NEWEST, trials):
        artifact = store.find("trial", key)
        if artifact is None:
            continue
        history = artifact.result["history"]
        of_trial = [epoch["epoch_s"] for epoch in history if "epoch_s" in epoch]
        if of_trial:
            kind = _kind(artifact.manifest["params"]["train"]["model"])
            seconds.setdefault(kind, []).append(statistics.median(of_trial))
    return seconds
