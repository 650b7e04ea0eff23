"""How far a stated confidence can be believed, and the temperature that corrects it.

One temperature for each label, fitted on out-of-fold probabilities. What it gains is measured on
people that it was not fitted on. A temperature changes no answer: it keeps the order of classes.
Source: Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from orchestrator.evaluation.metrics import LEVEL, Floats, Ints, Owners, calibration_error

N_PARTS = 5
"""Parts of the people: a temperature of four is judged on the fifth."""
N_BINS = 15
ALL_LABELS = "all labels"
"""The name of the joint class among labels; no label is named so."""
_RANGE = (0.05, 20.0)
_SMALLEST = 1e-7  # float32 probabilities of 0 have a logarithm too


@dataclass(frozen=True)
class Change:
    """A mean before and after, and the interval of after minus before over people."""

    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """The temperature of one label, and what it changes on people that it was not fitted on."""

    label: str
    temperature: float  # fitted on all people; 1 leaves probabilities as they are
    log_loss: Change
    calibration_error: Change
    n_groups: int
    n_samples: int

    @property
    def helps(self) -> bool:
        """Return True if the log loss falls by more than chance explains."""
        return bool(self.log_loss.high < 0)

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self) | {"helps": self.helps}


def calibrate(
    label: str, probs: Floats, targets: Ints, owners: Owners, *, seed: int
) -> Calibration | None:
    """Fit a label's temperature, and judge it by cross-fitting over people.

    Args:
        label: its name.
        probs: (N, C) out of fold.
        targets: (N,).
        owners: who is on each photo.
        seed: of the parts of the people.

    Returns:
        None with fewer than two people: nothing can be judged.
    """
    if owners.n_groups < 2:
        return None
    n_parts = min(N_PARTS, owners.n_groups)
    dealt = np.random.default_rng(seed).permutation(np.arange(owners.n_groups) % n_parts)
    part = dealt[owners.of_sample]
    after = np.empty(np.shape(probs))
    for number in range(n_parts):
        judged = part == number
        temperature = fit_temperature(probs[~judged], targets[~judged])
        after[judged] = scale(probs[judged], temperature)
    before = scale(probs, 1.0)
    every = np.arange(len(targets))
    losses = [-np.log(p[every, targets]) for p in (before, after)]
    return Calibration(
        label=label,
        temperature=fit_temperature(probs, targets),
        log_loss=_change(losses[0], losses[1], owners),
        calibration_error=_calibration_change(before, after, targets, owners),
        n_groups=owners.n_groups,
        n_samples=len(targets),
    )


def scale(probs: Floats, temperature: float) -> Floats:
    """Return probabilities (..., C) at a temperature; above 1 they are less sure."""
    logits = np.log(np.maximum(np.asarray(probs, np.float64), _SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fit_temperature(probs: Floats, targets: Ints) -> float:
    """Return the temperature with the smallest mean log loss.

    The log loss is convex in 1 / temperature, so its only minimum is found.

    Args:
        probs: (N, C).
        targets: (N,).
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415

    logits = np.log(np.maximum(np.asarray(probs, np.float64), _SMALLEST))
    of_target = logits[np.arange(len(targets)), targets].mean()

    def mean_loss(inverse: float) -> float:
        scaled = logits * inverse
        top = scaled.max(1)
        total = np.log(np.exp(scaled - top[:, None]).sum(1)) + top
        return float(total.mean() - inverse * of_target)

    bounds = (1 / _RANGE[1], 1 / _RANGE[0])
    best = minimize_scalar(mean_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(1 / best.x)


def label_probs(probs: Floats, codes: Ints, n_classes: int) -> Floats:
    """Return one label's probabilities (N, C) from those of the joint classes (N, J).

    Args:
        probs: of the joint classes.
        codes: (J,) the label's code of every joint class.
        n_classes: of the label.
    """
    of_label = np.zeros((len(probs), n_classes))
    for code in range(n_classes):
        of_label[:, code] = probs[:, codes == code].sum(1)
    return of_label


def _change(before: Floats, after: Floats, owners: Owners) -> Change:
    """Return the change of a mean over samples, with Student's interval over groups."""
    shift = float((after - before).mean())
    shares = (after - before - shift) / len(before)
    reach = _reach(shares, owners)
    return Change(float(before.mean()), float(after.mean()), shift - reach, shift + reach)


def _calibration_change(before: Floats, after: Floats, targets: Ints, owners: Owners) -> Change:
    """Return the change of the expected calibration error, its interval to first order."""
    errors = []
    shares = []
    for probs in (before, after):
        confidence = probs.max(1)
        correct = probs.argmax(1) == targets
        errors.append(calibration_error(confidence, correct, N_BINS))
        place = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
        gaps = confidence - correct
        side = np.sign(np.bincount(place, gaps, N_BINS))
        shares.append((side[place] * gaps - errors[-1]) / len(targets))
    shift = errors[1] - errors[0]
    reach = _reach(shares[1] - shares[0], owners)
    return Change(errors[0], errors[1], shift - reach, shift + reach)


def _reach(shares: Floats, owners: Owners) -> float:
    """Return half the width of Student's interval of a sum of shares (N,) over groups."""
    from scipy.special import stdtrit  # noqa: PLC0415

    n_groups = owners.n_groups
    per_group = np.bincount(owners.of_sample, shares, n_groups)
    error = np.sqrt(n_groups / (n_groups - 1) * ((per_group - per_group.mean()) ** 2).sum())
    return float(stdtrit(n_groups - 1, (1 + LEVEL) / 2) * error)
