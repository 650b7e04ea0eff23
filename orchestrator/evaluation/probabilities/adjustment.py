"""Answers moved by a temperature and a shift per label, fitted on out-of-fold probabilities.

For independent labels it is softmax(log p / temperature + shift) of each label. Joint probabilities
that are no product are multiplied by the same factors and normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data_prep.catalog.label_schema import Schema
from orchestrator.base.json_types import Json
from orchestrator.evaluation.metrics import Floats, Ints, Owners, owners_of
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.probabilities.calibration import N_PARTS, label_probs
from orchestrator.spec.models import Adjust, FittedAdjustment, NoAdjustment, PriorAdjustment

_SMALLEST = 1e-7  # float32 probabilities of 0 have a logarithm too
_LEAST_COUNT = 0.5  # people of a class that nobody has: its share has a logarithm too
_SHARPNESS = (0.05, 20.0)  # range of 1 / temperature


@dataclass(frozen=True)
class AdjustedLabel:
    """What is done to the probabilities of one label."""

    label: str
    temperature: float  # 1 leaves them as they are; above 1 they are less sure
    shift: tuple[float, ...]  # (k,) added to their logarithms

    def to_json(self) -> Json:
        """Return plain data."""
        return asdict(self) | {"shift": list(self.shift)}


Adjustment = Sequence[AdjustedLabel]
"""One for every label, in the order of the schema; empty changes nothing."""


def adjusted(probs: Any, adjustment: Adjustment) -> Any:
    """Return adjusted probabilities of the joint class (..., C), of the same type."""
    if not adjustment:
        return probs
    sizes = [len(label.shift) for label in adjustment]
    cube = np.asarray(probs, np.float64).reshape(*np.shape(probs)[:-1], *sizes)
    first = cube.ndim - len(sizes)
    factors = np.ones_like(cube)
    for place, label in enumerate(adjustment):
        others = tuple(first + other for other in range(len(sizes)) if other != place)
        of_label = np.maximum(cube.sum(axis=others, keepdims=True), _SMALLEST)
        shape = [1] * cube.ndim
        shape[first + place] = sizes[place]
        shift = np.reshape(label.shift, shape)
        factors *= of_label ** (1 / label.temperature - 1) * np.exp(shift)
    moved = (cube * factors).reshape(np.shape(probs))
    total = moved.sum(axis=-1, keepdims=True)
    return (moved / np.maximum(total, np.finfo(np.float64).tiny)).astype(probs.dtype)


def fit(arm: Predictions, settings: Adjust, schema: Schema) -> tuple[AdjustedLabel, ...]:
    """Fit an adjustment on all answers of an arm, one row per seed and photo.

    Every group counts once, however many photos and seeds it has.

    Returns:
        Empty where nothing is asked for, or where there are fewer than two groups to judge it.
    """
    owners = owners_of(arm)
    if isinstance(settings, NoAdjustment) or arm.probs is None or owners.n_groups < 2:
        return ()
    return _fit(arm, settings, schema, owners, np.arange(len(arm.sample_ids)))


def cross_fitted(arm: Predictions, settings: Adjust, schema: Schema, *, seed: int) -> Predictions:
    """Return an arm whose answers are adjusted by what was fitted on other groups.

    Groups are dealt to parts, and each part is adjusted by a fit on the others. So no label of a
    group moves its own answers, and the score is that of answers to new groups.

    Args:
        arm: out-of-fold answers with probabilities.
        settings: of the spec.
        schema: of the labels.
        seed: of the parts.
    """
    owners = owners_of(arm)
    if isinstance(settings, NoAdjustment) or arm.probs is None or owners.n_groups < 2:
        return arm
    names = arm.groups or arm.sample_ids
    ordered = sorted(set(names))
    n_parts = min(N_PARTS, len(ordered))
    dealt = np.random.default_rng(seed).permutation(np.arange(len(ordered)) % n_parts)
    part_of = dict(zip(ordered, dealt.tolist(), strict=True))
    part = np.array([part_of[name] for name in names])
    probs = np.array(arm.probs)
    for number in range(n_parts):
        fitted = _fit(arm, settings, schema, owners, np.flatnonzero(part != number))
        judged = np.flatnonzero(part == number)
        probs[:, judged] = adjusted(probs[:, judged], fitted)
    return replace(arm, probs=probs, preds=probs.argmax(2).astype(np.int64))


def _fit(
    arm: Predictions, settings: Adjust, schema: Schema, owners: Owners, rows: Ints
) -> tuple[AdjustedLabel, ...]:
    """Fit every label on some rows of an arm."""
    probs = np.asarray(arm.probs)[:, rows]
    n_seeds = len(probs)
    flat = probs.reshape(-1, probs.shape[2])
    of_row = owners.of_sample[rows]
    n_photos = np.bincount(of_row)
    weight = np.tile(1 / n_photos[of_row], n_seeds) / n_seeds  # each group sums to 1
    codes = schema.decode(np.tile(arm.targets[rows], n_seeds))
    joint_codes = schema.decode(np.arange(schema.n_classes))
    labels = []
    for place, (name, classes) in enumerate(schema.classes.items()):
        n_classes = len(classes)
        people = np.bincount(codes[:, place], weight, minlength=n_classes)
        if isinstance(settings, PriorAdjustment):
            smoothed = np.maximum(people, _LEAST_COUNT)
            shift = -settings.tau * _centered(np.log(smoothed / smoothed.sum()))
            labels.append(AdjustedLabel(name, 1.0, tuple(shift.tolist())))
        elif isinstance(settings, FittedAdjustment):
            of_label = label_probs(flat, joint_codes[:, place], n_classes)
            weights = weight
            if settings.classes == "alike":
                weights = weight / np.maximum(people, _SMALLEST)[codes[:, place]]
            n_people = float(people.sum())
            labels.append(_fit_label(name, of_label, codes[:, place], weights, n_people))
    return tuple(labels)


def _fit_label(
    name: str, probs: Floats, codes: Ints, weights: Floats, n_people: float
) -> AdjustedLabel:
    """Fit temperature and shift of a label by the least weighted log loss.

    The loss is convex in 1 / temperature and the shift. A ridge pulls both to no change as strongly
    as one person would, so that a class of few people is not moved far.
    """
    from scipy.optimize import minimize  # noqa: PLC0415

    logs = np.log(np.maximum(probs, _SMALLEST))
    n_classes = logs.shape[1]
    share = weights / weights.sum()
    target = np.eye(n_classes)[codes]
    start = np.concatenate([[1.0], np.zeros(n_classes)])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = parameters[0] * logs + parameters[1:]
        scaled -= scaled.max(1, keepdims=True)
        log_probs = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        excess = share[:, None] * (np.exp(log_probs) - target)
        change = parameters - start
        value = -float((share * log_probs[np.arange(len(codes)), codes]).sum())
        value += 0.5 * float((change**2).sum()) / n_people
        slope = np.concatenate([[float((excess * logs).sum())], excess.sum(0)])
        return value, slope + change / n_people

    bounds = [_SHARPNESS, *[(None, None)] * n_classes]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    shift = _centered(best.x[1:])
    return AdjustedLabel(name, float(1 / best.x[0]), tuple(shift.tolist()))


def _centered(shift: Floats) -> Floats:
    return np.asarray(shift - shift.mean())
