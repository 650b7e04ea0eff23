"""The select stage: the members of the ensemble are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.base.errors import UserError
from orchestrator.evaluation import common_samples, metrics, selection, selection_bias
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.checkpoint_curve import checkpoint_curve
from orchestrator.evaluation.intervals import interval, label_interval
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.planning.stage import SUCCEEDED, Env
from orchestrator.stages import test_set
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed, held_out_predictions
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.store.ledger import TrialRecord


@dataclass(frozen=True)
class Selected:
    """The members of the ensemble, and what their vote is worth."""

    outcome: str
    note: str
    selection: Mapping[str, Any]  # as selection.json has it, without scores on the test set

    @property
    def members(self) -> list[str]:
        """The settings that vote, in rank order."""
        return list(self.selection["members"])

    @property
    def weights(self) -> list[int]:
        """The votes of each member."""
        return list(self.selection["weights"])


def run(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    search: Searched,
    confirm: Confirmed,
) -> Selected:
    """Choose the members of the ensemble, and estimate what their vote is worth.

    Raises:
        UserError: there is no finalist that the policy may choose.
    """
    spec = env.experiment.spec
    scores = search.scores
    variants = confirm.complete_settings
    predictions = held_out_predictions(env, catalog, split, confirm)
    if not predictions:
        raise UserError(
            "select: finalists with out-of-fold predictions over all labels were required, "
            "found none"
        )
    arms = common_samples.on_common_samples(predictions)
    sizes = [len(arm.sample_ids) for arm in predictions.values()]
    n_common = len(next(iter(arms.values())).sample_ids)
    candidates = []
    for setting, arm in sorted(arms.items()):
        row = selection.candidate(
            setting,
            variants[setting],
            arm,
            search_score=scores.get(setting),
            n_params=_n_params(env, confirm.checkpoints[setting][0]),
            seed=spec.seed,
        )
        row["n_left_out"] = len(predictions[setting].sample_ids) - n_common
        candidates.append(row)
    peeks = None
    if spec.select.policy == "leaderboard":
        candidates, peeks = _with_board_scores(env, catalog, prepare, confirm, candidates)
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
    corrected = _corrected(env, pool, order, chosen)
    chosen["ensemble"] = {
        "oof": None,
        confirm.split: _vote_scores(env, members, chosen["weights"]),
        "test": None,
        **_about_members(env, members, chosen["weights"]),
        "corrected": corrected,
        "checkpoints": _checkpoint_curve(env, confirm, members, chosen["weights"], corrected),
    }
    ((first,),) = selection_bias.best_alone(pool, pool.everybody, 1)
    winner = selection_bias.corrected(
        pool, selection_bias.best_alone, 1, seed=spec.seed, alone=True
    )
    chosen["winner"] = {"setting": order[first], **winner.to_json()}
    bounds = chosen["ensemble"][confirm.split]["macro_f1"]
    kind = "out-of-fold" if confirm.split == "oof" else "validation"
    note = (
        f"{len(chosen['members'])} members, {kind} macro F1 {bounds['estimate']:.3f} "
        f"({bounds['low']:.3f}-{bounds['high']:.3f})"
    )
    return Selected(SUCCEEDED, note, chosen)


def _checkpoint_curve(
    env: Env,
    confirm: Confirmed,
    members: dict[str, Predictions],
    weights: list[int],
    corrected: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Return the out-of-fold score by checkpoints averaged, and where it leads once deployed."""
    if not env.experiment.spec.confirm:
        return None
    n_deployed = min(len(confirm.checkpoints[setting]) for setting in members)
    curve = checkpoint_curve(
        list(members.values()),
        weights,
        rule=env.experiment.spec.vote.rule,
        n_deployed=n_deployed,
        seed=env.experiment.spec.seed,
        optimism=(corrected or {}).get("optimism") or 0.0,
    )
    return curve.to_json()


def _with_board_scores(
    env: Env,
    catalog: Catalog,
    prepare: Prepared,
    confirm: Confirmed,
    candidates: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Add the scores of a leaderboard to the candidates: typed in by hand, or seen on the public half."""
    typed = env.experiment.spec.select.scores
    if typed is not None:
        return selection.give_scores(candidates, typed), {
            "by": "scores typed into the spec",
            "n_candidates": len(typed),
        }
    variants = [candidate["variant"] for candidate in candidates]
    photos = test_set.read_test_photos(env, catalog, prepare, variants)
    trials: list[TrialRecord] = []
    for candidate in candidates:
        trials += confirm.checkpoints[candidate["setting"]]
    scores = test_set.score_public_half(env, catalog, prepare, photos, trials)
    peeks = {
        "by": "the public half of the test set",
        "n_photos": len(photos.public),
        "n_candidates": len(candidates),
    }
    return [{**c, "board_score": scores[c["setting"]]} for c in candidates], peeks


def _n_params(env: Env, trial: TrialRecord) -> int:
    path = env.store.get("trial", trial.key).path / "model.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["n_params"])


def _like(members: dict[str, Predictions], pred: metrics.Ints) -> Predictions:
    """Return the samples of some members, answered by `pred`."""
    return next(iter(members.values())).answered_by(pred)


def _cast(env: Env, members: dict[str, Predictions], weights: list[int]) -> voting.Votes:
    """Let members vote on samples that each of their checkpoints held out."""
    arms = members.values()
    return voting.cast(
        [m.votes for m in arms],
        [m.mean_probs for m in arms],
        env.experiment.spec.vote.rule,
        weights,
    )


def _vote_scores(env: Env, members: dict[str, Predictions], weights: list[int]) -> dict[str, Any]:
    """Return the headline: the scores of the vote, and how far its mean probability can be believed."""
    votes = _cast(env, members, weights)
    oof = _like(members, votes.pred)
    mean = np.average([m.mean_probs for m in members.values()], axis=0, weights=weights)
    sure = mean[np.arange(len(votes.pred)), votes.pred]
    return {
        **interval_scores(env, oof),
        "calibration_error": metrics.calibration_error(sure, votes.pred == oof.targets),
    }


def _about_members(env: Env, members: dict[str, Predictions], weights: list[int]) -> dict[str, Any]:
    """Return how often members agree, what each adds to the vote, and what the vote adds to the best of them."""
    n_classes = env.schema.n_classes
    seed = env.experiment.spec.seed
    names = list(members)
    whole = _like(members, _cast(env, members, weights).pred)
    answers = np.stack([one.votes for one in members.values()])
    alone = {name: _like(members, one.votes) for name, one in members.items()}
    scores = {
        name: metrics.macro_f1(one.targets, one.preds[0], n_classes) for name, one in alone.items()
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
                _cast(env, others, weights[:at] + weights[at + 1 :]).pred,
            )
            row["adds"] = paired_difference(whole, rest).to_json()
        marginal.append(row)
    best = max(names, key=lambda name: (scores[name], -names.index(name)))
    gain = None
    if len(names) > 1:
        gain = {"over": best, **paired_difference(whole, alone[best]).to_json()}
        pool = selection_bias.Pool(list(members.values()), env.experiment.spec.vote.rule)
        bias = selection_bias.corrected(pool, selection_bias.best_vote, 1, seed=seed).optimism
        # the best member was found on these photos, so it looks better than it is
        for name in ("difference", "low", "high"):
            value = gain[name]
            gain[f"corrected_{name}"] = None if value is None else value + (bias or 0.0)
    return {
        "agreement": [[float(np.mean(a == b)) for b in answers] for a in answers],
        "marginal": marginal,
        "gain": gain,
    }


def _corrected(
    env: Env, pool: selection_bias.Pool, order: list[str], chosen: dict[str, Any]
) -> dict[str, Any] | None:
    """Correct the vote's score for having been chosen on these very samples.

    Returns:
        None where nothing was chosen on them.
    """
    policy = env.experiment.spec.select.policy
    seed = env.experiment.spec.seed
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


def interval_scores(env: Env, oof: Predictions) -> dict[str, Any]:
    """Return macro F1 and accuracy with intervals, over the joint class and per label.

    `macro_f1_<label>` and `accuracy_<label>` are numbers; `intervals` holds their intervals.
    """
    seed = env.experiment.spec.seed
    schema = env.schema
    scores: dict[str, Any] = {}
    for metric in ("macro_f1", "accuracy"):
        scores[metric] = interval(oof, metric=metric, seed=seed).to_json()
    truth = schema.decode(oof.targets)
    answers = schema.decode(oof.preds[0])
    intervals: dict[str, Any] = {}
    for i, (name, size) in enumerate(zip(schema.names, schema.sizes, strict=True)):
        for metric in ("macro_f1", "accuracy"):
            bounds = label_interval(
                oof, truth[:, i], answers[None, :, i], size, metric=metric, seed=seed
            )
            scores[f"{metric}_{name}"] = bounds.estimate
            intervals[f"{metric}_{name}"] = bounds.to_json()
    scores["intervals"] = intervals
    return scores
