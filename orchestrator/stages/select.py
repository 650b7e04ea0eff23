"""The select stage: the members of the ensemble are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.evaluation import common_samples as fair
from orchestrator.evaluation import metrics as stats
from orchestrator.evaluation import selection
from orchestrator.evaluation import selection_bias as optimism
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import Predictions, align
from orchestrator.stages import test_set as board
from orchestrator.stages.confirm import (
    checkpoints,
    complete_settings,
    held_out,
    judged,
    search_scores,
)
from orchestrator.stages.context import Context, Done, load_json
from orchestrator.store.ledger import TrialRecord

_N_GREEDY = 200
"""Resamples of a greedy choice: each tries every candidate for every vote."""


def select(context: Context) -> Done:
    """Choose the members of the ensemble, and say what their vote is worth."""
    spec, scores, variants = (
        context.experiment.spec,
        search_scores(context),
        complete_settings(context),
    )
    found = held_out(context)
    trials = checkpoints(context)
    arms = fair.on_common_samples(found)
    if not found:
        raise UserError(
            "select: finalists with out-of-fold predictions over all labels were required, found none"
        )
    candidates = [
        selection.candidate(
            setting,
            variants[setting],
            oof,
            search_score=scores.get(setting),
            n_params=_n_params(context, trials[setting][0]),
            seed=spec.seed,
        )
        | {
            "n_left_out": len(found[setting].sample_ids) - len(oof.sample_ids)
        }  # photos that another arm excluded
        for setting, oof in sorted(arms.items())
    ]
    peeks = None
    if spec.select.policy == "leaderboard":
        candidates, peeks = _with_board(context, candidates)
    robust = [c["setting"] for c in selection.rank(candidates, "robust")]
    together = align({setting: found[setting] for setting in robust})
    pool = None  # variants split differently may have no photo in common; then nothing can be said of their best
    if next(iter(together.values())).sample_ids:
        pool = optimism.Pool(list(together.values()), spec.vote.rule)
    picks = None
    if spec.select.policy == "diverse" and pool:
        picks = [robust[at] for at in optimism.greedy(pool, pool.everybody, spec.select.members)[0]]
    chosen = selection.choose(candidates, spec.select.policy, spec.select.members, picks)
    if not chosen["members"]:
        raise UserError(
            f"select: finalists that policy {spec.select.policy} may choose were required, found none"
        )
    chosen["peeks"] = peeks
    chosen["vote"] = {"rule": spec.vote.rule, "tie": voting.TIE_RULE}
    rests_on = judged(context)[1]
    members = align({setting: found[setting] for setting in chosen["members"]})
    if not next(iter(members.values())).sample_ids:
        raise UserError(
            "select: photos that all members held out were required, found none; give them one data.split"
        )
    chosen["ensemble"] = {
        "oof": None,
        rests_on: _vote_scores(context, members, chosen["weights"]),
        "test": None,
        **_about_members(context, members, chosen["weights"]),
        "corrected": _corrected(context, pool, sum(chosen["weights"])),
    }
    if pool:
        ((first,),) = optimism.best(pool, pool.everybody, 1)
        chosen["winner"] = {
            "setting": robust[first],
            **optimism.corrected(pool, optimism.best, 1, seed=spec.seed, alone=True),
        }
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"][rests_on]["macro_f1"]
    return Done(
        "SUCCEEDED",
        f"{len(chosen['members'])} members, {'out-of-fold' if rests_on == 'oof' else 'validation'} macro F1 {bounds['estimate']:.3f} "
        f"({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def _with_board(
    context: Context, candidates: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Add the scores of a leaderboard to the candidates: typed in by hand, or seen on the public half."""
    typed = context.experiment.spec.select.scores
    if typed is not None:
        return selection.give_scores(candidates, typed), {
            "by": "scores typed into the spec",
            "n_candidates": len(typed),
        }
    seen = board.read_board(context, (c["variant"] for c in candidates))
    by_setting = checkpoints(context)
    trials = [trial for c in candidates for trial in by_setting[c["setting"]]]
    shown = board.peek(context, seen, trials)
    peeks = {
        "by": "the public half of the test set",
        "n_photos": len(seen.public),
        "n_candidates": len(candidates),
    }
    return [{**c, "board_score": shown[c["setting"]]} for c in candidates], peeks


def _n_params(context: Context, trial: TrialRecord) -> int:
    return int(load_json(context.store.get("trial", trial.key).path / "model.json")["n_params"])


def _like(members: dict[str, Predictions], pred: stats.Ints) -> Predictions:
    """Return the samples of some members, answered by `pred`."""
    return next(iter(members.values())).answered_by(pred)


def _cast(context: Context, members: dict[str, Predictions], weights: list[int]) -> voting.Votes:
    """Let members vote on samples that each of their checkpoints held out."""
    arms = members.values()
    return voting.cast(
        [m.votes for m in arms],
        [m.mean_probs for m in arms],
        context.experiment.spec.vote.rule,
        weights,
    )


def _vote_scores(
    context: Context, members: dict[str, Predictions], weights: list[int]
) -> dict[str, Any]:
    """Return the headline: the scores of the vote, and how far its mean probability can be believed."""
    votes = _cast(context, members, weights)
    oof = _like(members, votes.pred)
    mean = np.average([m.mean_probs for m in members.values()], axis=0, weights=weights)
    sure = mean[np.arange(len(votes.pred)), votes.pred]
    return {
        **interval_scores(context, oof),
        "calibration_error": stats.calibration_error(sure, votes.pred == oof.targets),
    }


def _about_members(
    context: Context, members: dict[str, Predictions], weights: list[int]
) -> dict[str, Any]:
    """Return how often members agree, what each adds to the vote, and what the vote adds to the best of them."""
    n_classes, seed, names = context.schema.n_classes, context.experiment.spec.seed, list(members)
    whole = _like(members, _cast(context, members, weights).pred)
    answers = np.stack([one.votes for one in members.values()])
    alone = {name: _like(members, one.votes) for name, one in members.items()}
    scores = {
        name: stats.macro_f1(one.targets, one.preds[0], n_classes) for name, one in alone.items()
    }
    marginal = []
    for at, name in enumerate(names):
        others = {other: one for other, one in members.items() if other != name}
        row: dict[str, Any] = {
            "setting": name,
            "votes": weights[at],
            "macro_f1": scores[name],
            "adds": None,
        }
        if others:
            rest = _like(
                others,
                _cast(context, others, weights[:at] + weights[at + 1 :]).pred,
            )
            row["adds"] = stats.paired_difference(whole, rest, seed=seed)
        marginal.append(row)
    best = max(names, key=lambda name: (scores[name], -names.index(name)))
    gain = (
        {"over": best, **stats.paired_difference(whole, alone[best], seed=seed)}
        if len(names) > 1
        else None
    )
    return {
        "agreement": [[float(np.mean(a == b)) for b in answers] for a in answers],
        "marginal": marginal,
        "gain": gain,
    }


def _corrected(context: Context, pool: optimism.Pool | None, n: int) -> dict[str, Any] | None:
    """Correct the vote's score for having been chosen on these very samples; None where nothing was chosen on them."""
    policy, seed = context.experiment.spec.select.policy, context.experiment.spec.seed
    if pool is None:
        return None
    if policy == "robust":
        found = optimism.corrected(pool, optimism.best, n, seed=seed)
        return {**found, "chosen_by": "macro F1 of the people in the bag, the best of them vote"}
    if policy == "diverse":
        found = optimism.corrected(pool, optimism.greedy, n, seed=seed, n_resamples=_N_GREEDY)
        return {**found, "chosen_by": "the greedy choice, made anew on the people in the bag"}
    return None


def interval_scores(context: Context, oof: Predictions) -> dict[str, Any]:
    """Return macro F1 and accuracy with intervals, and macro F1 and accuracy per label."""
    seed = context.experiment.spec.seed
    found: dict[str, Any] = {
        metric: stats.interval(oof, metric=metric, seed=seed).to_json()
        for metric in ("macro_f1", "accuracy")
    }
    truth, given = (context.schema.decode(labels) for labels in (oof.targets, oof.preds[0]))
    for at, (name, size) in enumerate(zip(context.schema.names, context.schema.sizes, strict=True)):
        found[f"macro_f1_{name}"] = stats.macro_f1(truth[:, at], given[:, at], size)
        found[f"accuracy_{name}"] = float(np.mean(truth[:, at] == given[:, at]))
    return found
