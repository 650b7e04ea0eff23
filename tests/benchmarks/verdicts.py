"""Intervals, tests and the correction of a choice, at the size of a large study."""

import itertools
import statistics
import time

import numpy as np
from sklearn.metrics import f1_score

from orchestrator.evaluation import intervals
from orchestrator.evaluation.intervals import N_RESAMPLES, interval
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.selection_bias import Pool, corrected, greedy, robust

N_PHOTOS, N_SEEDS, N_FOLDS, N_CLASSES = 4000, 5, 3, 18
N_NAIVE = 40
"""Resamples of the naive loop; its time is scaled to N_RESAMPLES."""
REPEATS = 5


def draw_arms(n_arms, n_groups, seed=0):
    """Return arms of equal skill on the same photos, with folds dealt anew for every seed."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, N_CLASSES, N_PHOTOS)
    owners = np.arange(N_PHOTOS) % n_groups
    ids = [f"s{i:06}" for i in range(N_PHOTOS)]
    names = [f"g{owner}" for owner in owners]
    folds = np.stack([rng.integers(0, N_FOLDS, n_groups)[owners] for _ in range(N_SEEDS)])
    arms = []
    for _ in range(n_arms):
        is_hit = rng.random((N_SEEDS, N_PHOTOS)) < 0.7
        preds = np.where(is_hit, targets, rng.integers(0, N_CLASSES, is_hit.shape))
        arms.append(
            Predictions(ids, targets, preds, N_CLASSES, names, None, folds, (0, 1, 2, 3, 4))
        )
    return arms


def judge(arms):
    """Return the interval of every arm and the test of every pair; nothing is kept from before."""
    intervals._whole_weights.cache_clear()
    scores = [interval(arm, seed=0) for arm in arms]
    tests = [paired_difference(first, second) for first, second in itertools.combinations(arms, 2)]
    return scores, tests


def resample_naively(arms, n_groups):
    """Resample people and call scikit-learn for every arm and seed; return the bounds of every arm."""
    rng = np.random.default_rng(0)
    photos_of = [np.arange(group, N_PHOTOS, n_groups) for group in range(n_groups)]
    scores = np.zeros((N_NAIVE, len(arms)))
    for row in scores:
        photos = np.concatenate([photos_of[i] for i in rng.integers(0, n_groups, n_groups)])
        for i, arm in enumerate(arms):
            targets = arm.targets[photos]
            row[i] = np.mean([f1_score(targets, p[photos], average="macro") for p in arm.preds])
    return np.quantile(scores, [0.05, 0.95], axis=0)


def verdict_speed():
    """Give 3 arms x 5 seeds x 4,000 photos their intervals and tests; every photo is a group.

    The baseline is what a user would write: macro F1 of scikit-learn for every resample, arm and
    seed, with percentiles at the end. Fair, because the same resamples would also give its test of
    two arms. It makes fewer resamples, and its time is scaled.
    """
    arms = draw_arms(3, N_PHOTOS)
    ours = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        judge(arms)
        ours.append(time.perf_counter() - began)
    began = time.perf_counter()
    resample_naively(arms, N_PHOTOS)
    baseline = (time.perf_counter() - began) * N_RESAMPLES / N_NAIVE
    note = f"{N_RESAMPLES} resamples; baseline scikit-learn, {N_NAIVE} resamples scaled to as many"
    return "s", statistics.median(ours), baseline, REPEATS, note


def correction_speed():
    """Correct the choice of 3 among 40 candidates x 5 seeds x 4,000 photos by the robust rule.

    The baseline is the same correction by the greedy rule, which tries every candidate at every
    step, so both times are told at once.
    """
    arms = draw_arms(40, 571)
    walls = {}
    for rule, n_resamples in ((robust, 500), (greedy, 200)):
        pool = Pool(arms, margins=[0.01] * len(arms), n_params=[0] * len(arms))
        began = time.perf_counter()
        corrected(pool, rule, 3, seed=0, n_resamples=n_resamples)
        walls[rule] = time.perf_counter() - began
    return (
        "s",
        walls[robust],
        walls[greedy],
        1,
        "ours: robust, 500 resamples; baseline: greedy, 200",
    )
