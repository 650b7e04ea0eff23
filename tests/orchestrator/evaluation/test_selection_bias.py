"""The best of many is optimistic; choosing in the bag and scoring out of it is not.

With CAMPAIGN=1 in the environment the simulations run in their long form.
"""

import itertools
import os

import numpy as np
import pytest

from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.selection_bias import Pool, best, corrected, greedy

LONG = bool(os.environ.get("CAMPAIGN"))


def world(
    rng, n_groups=60, per_group=7, n_candidates=40, n_classes=6, skill=0.7, spread=0.15, noise=0.1
):
    """Candidates that are equally good in the mean; other people are easy for each, and some are easy for all."""
    n = n_groups * per_group
    groups, targets = np.repeat(np.arange(n_groups), per_group), rng.integers(0, n_classes, n)
    ids, names = [f"s{at:06}" for at in range(n)], [f"g{group}" for group in groups]
    easy = skill + spread * rng.normal(size=n_groups)
    arms = []
    for _ in range(n_candidates):
        ability = np.clip(easy + noise * rng.normal(size=n_groups), 0, 1)[groups]
        preds = np.where(rng.random(n) < ability, targets, rng.integers(0, n_classes, n))
        arms.append(Predictions(ids, targets, preds[None], n_classes, names))
    return arms, arms[0]


def pool_of(arms, like):
    return Pool(arms, "hard")


def test_the_corrected_estimate_of_the_best_of_forty_equals_is_honest():
    """Measured with CAMPAIGN=1 (200 simulations): see experiments/LOG.md."""
    rng, naive, honest = np.random.default_rng(0), [], []
    (one,), _ = world(rng, n_groups=40_000, n_candidates=1)
    truth = macro_f1(one.targets, one.preds[0], 6)
    for seed in range(200 if LONG else 50):
        found = corrected(pool_of(*world(rng)), best, 1, seed=seed, n_resamples=200)
        naive.append(found["naive"] - truth)
        honest.append(found["estimate"] - truth)
    ratio, error = (
        abs(np.mean(honest)) / np.mean(naive),
        np.std(honest) / len(honest) ** 0.5 / np.mean(naive),
    )
    print(
        f"naive {np.mean(naive):+.4f} (se {np.std(naive) / len(naive) ** 0.5:.4f}), corrected {np.mean(honest):+.4f} "
        f"(se {np.std(honest) / len(honest) ** 0.5:.4f}), ratio {ratio:.3f}, n {len(naive)}"
    )
    assert np.mean(naive) > 0.03
    assert ratio < (0.2 if LONG else 0.2 + 2 * error)


def test_one_candidate_needs_no_correction():
    arms, like = world(np.random.default_rng(1), n_candidates=1)
    found = corrected(pool_of(arms, like), best, 1, seed=0)
    assert found["naive"] == pytest.approx(macro_f1(like.targets, arms[0].preds[0], 6))
    assert abs(found["optimism"]) < 0.005
    assert found["low"] < found["estimate"] < found["high"]


def test_a_vote_of_one_member_is_corrected_as_it_answers_and_a_winner_as_it_was_compared():
    """Five noisy seeds of one candidate: their mean probability answers far better than each of them."""
    rng, n = np.random.default_rng(7), 600
    targets = rng.integers(0, 6, n)
    logits = rng.normal(size=(5, n, 6)) + np.eye(6)[targets]
    probs = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    ids = [f"s{at:06}" for at in range(n)]
    arm = Predictions(ids, targets, probs.argmax(2), 6, [f"g{at // 5}" for at in range(n)], probs)
    pool = pool_of([arm], arm)
    vote, winner = (
        corrected(pool, best, 1, seed=0, n_resamples=100, alone=alone) for alone in (False, True)
    )
    headline = macro_f1(targets, arm.votes, 6)
    assert vote["naive"] == pytest.approx(headline)
    assert vote["estimate"] == pytest.approx(headline, abs=0.01)
    assert winner["naive"] == pytest.approx(
        np.mean([macro_f1(targets, preds, 6) for preds in arm.preds])
    )
    assert winner["naive"] < headline - 0.2


def test_greedy_takes_what_trying_everything_would_take():
    arms, like = world(np.random.default_rng(2), n_candidates=5, noise=0.3)
    pool, every = pool_of(arms, like), np.ones((1, 60))
    chosen = greedy(pool, every, 3)[0]

    def value(choice):
        return macro_f1(like.targets, pool.answers(choice), 6)

    assert value(chosen[:1]) == max(value((at,)) for at in range(5))
    for n in (2, 3):
        assert value(chosen[:n]) == pytest.approx(
            max(value((*chosen[: n - 1], at)) for at in range(5))
        )


def test_greedy_may_give_one_candidate_several_votes():
    """One that is nearly always right, and two that are always wrong: more votes for the one."""
    rng = np.random.default_rng(3)
    arms, like = world(rng, n_candidates=1, skill=0.95, spread=0)
    for shift in (1, 2):
        preds = (like.targets + shift) % 6
        arms.append(like.answered_by(preds))
    pool = pool_of(arms, like)
    assert greedy(pool, np.ones((1, 60)), 3)[0] == (0, 0, 0)
    assert pool.answers((0, 0, 1)).tolist() == arms[0].votes.tolist()


def test_the_greedy_choice_is_corrected_by_making_it_again_in_the_bag():
    """With noise alone to choose from, the naive score of a greedy vote lies above the corrected one."""
    found = [
        corrected(pool_of(*world(np.random.default_rng(seed), n_groups=30, n_candidates=6)), greedy, 3, seed=seed, n_resamples=40)
        for seed in range(8)
    ]  # fmt: skip
    assert np.mean([one["optimism"] for one in found]) > 0.005


def test_votes_are_counted_per_group_in_any_order():
    arms, like = world(np.random.default_rng(4), n_groups=10, n_candidates=3)
    pool = pool_of(arms, like)
    totals = {tuple(pool.vote(order).sum(0).ravel()) for order in itertools.permutations(range(3))}
    assert len(totals) == 1
    assert (
        pool.vote((0, 1, 2)).sum(0)[2].tolist() == np.bincount(like.targets, minlength=6).tolist()
    )
