"""The confirm stage: the finalists are trained again over seeds and folds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.base.errors import UserError
from orchestrator.base.wording import counted, signed
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, Found
from orchestrator.planning.stage_keys import confirm_key, prepare_keys, search_key
from orchestrator.spec.claims import parse
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched, val_samples
from orchestrator.stages.split import Split

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.evaluation.predictions import Predictions
    from orchestrator.evaluation.race import RaceResult, Stopped
    from orchestrator.search.trial import TrialSpec
    from orchestrator.spec.search_space import Confirm
    from orchestrator.stages.trial_phase import Trainings
    from orchestrator.store.ledger import TrialRecord


@dataclass(frozen=True)
class Confirmed:
    """The checkpoints and predictions that choices depend on.

    Where nothing is confirmed, these are the ones of the search.
    """

    outcome: str
    note: str
    split: str  # oof, or val where nothing is confirmed
    trials: tuple[TrialRecord, ...]
    checkpoints: Mapping[str, Sequence[TrialRecord]]  # setting -> trials that answer for it
    predictions: pa.Table  # of all trials of the run
    race: RaceResult | None = None  # None where every finalist ran to its end

    @property
    def complete_settings(self) -> dict[str, str]:
        """Setting -> variant of the candidates whose every trial finished."""
        complete = {}
        for setting, trials in self.checkpoints.items():
            if all(trial.status == "COMPLETE" for trial in trials):
                complete[setting] = trials[0].variant
        return complete


class Point(NamedTuple):
    """What a finalist is: a variant and a point of its search space."""

    variant: str
    params: dict[str, Any]


def find(scope: Scope, catalog: Catalog) -> Found:
    """Find the confirmation of the finalists, where the search is finished."""
    experiment = scope.experiment
    if experiment.spec.confirm is None:
        return Found("confirm: null", is_cached=True)
    prepared = prepare_keys(experiment, catalog.photos)
    search = scope.store.find("search", search_key(experiment, catalog.content, prepared))
    if search is None:
        return Found("waits for the finalists of the search")
    from orchestrator.evaluation.selection import finalists  # noqa: PLC0415 - imports NumPy

    ranking = [(setting, variant, score) for setting, variant, score in search.result["ranking"]]
    chosen = finalists(
        ranking,
        experiment.spec.confirm.finalists,
        list(experiment.arms),
        search.result.get("sizes"),
    )
    key = confirm_key(experiment, catalog.content, prepared, chosen)
    is_cached = scope.store.find("confirm", key) is not None
    why = "waits for the finalists of the search"
    return Found(
        "the same finalists were confirmed before" if is_cached else why,
        is_cached=is_cached,
        key=key,
        artifacts=frozenset({("confirm", key)}),
    )


def run(env: Env, catalog: Catalog, split: Split, prepare: Prepared, search: Searched) -> Confirmed:
    """Train the finalists again over seeds and folds; no trial sees its own fold.

    Raises:
        UserError: all trials failed.
    """
    from orchestrator.search.trial_tables import write_tables  # noqa: PLC0415
    from orchestrator.stages import trial_phase as phase  # noqa: PLC0415

    env.paths.tune.joinpath("confirm").mkdir(parents=True, exist_ok=True)
    wanted = env.experiment.spec.confirm
    if wanted is None:
        predictions = _collect(env, catalog, search.trials)
        checkpoints = _first_finished(search.trials)
        return Confirmed(SUCCEEDED, "confirm: null", "val", (), checkpoints, predictions)
    points = choose_points(search, wanted, list(env.experiment.arms))
    key = confirm_key(env.experiment, catalog.content, prepare.keys, list(points))
    is_loaded = phase.load_phase(env, "confirm", key)
    if not is_loaded:
        _train(phase.Trainings(env, catalog, split, prepare), wanted, points)
    state = env.ledger.state
    write_tables(state, env.schema.names, env.paths)
    trials = [trial for trial in state.trials.values() if trial.phase == "confirm"]
    if not any(trial.status == "COMPLETE" for trial in trials):
        raise UserError(
            f"confirm: at least one finished trial was required, all {len(trials)} failed; "
            "see `results`"
        )
    phase.save_phase(env, "confirm", key, trials)
    return Confirmed(
        CACHED if is_loaded else SUCCEEDED,
        phase.trials_note(env, trials),
        "oof",
        tuple(trials),
        _by_setting(trials),
        _collect(env, catalog, state.trials.values(), val_samples(split)),
        _race_result(env, wanted, len(points), len(trials)) if wanted.race else None,
    )


def _collect(
    env: Env,
    catalog: Catalog,
    trials: Iterable[TrialRecord],
    of_val: Mapping[str, Collection[str]] | None = None,
) -> pa.Table:
    """Return the predictions of finished trials, averaged over groups where the spec says so."""
    from orchestrator.evaluation.predictions import with_group_means  # noqa: PLC0415
    from orchestrator.search.trial_tables import collect_predictions  # noqa: PLC0415
    from orchestrator.stages.test_set import group_mean  # noqa: PLC0415

    rows = collect_predictions(trials, env.store, of_val)
    mean = group_mean(env)
    if mean is None:
        return rows
    table = catalog.table
    groups = dict(zip(table["sample_id"].to_pylist(), table["group"].to_pylist(), strict=True))
    return with_group_means(rows, mean, groups)


def _by_setting(trials: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    by_setting: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        by_setting.setdefault(trial.setting, []).append(trial)
    return by_setting


def choose_points(search: Searched, wanted: Confirm, variants: list[str]) -> dict[str, Point]:
    """Return the finalists and their points, the best first."""
    from orchestrator.evaluation.selection import finalists  # noqa: PLC0415

    points = {}
    for trial in search.trials:
        if trial.status == "COMPLETE":
            points[trial.setting] = Point(trial.variant, trial.params)
    chosen = finalists(list(search.ranking), wanted.finalists, variants, search.sizes)
    return {setting: points[setting] for setting in chosen}


def predictions_by_setting(
    env: Env, catalog: Catalog, confirm: Confirmed
) -> dict[str, Predictions]:
    """Return the predictions of each complete setting on photos that were held out.

    Settings that answer over other classes are left out.
    """
    import pyarrow.compute as pc  # noqa: PLC0415

    from orchestrator.evaluation.predictions import by_setting, groups_of  # noqa: PLC0415

    rows = confirm.predictions.filter(pc.equal(confirm.predictions["split"], confirm.split))
    arms = by_setting(rows, env.schema.n_classes, groups_of(catalog.table))
    return {name: arms[name] for name in sorted(confirm.complete_settings) if name in arms}


def held_out_predictions(
    env: Env, catalog: Catalog, split: Split, confirm: Confirmed
) -> dict[str, Predictions]:
    """Return setting -> the predictions that choices depend on.

    Where a search chose among settings, the people of role val are left out: their labels chose
    the settings. By strategy random nearly everybody has a photo there, so these photos alone are.
    """
    arms = predictions_by_setting(env, catalog, confirm)
    if confirm.split != "oof" or env.experiment.spec.search is None:
        return arms
    variants = confirm.complete_settings
    for setting, arm in arms.items():
        variant = variants[setting]
        is_random = env.experiment.arms[variant].data.split.strategy == "random"
        unit = "sample_id" if is_random else "group"
        arms[setting] = _without_val(split.folds[variant], arm, unit)
    return arms


def _without_val(folds: pa.Table, arm: Predictions, unit: str) -> Predictions:
    """Return the samples that are not of role val, by `unit`: group or sample_id."""
    rows = zip(folds[unit].to_pylist(), folds["role"].to_pylist(), strict=True)
    in_val = {name for name, role in rows if role == "val"}
    names = arm.sample_ids if unit == "sample_id" else arm.groups or arm.sample_ids
    owners = zip(arm.sample_ids, names, strict=True)
    return arm.among({sample for sample, name in owners if name not in in_val})


def _first_finished(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Return setting -> its first finished trial."""
    finished: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.status == "COMPLETE":
            finished.setdefault(trial.setting, [trial])
    return finished


def _train(trainings: Trainings, wanted: Confirm, points: Mapping[str, Point]) -> None:
    from orchestrator.search.controller import TrialController  # noqa: PLC0415
    from orchestrator.stages.trial_phase import (  # noqa: PLC0415
        card_shares,
        feature_sources,
        phase_trials,
        train_all,
    )
    from orchestrator.store.event_types import PhaseStarted  # noqa: PLC0415

    env = trainings.env
    trainings.check()
    sources = feature_sources(env.experiment)
    specs = describe_trials(trainings.describe, wanted, points, sources)
    by_id = {spec.trial_id: spec for spec in specs}
    known = {trial.trial_id for trial in phase_trials(env, "confirm")}
    env.ledger.append(PhaseStarted(phase="confirm"), commit=True)
    new = [spec for spec in specs if spec.trial_id not in known]
    proposals = propose_in_order(new, lambda: controller.records)
    if wanted.race:
        compare = _comparison(trainings, wanted, points, sources)
        proposals = propose_race(specs, known, wanted.seeds, lambda: controller.records, compare)
    controller = TrialController(
        env.ledger,
        "confirm",
        proposals,
        resume=lambda trial: (by_id[trial.trial_id], None),
        finished=trainings.stored_history,
        shares=card_shares(env),
        is_lost=trainings.is_lost,
    )
    train_all(env, controller, "confirm", len(specs))


def describe_trials(
    describe: Callable[..., TrialSpec],
    wanted: Confirm,
    points: Mapping[str, Point],
    sources: Mapping[str, str],
) -> list[TrialSpec]:
    """Describe the trials of confirm, settings x seeds x folds, sources before their dependents.

    Head frozen_deep depends on its source's best setting at the same seed and fold.

    Args:
        describe: makes one trial.
        wanted: the seeds and folds.
        points: the finalists, the best first.
        sources: variant -> the variant whose feature map it depends on.
    """
    specs: list[TrialSpec] = []
    keys: dict[tuple[str, int, int], str] = {}
    for setting in sorted(points, key=lambda name: points[name].variant in sources):
        variant, params = points[setting]
        source = sources.get(variant)
        of_source = (name for name, point in points.items() if point.variant == source)
        best = next(of_source, "")
        for seed, fold in itertools.product(wanted.seeds, range(wanted.folds)):
            spec = describe(
                f"c-{setting}-s{seed}-f{fold}",
                "confirm",
                variant,
                params,
                seed=seed,
                fold=fold,
                source=keys.get((best, seed, fold)),
            )
            specs.append(spec)
            keys[setting, seed, fold] = spec.key
    return specs


def propose_in_order(
    specs: list[TrialSpec], known: Callable[[], dict[str, TrialRecord]]
) -> Iterator[tuple[TrialSpec, None] | None]:
    """Propose each trial once its source has ended; None where all that are left wait."""
    waiting = list(specs)
    while waiting:
        unfinished = {trial.key for trial in known().values() if trial.status is None}
        unfinished |= {spec.key for spec in waiting}
        ready = next((spec for spec in waiting if spec.source not in unfinished), None)
        if ready is None:
            yield None
            continue
        waiting.remove(ready)
        yield ready, None


def propose_race(
    specs: Sequence[TrialSpec],
    started: Collection[str],
    seeds: Sequence[int],
    known: Callable[[], dict[str, TrialRecord]],
    compare: Callable[[int, list[TrialRecord]], set[str]],
) -> Iterator[tuple[TrialSpec, None] | None]:
    """Propose the trials seed by seed; a setting that a look stops gets no further seed.

    Args:
        specs: all trials of a confirmation without a race.
        started: ids of trials that an earlier driver started.
        seeds: in their order.
        known: returns the trials of this phase by id.
        compare: takes the number of a look and the finished trials so far; returns the settings
            that are stopped.
    """
    stopped: set[str] = set()
    for look, seed in enumerate(seeds, 1):
        batch = [spec for spec in specs if spec.seed == seed and spec.setting not in stopped]
        yield from propose_in_order([s for s in batch if s.trial_id not in started], known)
        if look == len(seeds):
            return
        while not all(_has_ended(known(), spec.trial_id) for spec in batch):
            yield None
        so_far = set(seeds[:look])
        finished = []
        for trial in known().values():
            if trial.started.seed in so_far and trial.setting not in stopped:
                finished.append(trial)
        stopped |= compare(look, finished)


def _has_ended(trials: Mapping[str, TrialRecord], trial_id: str) -> bool:
    return trial_id in trials and trials[trial_id].status is not None


def _comparison(
    trainings: Trainings,
    wanted: Confirm,
    points: Mapping[str, Point],
    sources: Mapping[str, str],
) -> Callable[[int, list[TrialRecord]], set[str]]:
    """Return the looks of a race. A look that the ledger knows is not taken again."""
    from orchestrator.evaluation.race import RaceRules, stop_losers  # noqa: PLC0415
    from orchestrator.evaluation.scores_with_intervals import scorer_of  # noqa: PLC0415
    from orchestrator.store.event_types import RaceLooked  # noqa: PLC0415

    env = trainings.env
    spec = env.experiment.spec
    protected = protected_settings(points, spec.hypotheses, sources)
    rules = RaceRules(len(points), len(wanted.seeds) - 1, spec.select.members, protected)

    def compare(look: int, trials: list[TrialRecord]) -> set[str]:
        taken = {event.look: event for event in env.ledger.events if isinstance(event, RaceLooked)}
        if look not in taken:
            table = _collect(env, trainings.catalog, trials)
            so_far = Confirmed("", "", "oof", tuple(trials), _by_setting(trials), table)
            arms = held_out_predictions(env, trainings.catalog, trainings.split, so_far)
            scorer = scorer_of(spec.parsed_score, env.schema)
            stopped = stop_losers(arms, rules, look, scorer)
            facts = [row.to_json() for row in stopped]
            event = RaceLooked(look=look, n_seeds=look, n_compared=len(arms), stopped=facts)
            env.ledger.append(event, commit=True)
            taken[look] = event
            for row in stopped:
                text = _stopped_text(row, points, spec.parsed_score.title)
                env.console.say(f"  race: {text}")
        return {row["setting"] for row in taken[look].stopped}

    return compare


def _stopped_text(row: Stopped, points: Mapping[str, Point], score: str) -> str:
    seeds = counted(row.n_seeds, "seed")
    return (
        f"{points[row.setting].variant} {row.setting} is stopped after {seeds}: "
        f"{signed(row.difference)} {score} behind {row.behind}, adjusted p {row.p_adjusted:.3f}"
    )


def protected_settings(
    points: Mapping[str, Point], claims: Sequence[str], sources: Mapping[str, str]
) -> set[str]:
    """Return the settings that a race never stops.

    They are the best setting of each arm that a claim names, and of each arm whose feature map
    another arm depends on.

    Args:
        points: the finalists, the best first.
        claims: of the spec.
        sources: variant -> the variant whose feature map it depends on.
    """
    needed = {sources[point.variant] for point in points.values() if point.variant in sources}
    for text in claims:
        claim = parse(text)
        needed |= {claim.better, claim.worse}
    best: dict[str, str] = {}
    for setting, point in points.items():
        best.setdefault(point.variant, setting)
    return {best[variant] for variant in needed if variant in best}


def _race_result(env: Env, wanted: Confirm, n_finalists: int, n_trained: int) -> RaceResult:
    """Return what the race did, from the ledger."""
    from orchestrator.evaluation.race import RaceResult, Stopped  # noqa: PLC0415
    from orchestrator.store.event_types import RaceLooked  # noqa: PLC0415

    looks = [event for event in env.ledger.events if isinstance(event, RaceLooked)]
    stopped = [Stopped(**row) for event in looks for row in event.stopped]
    n_trainings = n_finalists * len(wanted.seeds) * wanted.folds
    return RaceResult(
        n_finalists,
        len(wanted.seeds) - 1,
        len(looks),
        n_trainings,
        n_trainings - n_trained,
        tuple(stopped),
    )
