"""The select stage: the members of the ensemble are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.evaluation import common_samples, selection, selection_bias
from orchestrator.evaluation import metrics as stats
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.checkpoint_curve import checkpoint_curve
from orchestrator.evaluation.predictions import Predictions
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


def select(context: Context) -> Done:
    """Choose the members of the ensemble, and say what their vote is worth."""
    spec, scores = context.experiment.spec, search_scores(context)
    variants, trials, found = complete_settings(context), checkpoints(context), held_out(context)
    if not found:
        raise UserError(
            "select: finalists with out-of-fold predictions over all labels were required, "
            "found none"
        )
    arms = common_samples.on_common_samples(found)
    sizes = [len(arm.sample_ids) for arm in found.values()]
    n_common = len(next(iter(arms.values())).sample_ids)
    candidates = []
    for setting, arm in sorted(arms.items()):
        row = selection.candidate(
            setting,
            variants[setting],
            arm,
            search_score=scores.get(setting),
            n_params=_n_params(context, trials[setting][0]),
            seed=spec.seed,
        )
        row["n_left_out"] = len(found[setting].sample_ids) - n_common
        candidates.append(row)
    peeks = None
    if spec.select.policy == "leaderboard":
        candidates, peeks = _with_board(context, candidates)
    ranked = selection.rank(candidates, "robust")
    order = [row["setting"] for row in ranked]
    pool = selection_bias.Pool(
        [arms[setting] for setting in order],
        spec.vote.rule,
        margins=[row["oof_macro_f1"] - row["low"] for row in ranked],
        n_params=[row["n_params"] for row in ranked],
    )
    picks = None
    if spec.select.policy == "diverse":
        greedy = selection_bias.greedy(pool, pool.everybody, spec.select.members)[0]
        picks = [order[place] for place in greedy]
    chosen = selection.choose(candidates, spec.select.policy, spec.select.members, picks)
    if not chosen["members"]:
        raise UserError(
            f"select: finalists that policy {spec.select.policy} may choose were required, "
            "found none"
        )
    finding = common_samples.little_in_common(sizes, n_common)
    chosen["peeks"] = peeks
    chosen["findings"] = [finding] if finding else []
    chosen["vote"] = {"rule": spec.vote.rule, "tie": voting.TIE_RULE}
    members = {setting: arms[setting] for setting in chosen["members"]}
    rests_on, corrected = judged(context)[1], _corrected(context, pool, order, chosen)
    chosen["ensemble"] = {
        "oof": None,
        rests_on: _vote_scores(context, members, chosen["weights"]),
        "test": None,
        **_about_members(context, members, chosen["weights"]),
        "corrected": corrected,
        "checkpoints": _checkpoint_curve(context, members, chosen["weights"], corrected),
    }
    ((first,),) = selection_bias.best_alone(pool, pool.everybody, 1)
    winner = selection_bias.corrected(
        pool, selection_bias.best_alone, 1, seed=spec.seed, alone=True
    )
    chosen["winner"] = {"setting": order[first], **winner.to_json()}
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"][rests_on]["macro_f1"]
    kind = "out-of-fold" if rests_on == "oof" else "validation"
    return Done(
        "SUCCEEDED",
        f"{len(chosen['members'])} members, {kind} macro F1 {bounds['estimate']:.3f} "
        f"({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def _checkpoint_curve(
    context: Context,
    members: dict[str, Predictions],
    weights: list[int],
    corrected: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Return the out-of-fold score by checkpoints averaged, and where it leads once deployed."""
    if not context.experiment.spec.confirm:
        return None
    n_deployed = min(len(checkpoints(context)[setting]) for setting in members)
    curve = checkpoint_curve(
        list(members.values()),
        weights,
        rule=context.experiment.spec.vote.rule,
        n_deployed=n_deployed,
        seed=context.experiment.spec.seed,
        optimism=(corrected or {}).get("optimism") or 0.0,
    )
    return curve.to_json()


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
    gain = None
    if len(names) > 1:
        gain = {"over": best, **stats.paired_difference(whole, alone[best], seed=seed)}
        pool = selection_bias.Pool(list(members.values()), context.experiment.spec.vote.rule)
        bias = selection_bias.corrected(pool, selection_bias.best_vote, 1, seed=seed).optimism
        # the best member was found on these photos, so it looks better than it is
        for name in ("difference", "low", "high"):
            gain[f"corrected_{name}"] = gain[name] + (bias or 0.0)
    return {
        "agreement": [[float(np.mean(a == b)) for b in answers] for a in answers],
        "marginal": marginal,
        "gain": gain,
    }


def _corrected(
    context: Context, pool: selection_bias.Pool, order: list[str], chosen: dict[str, Any]
) -> dict[str, Any] | None:
    """Correct the vote's score for having been chosen on these very samples.

    Returns:
        None where nothing was chosen on them.
    """
    policy, seed = context.experiment.spec.select.policy, context.experiment.spec.seed
    choice: tuple[int, ...] = ()
    for setting, votes in zip(chosen["members"], chosen["weights"], strict=True):
        choice += (order.index(setting),) * votes
    if policy == "robust":
        result = selection_bias.corrected(
            pool, selection_bias.robust, len(choice), seed=seed, choice=choice
        )
        return {
            **result.to_json(),
            "chosen_by": "the rule of policy robust, applied to the people in the bag",
        }
    if policy == "diverse":
        result = selection_bias.corrected(
            pool,
            selection_bias.greedy,
            len(choice),
            seed=seed,
            choice=choice,
            n_resamples=selection_bias.N_GREEDY_RESAMPLES,
        )
        return {
            **result.to_json(),
            "chosen_by": "the greedy choice, made anew on the people in the bag",
        }
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
