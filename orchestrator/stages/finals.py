"""The stages that judge: hypotheses, select, vote and report.

Only vote and report see test labels; select sees those of the public half where its policy is to peek.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.evaluation import common_samples as fair
from orchestrator.evaluation import metrics as stats
from orchestrator.evaluation import selection
from orchestrator.evaluation import selection_bias as optimism
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.predictions import HeldOut, Sides, read_held_out, shared
from orchestrator.stages import test_set as board
from orchestrator.stages.context import Context, Done, load_json, majority_class
from orchestrator.stages.phases import phase_trials, ranking
from orchestrator.store import tables
from orchestrator.store.ledger import TrialRecord

_N_GREEDY = 200
"""Resamples of a greedy choice: each tries every candidate for every vote."""


def _judged(context: Context) -> tuple[str, str]:
    """Return the phase and the predictions that choices rest on: search and val where nothing is confirmed."""
    return ("confirm", "oof") if context.experiment.spec.confirm else ("search", "val")


def _checkpoints(context: Context) -> dict[str, list[TrialRecord]]:
    """Return setting -> the trials whose checkpoints answer for it. In search, its first finished one does."""
    phase, _ = _judged(context)
    by_setting: dict[str, list[TrialRecord]] = {}
    for trial in phase_trials(context, phase):
        by_setting.setdefault(trial.setting, []).append(trial)
    if phase == "confirm":
        return by_setting
    done = {s: [t for t in found if t.status == "COMPLETE"][:1] for s, found in by_setting.items()}
    return {setting: found for setting, found in done.items() if found}


def _complete_settings(context: Context) -> dict[str, str]:
    """Return setting -> variant of the candidates whose every trial finished."""
    by_setting = _checkpoints(context)
    return {
        s: found[0].variant
        for s, found in by_setting.items()
        if all(t.status == "COMPLETE" for t in found)
    }


def _held_out(context: Context) -> dict[str, HeldOut]:
    """Return per finalist the predictions that choices rest on, those over other classes left out."""
    found = read_held_out(context.paths.predictions, _judged(context)[1], context.schema.n_classes)
    return {
        setting: found[setting]
        for setting in sorted(_complete_settings(context))
        if setting in found
    }


def _sides(context: Context) -> Sides:
    return Sides.of(context.catalog_table(), context.schema.names)


def _arms(context: Context, found: dict[str, HeldOut], sides: Sides) -> dict[str, stats.Oof]:
    """Return per finalist its out-of-fold predictions with their groups."""
    return {
        setting: sides.oof(one.sample_ids, one.targets, one.preds, context.schema.n_classes)
        for setting, one in found.items()
    }


def _search_scores(context: Context) -> dict[str, float]:
    scores: dict[str, float] = {}
    for setting, _, score in ranking(phase_trials(context, "search")):
        scores[setting] = max(score, scores.get(setting, 0.0))
    return scores


def hypotheses(context: Context) -> Done:
    """Judge the spec's claims on the out-of-fold predictions of each arm's best finalist.

    A claim about an arm that has none, because its trials failed, is a row like the others: undecided, with the reason.
    """
    from orchestrator.evaluation.hypotheses import judge  # noqa: PLC0415

    claims, rows = context.experiment.spec.hypotheses, []
    if claims:
        arms = _arms(context, _held_out(context), _sides(context))
        scores, variants = _search_scores(context), _complete_settings(context)
        best: dict[str, stats.Oof] = {}
        for setting in sorted(arms, key=lambda s: (-scores.get(s, 0.0), s)):
            best.setdefault(variants[setting], arms[setting])
        rows = judge(claims, best, seed=context.experiment.spec.seed)
    write_json(context.paths.hypotheses, rows)
    return Done("SUCCEEDED", "; ".join(f"{row['claim']}: {row['verdict']}" for row in rows))


def select(context: Context) -> Done:
    """Choose the members of the ensemble, and say what their vote is worth."""
    spec, scores, variants = (
        context.experiment.spec,
        _search_scores(context),
        _complete_settings(context),
    )
    found, sides, n_classes = _held_out(context), _sides(context), context.schema.n_classes
    trials = _checkpoints(context)
    full = _arms(context, found, sides)
    arms = fair.shared(full)
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
            "n_left_out": len(full[setting].sample_ids) - len(oof.sample_ids)
        }  # photos that another arm excluded
        for setting, oof in sorted(arms.items())
    ]
    peeks = None
    if spec.select.policy == "leaderboard":
        candidates, peeks = _with_board(context, candidates)
    robust = [c["setting"] for c in selection.rank(candidates, "robust")]
    together = shared({setting: found[setting] for setting in robust})
    pool = None  # variants split differently may have no photo in common; then nothing can be said of their best
    if next(iter(together.values())).sample_ids:
        pool = optimism.Pool(
            list(together.values()), _like(sides, together, n_classes), spec.vote.rule
        )
    picks = None
    if spec.select.policy == "diverse" and pool:
        every = np.ones((1, len(pool.strata)))
        picks = [robust[at] for at in optimism.greedy(pool, every, spec.select.members)[0]]
    chosen = selection.choose(candidates, spec.select.policy, spec.select.members, picks)
    if not chosen["members"]:
        raise UserError(
            f"select: finalists that policy {spec.select.policy} may choose were required, found none"
        )
    chosen["peeks"] = peeks
    chosen["vote"] = {"rule": spec.vote.rule, "tie": voting.TIE_RULE}
    rests_on = _judged(context)[1]
    members = shared({setting: found[setting] for setting in chosen["members"]})
    if not next(iter(members.values())).sample_ids:
        raise UserError(
            "select: photos that all members held out were required, found none; give them one data.split"
        )
    chosen["ensemble"] = {
        "oof": None,
        rests_on: _vote_scores(context, sides, members, chosen["weights"]),
        "test": None,
        **_about_members(context, sides, members, chosen["weights"]),
        "corrected": _corrected(context, pool, sum(chosen["weights"])),
    }
    if pool:
        ((first,),) = optimism.best(pool, np.ones((1, len(pool.strata))), 1)
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
    by_setting = _checkpoints(context)
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


def _like(
    sides: Sides, members: dict[str, HeldOut], n_classes: int, pred: stats.Ints | None = None
) -> stats.Oof:
    """Return the samples of some members with their groups, answered by `pred`."""
    first = next(iter(members.values()))
    return sides.oof(
        first.sample_ids, first.targets, first.preds if pred is None else pred[None], n_classes
    )


def _cast(context: Context, members: dict[str, HeldOut], weights: list[int]) -> voting.Votes:
    """Let members vote on samples that each of their checkpoints held out."""
    arms = members.values()
    return voting.cast(
        [m.votes for m in arms], [m.probs for m in arms], context.experiment.spec.vote.rule, weights
    )


def _vote_scores(
    context: Context, sides: Sides, members: dict[str, HeldOut], weights: list[int]
) -> dict[str, Any]:
    """Return the headline: the scores of the vote, and how far its mean probability can be believed."""
    votes = _cast(context, members, weights)
    oof = _like(sides, members, context.schema.n_classes, votes.pred)
    mean = np.average([m.probs for m in members.values()], axis=0, weights=weights)
    sure = mean[np.arange(len(votes.pred)), votes.pred]
    return {
        **_scores(context, oof),
        "calibration_error": stats.calibration_error(sure, votes.pred == oof.targets),
    }


def _about_members(
    context: Context, sides: Sides, members: dict[str, HeldOut], weights: list[int]
) -> dict[str, Any]:
    """Return how often members agree, what each adds to the vote, and what the vote adds to the best of them."""
    n_classes, seed, names = context.schema.n_classes, context.experiment.spec.seed, list(members)
    whole = _like(sides, members, n_classes, _cast(context, members, weights).pred)
    answers = np.stack([one.votes for one in members.values()])
    alone = {name: _like(sides, members, n_classes, one.votes) for name, one in members.items()}
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
                sides,
                others,
                n_classes,
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


def _scores(context: Context, oof: stats.Oof) -> dict[str, Any]:
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


def vote(context: Context) -> Done:
    """Let the members vote on the test photos; only here are the private labels opened."""
    spec = context.experiment.spec
    if spec.data.test is None:
        return Done("SUCCEEDED", "no test set")
    chosen = load_json(context.paths.selection)
    by_setting = _checkpoints(context)
    trials = [trial for setting in chosen["members"] for trial in by_setting[setting]]
    seen = board.read_board(context, (trial.variant for trial in trials))
    readable = [sample for sample, _ in seen.order if sample not in seen.lost]
    members, found = board.answers(context, trials, readable)
    known = tables.read(context.paths.predictions, filters=[("split", "!=", "test")]).cast(
        tables.PREDICTIONS
    )
    tables.write(
        pa.concat_tables([known, board.prediction_table(found, readable)]),
        context.paths.predictions,
    )
    table = voting.vote_table(
        seen.order,
        members,
        quarantined=seen.lost,
        majority=majority_class(context),
        rule=spec.vote.rule,
        weights=chosen["weights"],
    )
    tables.write(table, context.paths.votes)
    context.paths.submission.write_text(voting.submission(table), encoding="utf-8")
    labels = board.open_labels(context, seen, "whole", by="vote")
    if labels is None:
        return Done("SUCCEEDED", f"{len(table)} photos, no test labels")
    tables.write(board.label_table(seen, labels), context.paths.test_labels)
    preds = dict(zip(table["sample_id"].to_pylist(), table["pred"].to_pylist(), strict=True))
    for name, part in (("public", "public"), ("test", seen.judged)):
        if part != "public" or seen.public:
            chosen["ensemble"][name] = {
                "part": part,
                **_scores(context, board.scored(context, seen, part, preds, labels)),
            }
    if seen.public:
        chosen["ensemble"]["board"] = board.board_rows(context, seen, members, table, labels)
    write_json(context.paths.selection, chosen)
    bounds = chosen["ensemble"]["test"]["macro_f1"]
    half = "private half: " if seen.public else ""
    return Done(
        "SUCCEEDED",
        f"{len(table)} photos, {half}test macro F1 {bounds['estimate']:.3f} ({bounds['low']:.3f}-{bounds['high']:.3f})",
    )


def report(context: Context) -> Done:
    """Predict a few photos again through `predict`, write the certificate and the page.

    Raises:
        UserError: a member's answers through `predict` are not the stored ones. The page is written before.
    """
    from orchestrator.report.page import build  # noqa: PLC0415
    from orchestrator.stages.certificate import certify  # noqa: PLC0415

    made = certify(context)
    page = build(context.paths.root)
    if not made["check"]["equal"]:
        raise UserError(
            f"the answers of `predict` were required to equal the stored ones, found differences: "
            f"{made['check']['why']}; do not use this ensemble, see {page}"
        )
    return Done("SUCCEEDED", str(page))
