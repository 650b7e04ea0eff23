"""The select stage: the members of the ensemble are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_prep.catalog.label_schema import name_in_catalog
from data_prep.section_base import identity
from orchestrator.base.errors import UserError
from orchestrator.base.json_types import Json
from orchestrator.base.wording import counted, signed
from orchestrator.ensemble.diagnosis import (
    Diagnosis,
    LostPhoto,
    count_lost,
    diagnose,
    score_kept,
)
from orchestrator.evaluation import common_samples, metrics, selection, selection_bias
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.checkpoint_count_curve import CheckpointCurve, checkpoint_curve
from orchestrator.evaluation.paired_test import PairedTest, paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.probabilities.adjustment import (
    AdjustedLabel,
    Adjustment,
    cross_fitted,
    fit,
)
from orchestrator.evaluation.scores_with_intervals import Scores, score_answers, scorer_of
from orchestrator.evaluation.selection import Candidate, Selection
from orchestrator.evaluation.selection_bias import Corrected
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.spec.models import NoAdjustment
from orchestrator.spec.score import DEFAULT
from orchestrator.stages import test_set
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed, held_out_predictions
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.store.ledger import TrialRecord

CHOSEN_BY = {
    "robust": "the rule of policy robust, applied to the groups in the bag",
    "diverse": "the greedy choice, made anew on the groups in the bag",
}
"""The choice that the corrected score repeats, by policy. Others choose by other data."""


@dataclass(frozen=True)
class Peeks:
    """What a leaderboard showed before the choice."""

    by: str
    n_candidates: int
    n_photos: int | None = None  # None where the scores were typed in
    answers: Mapping[str, Predictions] | None = None  # of every candidate on the public half
    corrected: Corrected | None = None  # the members' vote there, without the luck of the choice
    score: str = "macro F1"  # in words

    def to_json(self) -> Json:
        """Return plain data."""
        facts: Json = {"by": self.by, "n_candidates": self.n_candidates}
        if self.n_photos is not None:
            facts["n_photos"] = self.n_photos
        if self.corrected is not None:
            facts["corrected"] = self.corrected.to_json()
        return facts

    def findings(self) -> list[str]:
        """Say what the choice is worth where it was made."""
        result = self.corrected
        if result is None or result.estimate is None:
            return []
        return [
            (
                f"The public half chose among {counted(self.n_candidates, 'candidate')}. There the "
                f"vote reaches {self.score} {result.naive:.3f}; corrected for that choice it is "
                f"{result.estimate:.3f} (90 % interval {result.low:.3f} to {result.high:.3f})."
            )
        ]


@dataclass(frozen=True)
class Contribution:
    """What one member adds to the vote."""

    setting: str
    votes: int
    macro_f1: float  # of this member alone
    adds: PairedTest | None  # the vote minus the vote without it; None for a member alone
    score: float | None = None  # by the score of the spec; None where that is macro F1

    def to_json(self) -> Json:
        """Return plain data."""
        adds = self.adds.to_json() if self.adds else None
        facts = vars(self) | {"adds": adds}
        if self.score is None:
            del facts["score"]
        return facts


@dataclass(frozen=True)
class Gain:
    """What the vote gains over its best member alone."""

    over: str  # the setting of that member
    test: PairedTest
    bias: float  # how much better that member looks because these photos chose it

    def to_json(self) -> Json:
        """Return plain data."""
        facts = self.test.to_json()
        for name in ("difference", "low", "high"):
            value = facts[name]
            facts[f"corrected_{name}"] = None if value is None else value + self.bias
        return {"over": self.over, **facts}


@dataclass(frozen=True)
class EnsembleScores:
    """What is known of the ensemble from photos that its checkpoints held out."""

    split: str  # oof, or val where nothing is confirmed
    scores: Scores
    agreement: list[list[float]]  # share of photos that two members answer alike
    marginal: list[Contribution]
    gain: Gain | None  # None where one member is all
    corrected: Corrected | None  # None where nothing was chosen on these photos
    checkpoints: CheckpointCurve | None
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True)
class Adjusted:
    """How the members' answers are moved, and what that is worth."""

    by: Mapping[str, Any]  # select.adjust of the spec
    seed: int  # of the parts of the people
    labels: Mapping[str, tuple[AdjustedLabel, ...]]  # by setting, of every candidate
    change: PairedTest  # the vote minus that of the members as they were trained

    def to_json(self, members: list[str]) -> Json:
        """Return plain data of the members."""
        by_member = {}
        for setting in members:
            by_member[setting] = [label.to_json() for label in self.labels[setting]]
        return {
            "by": dict(self.by),
            "seed": self.seed,
            "change": self.change.to_json(),
            "members": by_member,
        }


@dataclass(frozen=True)
class Selected:
    """The members of the ensemble, and what their vote is worth."""

    outcome: str
    note: str
    selection: Selection
    ensemble: EnsembleScores
    winner: Corrected  # the best candidate alone
    winner_setting: str
    peeks: Peeks | None  # of policy leaderboard
    findings: list[str]
    rule: str  # of the vote
    calibrate: bool = False  # confidences are stated at the temperatures of the diagnosis
    score: str = DEFAULT  # of the spec
    adjusted: Adjusted | None = None  # None where members answer as they were trained

    @property
    def adjustments(self) -> Mapping[str, Adjustment]:
        """How each setting's answers are moved; empty where none are."""
        return self.adjusted.labels if self.adjusted else {}

    @property
    def members(self) -> list[str]:
        """The settings that vote, in rank order."""
        return self.selection.members

    @property
    def weights(self) -> list[int]:
        """The votes of each member."""
        return self.selection.weights

    def to_json(self) -> Json:
        """Return selection.json without scores on the test set."""
        ensemble = self.ensemble
        corrected = ensemble.corrected
        chosen_by = CHOSEN_BY.get(str(self.selection.policy))
        vote: Json = {"rule": self.rule, "tie": voting.TIE_RULE}
        if self.calibrate and ensemble.diagnosis:
            vote["temperatures"] = ensemble.diagnosis.temperatures
        if self.adjusted:
            vote["adjusted"] = self.adjusted.to_json(self.members)
        named = {} if self.score == DEFAULT else {"score": self.score}
        return {
            **named,
            **self.selection.to_json(),
            "peeks": self.peeks.to_json() if self.peeks else None,
            "findings": self.findings,
            "vote": vote,
            "ensemble": {
                "oof": None,
                ensemble.split: ensemble.scores.to_json(),
                "test": None,
                "agreement": ensemble.agreement,
                "marginal": [contribution.to_json() for contribution in ensemble.marginal],
                "gain": ensemble.gain.to_json() if ensemble.gain else None,
                "corrected": corrected and {**corrected.to_json(), "chosen_by": chosen_by},
                "checkpoints": ensemble.checkpoints and ensemble.checkpoints.to_json(),
                **(ensemble.diagnosis.to_json() if ensemble.diagnosis else {}),
            },
            "winner": {"setting": self.winner_setting, **self.winner.to_json()},
        }


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
    predictions = held_out_predictions(env, catalog, split, confirm)
    if not predictions:
        raise UserError(
            "select: finalists with out-of-fold predictions over all labels were required, "
            "found none"
        )
    as_trained = common_samples.on_common_samples(predictions)
    arms = adjusted_arms(env, as_trained)
    n_common = len(next(iter(arms.values())).sample_ids)
    sizes = {setting: len(arm.sample_ids) for setting, arm in predictions.items()}
    candidates = []
    stopped = {row.setting: row.n_seeds for row in confirm.race.stopped} if confirm.race else {}
    for setting, arm in sorted(arms.items()):
        entry = selection.candidate(
            setting,
            confirm.complete_settings[setting],
            arm,
            search_score=search.scores.get(setting),
            n_params=_n_params(env, confirm.checkpoints[setting][0]),
            seed=spec.seed,
            n_left_out=sizes[setting] - n_common,
            metric=_scorer(env),
        )
        candidates.append(replace(entry, stopped_after=stopped.get(setting)))
    peeks = None
    if spec.select.policy == "leaderboard":
        fits = _fits(env, as_trained)
        candidates, peeks = _with_board_scores(env, catalog, prepare, confirm, candidates, fits)
    ranked = selection.rank(candidates, "robust")
    order = [entry.setting for entry in ranked]
    pool = selection_bias.Pool(
        [arms[setting] for setting in order],
        spec.vote.rule,
        margins=[entry.score - entry.low for entry in ranked],
        n_params=[entry.n_params for entry in ranked],
        metric=_scorer(env),
    )
    chosen = _choose(env, candidates, pool, order)
    if peeks is not None and peeks.answers is not None:
        corrected = _corrected_on_board(env, peeks.answers, chosen)
        peeks = replace(peeks, corrected=corrected)
    ensemble = _score_ensemble(env, confirm, pool, order, chosen)
    members = {setting: pool.candidates[order.index(setting)] for setting in chosen.members}
    adjusted = _adjusted(env, as_trained, members, chosen)
    diagnosis = _diagnose(env, catalog, split, prepare, confirm, members, chosen.weights)
    (winner,) = selection_bias.best_alone(pool, pool.everybody, 1)[0]
    finding = common_samples.little_in_common(list(sizes.values()), n_common)
    return Selected(
        SUCCEEDED,
        _note(ensemble, len(chosen.members), spec.parsed_score.title) + _change_note(adjusted),
        chosen,
        replace(ensemble, diagnosis=diagnosis),
        selection_bias.corrected(pool, selection_bias.best_alone, 1, seed=spec.seed, alone=True),
        order[winner],
        peeks,
        [*([finding] if finding else []), *(peeks.findings() if peeks else [])],
        spec.vote.rule,
        spec.vote.calibrate,
        spec.score,
        adjusted,
    )


def adjusted_arms(env: Env, arms: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return arms whose answers are adjusted as the spec says, by fits on other people."""
    spec = env.experiment.spec
    adjust = spec.select.adjust
    if isinstance(adjust, NoAdjustment):
        return dict(arms)
    adjusted = {}
    for setting, arm in arms.items():
        adjusted[setting] = cross_fitted(arm, adjust, env.schema, seed=spec.seed)
    return adjusted


def _fits(env: Env, as_trained: Mapping[str, Predictions]) -> dict[str, tuple[AdjustedLabel, ...]]:
    """Return how the answers of each setting on new photos are moved, fitted on all people."""
    adjust = env.experiment.spec.select.adjust
    if isinstance(adjust, NoAdjustment):
        return {}
    return {setting: fit(arm, adjust, env.schema) for setting, arm in as_trained.items()}


def _adjusted(
    env: Env,
    as_trained: Mapping[str, Predictions],
    members: Mapping[str, Predictions],
    chosen: Selection,
) -> Adjusted | None:
    """Return how the members' answers are moved, and what the vote gains by it."""
    spec = env.experiment.spec
    if isinstance(spec.select.adjust, NoAdjustment):
        return None
    before = {setting: as_trained[setting] for setting in members}
    weights = dict(zip(chosen.members, chosen.weights, strict=True))
    votes = [_like(arms, _cast(env, arms, weights).pred) for arms in (members, before)]
    change = paired_difference(*votes, metric=_scorer(env))
    return Adjusted(identity(spec.select.adjust), spec.seed, _fits(env, before), change)


def _change_note(adjusted: Adjusted | None) -> str:
    if adjusted is None:
        return ""
    change = adjusted.change
    text = f", adjusted {signed(change.difference)}"
    if change.low is None or change.high is None:
        return text
    return f"{text} ({signed(change.low)} to {signed(change.high)})"


def _scorer(env: Env) -> metrics.Scorer:
    """Return how answers are scored, by the score of the spec."""
    return scorer_of(env.experiment.spec.parsed_score, env.schema)


def _n_params(env: Env, trial: TrialRecord) -> int:
    path = env.store.get("trial", trial.key).path / "model.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["n_params"])


def _with_board_scores(
    env: Env,
    catalog: Catalog,
    prepare: Prepared,
    confirm: Confirmed,
    candidates: list[Candidate],
    fits: Mapping[str, Adjustment],
) -> tuple[list[Candidate], Peeks]:
    """Add a leaderboard's scores: typed in by hand, or seen on the public half."""
    typed = env.experiment.spec.select.scores
    if typed is not None:
        peeks = Peeks("scores typed into the spec", n_candidates=len(typed))
        return selection.give_scores(candidates, typed), peeks
    variants = [candidate.variant for candidate in candidates]
    photos = test_set.read_test_photos(env, catalog, prepare, variants)
    trials: list[TrialRecord] = []
    for candidate in candidates:
        trials += confirm.checkpoints[candidate.setting]
    answers = test_set.answer_public_half(env, catalog, prepare, photos, trials, fits)
    test_set.count_look_at_labels(env, list(answers.values()))
    scored = []
    for candidate in candidates:
        arm = answers[candidate.setting]
        score = metrics.score_of(arm.targets, arm.preds[0], arm.n_classes, _scorer(env))
        scored.append(replace(candidate, board_score=score))
    by = "the public half of the test set"
    title = env.experiment.spec.parsed_score.title
    return scored, Peeks(by, len(candidates), len(photos.public), answers, score=title)


def _corrected_on_board(
    env: Env, answers: Mapping[str, Predictions], chosen: Selection
) -> Corrected:
    """Correct the vote's score on the public half for having been chosen there."""
    spec = env.experiment.spec
    ranked = [candidate.setting for candidate in chosen.candidates]
    pool = selection_bias.Pool(
        [answers[setting] for setting in ranked], spec.vote.rule, metric=_scorer(env)
    )
    choice = tuple(ranked.index(setting) for setting in chosen.members)
    return selection_bias.corrected(
        pool, selection_bias.best_vote, len(choice), seed=spec.seed, choice=choice
    )


def _choose(
    env: Env, candidates: list[Candidate], pool: selection_bias.Pool, order: list[str]
) -> Selection:
    """Choose by the policy of the spec.

    Raises:
        UserError: the policy may choose nobody.
    """
    settings = env.experiment.spec.select
    picks = None
    if settings.policy == "diverse":
        greedy = selection_bias.greedy(pool, pool.everybody, settings.members)[0]
        picks = [order[place] for place in greedy]
    chosen = selection.choose(
        candidates,
        settings.policy,
        settings.members,
        picks,
        score=env.experiment.spec.parsed_score.title,
    )
    if not chosen.members:
        raise UserError(
            f"select: finalists that policy {settings.policy} may choose were required, found none"
        )
    return chosen


def _note(ensemble: EnsembleScores, n_members: int, score: str) -> str:
    bounds = ensemble.scores.headline
    kind = "out-of-fold" if ensemble.split == "oof" else "validation"
    return (
        f"{counted(n_members, 'member')}, {kind} {score} {bounds.estimate:.3f} "
        f"({bounds.low:.3f}-{bounds.high:.3f})"
    )


def _score_ensemble(
    env: Env,
    confirm: Confirmed,
    pool: selection_bias.Pool,
    order: list[str],
    chosen: Selection,
) -> EnsembleScores:
    """Score the vote of the chosen members, and what each of them adds."""
    spec = env.experiment.spec
    members = {setting: pool.candidates[order.index(setting)] for setting in chosen.members}
    weights = dict(zip(chosen.members, chosen.weights, strict=True))
    votes = _cast(env, members, weights)
    vote = _like(members, votes.pred)
    probs = [member.mean_probs for member in members.values()]
    mean_probs = np.average(probs, axis=0, weights=chosen.weights)
    confidences = np.asarray(mean_probs[np.arange(len(votes.pred)), votes.pred], np.float64)
    calibration_error = metrics.calibration_error(confidences, votes.pred == vote.targets)
    scores = score_answers(vote, env.schema, seed=spec.seed, metric=_scorer(env))
    corrected = _corrected(env, pool, order, chosen)
    checkpoints = None
    if spec.confirm:
        checkpoints = checkpoint_curve(
            list(members.values()),
            chosen.weights,
            rule=spec.vote.rule,
            n_deployed=min(len(confirm.checkpoints[setting]) for setting in members),
            seed=spec.seed,
            optimism=(corrected.optimism if corrected else None) or 0.0,
            metric=_scorer(env),
        )
    marginal = _contributions(env, members, weights, vote)
    answers = [member.votes for member in members.values()]
    return EnsembleScores(
        confirm.split,
        replace(scores, calibration_error=calibration_error),
        [[float(np.mean(first == second)) for second in answers] for first in answers],
        marginal,
        _gain(env, members, marginal, vote),
        corrected,
        checkpoints,
    )


def _cast(env: Env, members: Mapping[str, Predictions], weights: Mapping[str, int]) -> voting.Votes:
    """Let members vote on samples that each of their checkpoints held out."""
    return voting.cast(
        [member.votes for member in members.values()],
        [member.mean_probs for member in members.values()],
        env.experiment.spec.vote.rule,
        [weights[setting] for setting in members],
    )


def _like(members: Mapping[str, Predictions], pred: metrics.Ints) -> Predictions:
    """Return the samples of some members, answered by `pred`."""
    return next(iter(members.values())).answered_by(pred)


def _contributions(
    env: Env,
    members: Mapping[str, Predictions],
    weights: Mapping[str, int],
    vote: Predictions,
) -> list[Contribution]:
    """Return what each member scores alone, and what it adds to the vote."""
    contributions = []
    for setting, member in members.items():
        others = {name: other for name, other in members.items() if name != setting}
        adds = None
        if others:
            rest = _like(others, _cast(env, others, weights).pred)
            adds = paired_difference(vote, rest, metric=_scorer(env))
        n_classes = env.schema.n_classes
        macro_f1 = metrics.macro_f1(member.targets, member.votes, n_classes)
        score = None
        if env.experiment.spec.score != DEFAULT:
            score = metrics.score_of(member.targets, member.votes, n_classes, _scorer(env))
        contributions.append(Contribution(setting, weights[setting], macro_f1, adds, score))
    return contributions


def _gain(
    env: Env,
    members: Mapping[str, Predictions],
    marginal: list[Contribution],
    vote: Predictions,
) -> Gain | None:
    """Compare the vote with its best member alone, the first of equal ones."""
    if len(members) < 2:
        return None
    spec = env.experiment.spec
    best = max(marginal, key=_alone).setting
    pool = selection_bias.Pool(list(members.values()), spec.vote.rule, metric=_scorer(env))
    bias = selection_bias.corrected(pool, selection_bias.best_vote, 1, seed=spec.seed).optimism
    alone = _like(members, members[best].votes)
    test = paired_difference(vote, alone, metric=_scorer(env))
    return Gain(best, test, bias or 0.0)


def _alone(member: Contribution) -> float:
    return member.macro_f1 if member.score is None else member.score


def _corrected(
    env: Env, pool: selection_bias.Pool, order: list[str], chosen: Selection
) -> Corrected | None:
    """Correct the vote's score for having been chosen on these very samples.

    Returns:
        None where nothing was chosen on them.
    """
    spec = env.experiment.spec
    choice: tuple[int, ...] = ()
    for setting, votes in zip(chosen.members, chosen.weights, strict=True):
        choice += (order.index(setting),) * votes
    if spec.select.policy == "robust":
        return selection_bias.corrected(
            pool, selection_bias.robust, len(choice), seed=spec.seed, choice=choice
        )
    if spec.select.policy == "diverse":
        return selection_bias.corrected(
            pool,
            selection_bias.greedy,
            len(choice),
            seed=spec.seed,
            choice=choice,
            n_resamples=selection_bias.N_GREEDY_RESAMPLES,
        )
    return None


def _diagnose(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    confirm: Confirmed,
    members: Mapping[str, Predictions],
    weights: list[int],
) -> Diagnosis:
    """Examine the answers of the vote beside its score."""
    spec = env.experiment.spec
    votes = _cast(env, members, dict(zip(members, weights, strict=True)))
    vote = _like(members, votes.pred)
    probs = [member.mean_probs for member in members.values()]
    mean_probs = np.asarray(np.average(probs, axis=0, weights=weights), np.float64)
    columns = _columns(catalog, spec.subgroups, vote.sample_ids)
    scorer = _scorer(env)
    diagnosis = diagnose(vote, mean_probs, env.schema, columns, seed=spec.seed, metric=scorer)
    if confirm.split != "oof":
        return diagnosis
    variants = {confirm.complete_settings[setting] for setting in members}
    excluded: set[str] = set()
    for variant in variants:
        folds = split.folds[variant]
        excluded.update(folds.filter(pc.equal(folds["role"], "excluded"))["sample_id"].to_pylist())
    lost = _lost_photos(split, prepare, variants, without_val=spec.search is not None)
    return replace(
        diagnosis,
        kept=score_kept(vote, excluded, seed=spec.seed, metric=scorer),
        lost=count_lost(vote, lost, seed=spec.seed, metric=scorer),
    )


def _columns(catalog: Catalog, names: list[str], sample_ids: list[str]) -> dict[str, list[Any]]:
    """Return the columns of the table that the spec names, one value per sample."""
    place = {sample: i for i, sample in enumerate(catalog.table["sample_id"].to_pylist())}
    index = [place[sample] for sample in sample_ids]
    columns = {}
    for name in names:
        column = catalog.table[name_in_catalog(name, catalog.table.column_names)]
        columns[name] = column.take(index).to_pylist()
    return columns


def _lost_photos(
    split: Split, prepare: Prepared, variants: set[str], *, without_val: bool
) -> list[LostPhoto]:
    """Return labelled photos that a member cannot answer, because its preparation lost them.

    Args:
        split: of the run.
        prepare: of the run.
        variants: of the members.
        without_val: leave out people of role val, as the headline does.
    """
    lost: dict[str, LostPhoto] = {}
    for variant in variants:
        quarantined = prepare.shards[variant].result["quarantined"]
        folds = split.folds[variant].select(["sample_id", "label", "group", "role"]).to_pylist()
        in_val = {row["group"] for row in folds if row["role"] == "val"}
        for row in folds:
            is_scored = row["role"] != "test" and not (without_val and row["group"] in in_val)
            if row["sample_id"] in quarantined and is_scored and row["label"] is not None:
                photo = LostPhoto(row["sample_id"], row["label"], row["group"])
                lost[photo.sample_id] = photo
    return [lost[sample] for sample in sorted(lost)]
