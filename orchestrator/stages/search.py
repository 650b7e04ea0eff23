"""The search stage: one trial per setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.base.errors import UserError
from orchestrator.planning.stage import CACHED, SUCCEEDED, Env, Found, Scope
from orchestrator.planning.stage_keys import prepare_keys, search_key, study_families
from orchestrator.search.reuse import earlier, write_families
from orchestrator.spec.search_space import Search
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.split import Split

if TYPE_CHECKING:
    from orchestrator.search.trial import TrialSpec
    from orchestrator.stages.trial_phase import Ranked, Trainings
    from orchestrator.store.ledger import TrialRecord


@dataclass(frozen=True)
class Searched:
    """The trials of a search."""

    outcome: str
    note: str
    trials: tuple[TrialRecord, ...]
    ranking: tuple[Ranked, ...]  # of the finished trials

    @property
    def scores(self) -> dict[str, float]:
        """Setting -> the best score of its trials."""
        scores: dict[str, float] = {}
        for setting, _, score in self.ranking:
            scores[setting] = max(score, scores.get(setting, 0.0))
        return scores


def find(scope: Scope, catalog: Catalog) -> Found:
    """Find the finished search."""
    experiment = scope.experiment
    prepared = prepare_keys(experiment, catalog.photos)
    key = search_key(experiment, catalog.content, prepared)
    is_cached = scope.store.find("search", key) is not None
    why = "settings, data or splits are new; finished trials are reused one by one"
    if is_cached:
        why = "the same trials on the same data were finished"
    return Found(why, is_cached=is_cached, key=key, artifacts=frozenset({("search", key)}))


def run(env: Env, catalog: Catalog, split: Split, prepare: Prepared) -> Searched:
    """Try settings: one trial each, trained on role train and scored on role val.

    Raises:
        UserError: no trial was finished.
    """
    from orchestrator.search.trial_tables import write_tables  # noqa: PLC0415
    from orchestrator.stages import trial_phase as phase  # noqa: PLC0415

    key = search_key(env.experiment, catalog.content, prepare.keys)
    is_loaded = phase.load_phase(env, "search", key)
    if not is_loaded:
        _train(phase.Trainings(env, catalog, split, prepare))
    state = env.ledger.state
    write_tables(state, env.schema.names, env.paths)
    trials = [trial for trial in state.trials.values() if trial.phase == "search"]
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.error or trial.why) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, none of {len(trials)} is: "
            f"{'; '.join(causes[:3])}"
        )
    ranking = phase.rank_trials(trials, env.store, env.experiment.spec.parsed_score, env.schema)
    phase.save_phase(env, "search", key, trials, ranking)
    return Searched(
        CACHED if is_loaded else SUCCEEDED,
        phase.trials_note(env, trials),
        tuple(trials),
        tuple(ranking),
    )


def _train(trainings: Trainings) -> None:
    from orchestrator.search.study import Studies, search_controller  # noqa: PLC0415
    from orchestrator.stages.trial_phase import (  # noqa: PLC0415
        card_shares,
        feature_sources,
        train_all,
    )
    from orchestrator.store.event_types import PhaseStarted  # noqa: PLC0415

    env = trainings.env
    experiment = trainings.env.experiment
    spec = experiment.spec
    variants = list(experiment.arms)
    sources = feature_sources(experiment)

    def describe(trial_id: str, variant: str, point: dict[str, Any]) -> TrialSpec:
        best = None
        if variant in sources:
            best = _best_trial(controller.records.values(), sources[variant])
        return trainings.describe(
            trial_id if trial_id.startswith("s-") else f"s-{trial_id}",
            "search",
            variant,
            point,
            seed=spec.seed,
            source=best.key if best else None,
        )

    trainings.check()
    search = spec.search or Search(trials=1)
    _replay_earlier(trainings, search)
    env.ledger.append(PhaseStarted(phase="search"), commit=True)
    studies = Studies(
        env.paths.run_id, search, variants, spec.seed, describe, sources, env.console.say
    )
    controller = search_controller(
        studies,
        env.ledger,
        {name: arm.train.duration for name, arm in experiment.arms.items()},
        finished=trainings.stored_history,
        gpus_per_trial=spec.resources.per_trial.least_gpu,
        shares=card_shares(env),
        is_lost=trainings.is_lost,
    )
    train_all(env, controller, "search", studies.n_trials)


def _best_trial(trials: Iterable[TrialRecord], variant: str) -> TrialRecord | None:
    """Return the best finished trial of a variant, ordered as finalists are."""
    from orchestrator.store.event_types import objective  # noqa: PLC0415

    finished = [t for t in trials if t.variant == variant and t.status == "COMPLETE"]
    return min(finished, key=lambda t: (-objective(t.metrics), t.setting), default=None)


def _replay_earlier(trainings: Trainings, search: Search) -> None:
    """Write the trials of an earlier run of the same study into the ledger of a run without any."""
    from orchestrator.stages.trial_phase import phase_trials  # noqa: PLC0415

    env = trainings.env
    content = trainings.catalog.content
    prepared = trainings.prepare.keys
    families = study_families(env.experiment, content, prepared)
    if not phase_trials(env, "search"):
        studies = earlier(env.store, families, search, besides=env.paths.run_id)
        for study in studies.values():
            for event in study.events:
                env.ledger.append(event)
            env.console.say(f"  search: {study.n_trials} trials are taken from run {study.run_id}")
    write_families(env.paths.root, families)
