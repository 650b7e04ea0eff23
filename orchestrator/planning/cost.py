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
_GIGA_MACS = {
    "efficientnet_b0": 0.385,
    "efficientnet_b1": 0.568,
    "efficientnet_b2": 0.658,
    "efficientnet_b3": 0.961,
    "efficientnet_b4": 1.5,
    "tf_efficientnet_lite0": 0.384,
    "tf_efficientnet_lite1": 0.501,
    "tf_efficientnet_lite2": 0.575,
    "resnet18": 1.81,
    "resnet50": 4.09,
    "densenet121": 2.83,
}
"""Multiply-adds of the forward pass for one photo of 224 px, in 10^9; they grow with the photo's area."""
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
        A sentence, None where a variant's backbone was not measured, nor its multiply-adds are known.
    """
    if not experiment.spec.resources.per_trial.gpu:
        return None
    rates = []  # of each arm: at least and at most so many samples a second
    epochs = []
    guessed = set()
    for arm in experiment.arms.values():
        backbone = arm.train.model.backbone_text
        rate = _CARD_RATES.get((backbone, arm.prep.size))
        if rate is None:
            guessed.add(backbone)
        arm_rates = (rate, rate) if rate else _guessed_rates(backbone, arm.prep.size)
        n_epochs = _epochs(arm.train.duration)
        if arm_rates is None or not n_epochs:
            return None
        rates.append(arm_rates)
        epochs.append(n_epochs)

    def hours(bound: int) -> str:
        seconds = [n / arm_rates[bound] for n, arm_rates in zip(epochs, rates, strict=True)]
        return f"{n_trials * statistics.mean(seconds) * (n_photos or 1000) / 3600:.1f}"

    photos = "a thousand photos" if n_photos is None else f"{n_photos} photos"
    what = f"{n_trials} trainings on {photos} take at most about"
    if guessed:
        return (
            f"{what} {hours(1)} to {hours(0)} GPU hours on {_CARD}, guessed from the multiply-adds of "
            f"{', '.join(sorted(guessed))} and of measured backbones; frozen backbones take less"
        )
    measured = " and ".join(f"{rate:g}" for rate in sorted({rate for rate, _ in rates}))
    return (
        f"{what} {hours(0)} GPU hours on {_CARD}, "
        f"where {measured} samples a second were measured; frozen backbones take less"
    )


def _guessed_rates(backbone: str, size: int) -> tuple[float, float] | None:
    """Return the samples a second of the slowest and the fastest measured backbone at equal work.

    Returns:
        None for a backbone whose multiply-adds are not known here.
    """
    if backbone not in _GIGA_MACS:
        return None
    work = _GIGA_MACS[backbone] * size**2
    rates = []
    for (measured, measured_size), rate in _CARD_RATES.items():
        rates.append(rate * _GIGA_MACS[measured] * measured_size**2 / work)
    return min(rates), max(rates)


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
