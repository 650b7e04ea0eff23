"""The confirm stage: the finalists are trained again over seeds and folds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.base.errors import UserError
from orchestrator.evaluation import selection
from orchestrator.evaluation.predictions import Predictions, groups_of, read_predictions
from orchestrator.search.controller import Bridge
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_tables import collect, write_tables
from orchestrator.spec.search_space import Confirm
from orchestrator.stages.context import Context, Done
from orchestrator.stages.trial_phase import (
    before_trials,
    describe_trial,
    in_store,
    keep,
    note,
    phase_trials,
    ranking,
    reuse,
    run_phase,
    sources,
)
from orchestrator.store import tables
from orchestrator.store.events import (
    PhaseStarted,
)
from orchestrator.store.ledger import TrialRecord


def confirm(context: Context) -> Done:
    """Train the finalists again over seeds and folds, each blind to its fold."""
    wanted = context.experiment.spec.confirm
    context.paths.tune.joinpath("confirm").mkdir(parents=True, exist_ok=True)
    if wanted is None:
        collect(context)
        return Done("SUCCEEDED", "confirm: null")
    found = phase_trials(context, "search")
    chosen = selection.finalists(ranking(found), wanted.finalists, list(context.experiment.arms))
    points = {t.setting: (t.variant, t.params) for t in found if t.status == "COMPLETE"}
    key = context.keys.confirm(context.require_catalog(), chosen)
    reused = reuse(context, "confirm", key)
    if not reused:
        before_trials(context)
        specs = _confirm_trials(context, wanted, {setting: points[setting] for setting in chosen})
        by_id = {spec.trial_id: spec for spec in specs}
        known = {trial.trial_id for trial in phase_trials(context, "confirm")}
        context.ledger.append(PhaseStarted(phase="confirm"), commit=True)
        bridge = Bridge(
            context.ledger,
            "confirm",
            _in_order([spec for spec in specs if spec.trial_id not in known], lambda: bridge.known),
            resume=lambda trial: (by_id[trial.trial_id], None),
            finished=in_store(context),
        )
        run_phase(context, bridge, "confirm", len(specs))
    trials = phase_trials(context, "confirm")
    write_tables(context)
    collect(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        raise UserError(
            f"confirm: at least one finished trial was required, all {len(trials)} failed; see `results`"
        )
    keep(context, "confirm", key, {})
    return Done("CACHED" if reused else "SUCCEEDED", note(context, trials))


def _confirm_trials(
    context: Context, wanted: Confirm, points: dict[str, tuple[str, dict[str, Any]]]
) -> list[TrialSpec]:
    """Describe the trials of confirm: settings x seeds x folds, a source's before those that stand on it.

    Head frozen_deep stands on its source's best setting at the same seed and fold: the first of the source's in
    `points`, which come best first and hold the best setting of every variant.
    """
    stands_on, keys, specs = sources(context.experiment), dict[tuple[str, int, int], str](), []
    for setting, (variant, point) in sorted(
        points.items(), key=lambda item: item[1][0] in stands_on
    ):
        best = next(
            (name for name, (owner, _) in points.items() if owner == stands_on.get(variant)), ""
        )
        for seed, fold in itertools.product(wanted.seeds, range(wanted.folds)):
            source = keys.get((best, seed, fold))
            trial_id = f"c-{setting}-s{seed}-f{fold}"
            specs.append(
                describe_trial(
                    context, trial_id, "confirm", variant, point, seed, fold, source=source
                )
            )
            keys[setting, seed, fold] = specs[-1].key
    return specs


def _in_order(
    specs: list[TrialSpec], known: Callable[[], dict[str, TrialRecord]]
) -> Iterator[tuple[TrialSpec, None] | None]:
    """Propose each trial once what it stands on has ended; None where all that are left wait."""
    waiting = list(specs)
    while waiting:
        open_ = {trial.key for trial in known().values() if trial.status is None}
        open_ |= {spec.key for spec in waiting}
        ready = next((spec for spec in waiting if spec.source not in open_), None)
        if ready is None:
            yield None
            continue
        waiting.remove(ready)
        yield ready, None


def judged(context: Context) -> tuple[str, str]:
    """Return the phase and the predictions that choices rest on: search and val where nothing is confirmed."""
    return ("confirm", "oof") if context.experiment.spec.confirm else ("search", "val")


def checkpoints(context: Context) -> dict[str, list[TrialRecord]]:
    """Return setting -> the trials whose checkpoints answer for it. In search, its first finished one does."""
    phase, _ = judged(context)
    by_setting: dict[str, list[TrialRecord]] = {}
    for trial in phase_trials(context, phase):
        by_setting.setdefault(trial.setting, []).append(trial)
    if phase == "confirm":
        return by_setting
    done = {s: [t for t in found if t.status == "COMPLETE"][:1] for s, found in by_setting.items()}
    return {setting: found for setting, found in done.items() if found}


def complete_settings(context: Context) -> dict[str, str]:
    """Return setting -> variant of the candidates whose every trial finished."""
    by_setting = checkpoints(context)
    return {
        s: found[0].variant
        for s, found in by_setting.items()
        if all(t.status == "COMPLETE" for t in found)
    }


def held_out(context: Context) -> dict[str, Predictions]:
    """Return per finalist the predictions that choices rest on.

    Settings over other classes are left out. Where a search chose among settings, the people of
    role val are left out too: their labels chose the settings.
    """
    split = judged(context)[1]
    groups = groups_of(context.catalog_table())
    arms = read_predictions(context.paths.predictions, split, context.schema.n_classes, groups)
    variants = complete_settings(context)
    arms = {setting: arms[setting] for setting in sorted(variants) if setting in arms}
    if split == "oof" and context.experiment.spec.search is not None:
        for setting, arm in arms.items():
            untouched = _without_val(context, variants[setting], arm)
            arms[setting] = untouched if untouched.sample_ids else arm
    return arms


def _without_val(context: Context, variant: str, arm: Predictions) -> Predictions:
    """Return the samples of groups that have no photo in role val."""
    rows = tables.read(
        context.folds[variant].file("folds.parquet"), ["group", "role"], [("role", "=", "val")]
    )
    of_val = set(rows["group"].to_pylist())
    owners = arm.groups or arm.sample_ids
    kept = [sample for sample, o in zip(arm.sample_ids, owners, strict=True) if o not in of_val]
    return arm.among(set(kept))


def search_scores(context: Context) -> dict[str, float]:
    """Return the best search score of each setting."""
    scores: dict[str, float] = {}
    for setting, _, score in ranking(phase_trials(context, "search")):
        scores[setting] = max(score, scores.get(setting, 0.0))
    return scores
