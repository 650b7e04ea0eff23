"""Simulate what the curve of checkpoints promises: bias and coverage of its extrapolation.

`python -m tests.campaign.checkpoints [--sets 200]` prints one line for each design and a summary.
The truth is the score of the same checkpoints, all of them averaged, on very many new people.
tests/orchestrator/evaluation/test_honesty.py runs the same study in a short form.
"""

import argparse
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.checkpoint_count_curve import checkpoint_curve
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.predictions import Predictions

N_FOLDS = 3
N_PHOTOS = 7  # of one person
N_NEW_PEOPLE = 3000


@dataclass(frozen=True)
class CurveDesign:
    """Checkpoints that see the class through noise, part of which is common to all of them."""

    n_people: int
    n_seeds: int
    n_classes: int
    signal: float
    common: float  # noise of a photo that every checkpoint of every member has
    of_member: float  # noise of a photo that every checkpoint of one member has
    noise: float  # of one checkpoint
    scale: float = 1.0  # of the logits: larger ones give surer probabilities
    luck: float = 0.0  # of one training: standard deviation of the signal, relative
    n_members: int = 3

    def __str__(self) -> str:
        return (
            f"{self.n_people:>3} people, {self.n_seeds} seeds x {N_FOLDS} folds, "
            f"{self.n_members} members, {self.n_classes:>2} classes, signal {self.signal}, noise "
            f"{self.common} + {self.of_member} + {self.noise}, scale {self.scale}, luck {self.luck}"
        )


DESIGNS = [
    *(
        CurveDesign(n_people, n_seeds, 18, signal, 1.0, 0.5, noise)
        for n_people in (60, 120)
        for n_seeds in (2, 3, 5)
        for signal, noise in ((1.5, 1.5), (3.0, 1.5))
    ),
    CurveDesign(120, 3, 18, 3.0, 1.0, 0.5, 0.5),
    CurveDesign(120, 3, 18, 3.0, 1.0, 0.5, 3.0),
    CurveDesign(120, 3, 18, 3.0, 0.0, 0.0, 3.0),
    CurveDesign(120, 3, 18, 3.0, 1.0, 0.5, 1.5, scale=3.0),
    CurveDesign(120, 3, 18, 3.0, 1.0, 0.5, 1.5, luck=0.1),
    CurveDesign(120, 3, 18, 3.0, 1.0, 0.5, 1.5, n_members=1),
    CurveDesign(120, 3, 6, 2.0, 1.0, 0.5, 1.5),
    CurveDesign(120, 3, 6, 4.0, 1.0, 0.5, 1.5),
    CurveDesign(250, 2, 6, 2.0, 1.0, 0.5, 1.5, n_members=1),
]


def draw_probs(design, targets, skills, rng):
    """Return probabilities of the checkpoints of all members, (M, K, N, C).

    Args:
        design: of the noise.
        targets: (N,) classes, N_PHOTOS of each person in a row.
        skills: (M, K, N) signal of each checkpoint, relative to the design's.
        rng: of the noise.
    """
    n_members, n_checkpoints, n = skills.shape
    n_classes = design.n_classes
    person = np.repeat(1 + 0.2 * rng.normal(size=n // N_PHOTOS), N_PHOTOS)
    shape = (n_members, n_checkpoints, n, n_classes)
    logits = rng.normal(size=shape).astype(np.float32) * design.noise
    logits += design.common * rng.normal(size=(n, n_classes)).astype(np.float32)
    logits += design.of_member * rng.normal(size=(n_members, 1, n, n_classes)).astype(np.float32)
    logits[:, :, np.arange(n), targets] += design.signal * person * skills
    logits *= design.scale
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


class Extrapolated(NamedTuple):
    """What the curve said in one data set, and what the checkpoints reach."""

    out_of_fold: float  # with one checkpoint per seed
    estimate: float
    low: float
    high: float
    truth: float


def simulate(design, rng):
    """Estimate from out-of-fold predictions, and measure on new people."""
    n = design.n_people * N_PHOTOS
    targets = rng.integers(0, design.n_classes, n)
    owners = np.repeat(np.arange(design.n_people), N_PHOTOS)
    deal = np.arange(design.n_people) % N_FOLDS
    folds = np.stack([rng.permutation(deal)[owners] for _ in range(design.n_seeds)])
    size = (design.n_members, design.n_seeds, N_FOLDS)
    skills = 1 + design.luck * rng.normal(size=size)
    seen = np.stack([np.take_along_axis(skill, folds, axis=1) for skill in skills])
    probs = draw_probs(design, targets, seen, rng)
    ids = [f"s{i:06}" for i in range(n)]
    names = [f"g{owner}" for owner in owners]
    members = [
        Predictions(ids, targets, p.argmax(-1), design.n_classes, names, p, folds) for p in probs
    ]
    curve = checkpoint_curve(
        members,
        [1] * design.n_members,
        rule="hard",
        n_deployed=design.n_seeds * N_FOLDS,
        seed=0,
    )
    new = rng.integers(0, design.n_classes, N_NEW_PEOPLE * N_PHOTOS // design.n_members)
    new = new[: len(new) // N_PHOTOS * N_PHOTOS]
    deployed = skills.reshape(design.n_members, -1, 1)
    deployed = np.broadcast_to(deployed, (*deployed.shape[:2], len(new)))
    mean = draw_probs(design, new, deployed, rng).mean(1)
    preds = voting.cast([p.argmax(-1) for p in mean], list(mean), "hard").pred
    truth = macro_f1(new, preds, design.n_classes)
    return Extrapolated(curve.scores[-1], curve.estimate, curve.low, curve.high, truth)


class CurveErrors(NamedTuple):
    """How far the extrapolation lies from the truth, over data sets."""

    truth: float
    out_of_fold: float  # mean error of the score without extrapolation
    bias: float
    error: float  # standard deviation of the error
    inside: float  # share of the intervals that hold the truth


def errors(design, n_sets, *, seed=0):
    """Return the errors of the extrapolation in one design."""
    rng = np.random.default_rng([seed, *repr(design).encode()])
    rows = [simulate(design, rng) for _ in range(n_sets)]
    gaps = np.array([row.estimate - row.truth for row in rows])
    return CurveErrors(
        float(np.mean([row.truth for row in rows])),
        float(np.mean([row.out_of_fold - row.truth for row in rows])),
        float(gaps.mean()),
        float(gaps.std()),
        float(np.mean([row.low <= row.truth <= row.high for row in rows])),
    )


def main():
    """Print the errors of every design."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=200)
    n_sets = parser.parse_args().sets
    start = time.monotonic()
    rows = []
    for design in DESIGNS:
        row = errors(design, n_sets)
        rows.append(row)
        print(
            f"  {design}: reaches {row.truth:.3f}, out of fold {row.out_of_fold:+.3f}, "
            f"extrapolated {row.bias:+.3f} (sd {row.error:.3f}), covers {row.inside:.3f}",
            flush=True,
        )
    biases = np.array([row.bias for row in rows])
    inside = np.array([row.inside for row in rows])
    print(
        f"checkpoints: mean error {biases.mean():+.3f} "
        f"({biases.min():+.3f} to {biases.max():+.3f}), covers {inside.mean():.3f} "
        f"({inside.min():.3f} to {inside.max():.3f}), {len(rows)} designs x {n_sets}, "
        f"{time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
