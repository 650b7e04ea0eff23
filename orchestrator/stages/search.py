"""The search stage: one trial per setting."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.base.errors import UserError
from orchestrator.base.wording import counted
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, Found
from orchestrator.planning.stage_keys import prepare_keys, search_key, study_families
from orchestrator.search.reuse import earlier, write_families
from orchestrator.spec.search_space import FoldStep, Search
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.split import Split
from orchestrator.store.fold_means import fold_means, fold_trainings

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.search.trial import TrialSpec
    from orchestrator.stages.trial_phase import Ranked, Trainings
    from orchestrator.store.ledger import TrialRecord

_ENOUGH_GROUPS = 30
"""A fold that fewer groups score says little of a setting."""


@dataclass(frozen=True)
class Searched:
    """The trials of a search."""

    outcome: str
    note: str
    trials: tuple[TrialRecord, ...]
    ranking: tuple[Ranked, ...]  # of the finished trials
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Setting -> its parameters, where the search aims at few of them."""

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

    With `search.folds`, a setting is trained on folds of confirm, and scored on the people of role
    val that each of them held out. So no label of another person chooses a setting.

    Raises:
        UserError: no setting was finished.
    """
    from orchestrator.search.trial_tables import write_tables  # noqa: PLC0415
    from orchestrator.stages import trial_phase as phase  # noqa: PLC0415
    from orchestrator.store.event_types import N_PARAMS  # noqa: PLC0415

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
    search = env.experiment.spec.search
    if search is not None and search.folds is not None:
        ranking = rank_settings(trials, search.folds)
    else:
        ranking = phase.rank_trials(trials, env.store, env.experiment.spec.parsed_score, env.schema)
    sizes = {
        trial.setting: trial.metrics[N_PARAMS] for trial in trials if N_PARAMS in trial.metrics
    }
    phase.save_phase(env, "search", key, trials, ranking, sizes)
    return Searched(
        CACHED if is_loaded else SUCCEEDED,
        phase.trials_note(env, trials),
        tuple(trials),
        tuple(ranking),
        sizes,
    )


def rank_settings(trials: Iterable[TrialRecord], n_folds: int) -> list[Ranked]:
    """Return the settings that were trained on all their folds, with their means.

    Raises:
        UserError: there is none.
    """
    from orchestrator.stages.trial_phase import Ranked  # noqa: PLC0415

    trials = list(trials)
    ranking = []
    for mean in fold_means(fold_trainings(trials)):
        if mean.n_folds == n_folds:
            ranking.append(Ranked(mean.setting, mean.variant, mean.score))
    if not ranking:
        n_settings = len({trial.setting for trial in trials})
        raise UserError(
            f"search: at least one setting with all its {n_folds} folds was required, none of "
            f"{n_settings} has them; allow more by search.limits, or see why trials failed"
        )
    return ranking


def val_samples(split: Split) -> dict[str, set[str]]:
    """Return variant -> its samples of role val."""
    samples = {}
    for variant, table in split.folds.items():
        rows = zip(table["sample_id"].to_pylist(), table["role"].to_pylist(), strict=True)
        samples[variant] = {sample for sample, role in rows if role == "val"}
    return samples


class FoldScorer:
    """Scores a training by what it held out of role val, on the samples that all variants have there."""

    def __init__(self, trainings: Trainings, steps: list[FoldStep]) -> None:
        """Check that every fold has such samples.

        Raises:
            UserError: one has none.
        """
        self.env = trainings.env
        self.samples = set.intersection(*val_samples(trainings.split).values())
        self.n_groups = _ENOUGH_GROUPS
        """Of the fold that the fewest groups score; no more than are enough."""
        for variant, table in trainings.split.folds.items():
            for step in steps:
                scoring = self._groups_that_score(table, step)
                if not scoring:
                    raise self._nothing_to_score(f"fold {step.fold} of seed {step.seed}", variant)
                self.n_groups = min(self.n_groups, len(scoring))

    def _groups_that_score(self, table: pa.Table, step: FoldStep) -> set[str]:
        """Return the groups of a held-out fold that have samples of role val."""
        from data_prep.split import rows_of_seed  # noqa: PLC0415

        rows = rows_of_seed(table, step.seed).select(["sample_id", "fold", "group"]).to_pylist()
        groups = set()
        for row in rows:
            if row["fold"] == step.fold and row["sample_id"] in self.samples:
                groups.add(row["group"])
        return groups

    def caution(self) -> str | None:
        """Return what is to be said of folds that few groups score; None where there are enough."""
        if self.n_groups >= _ENOUGH_GROUPS:
            return None
        return (
            f"search.folds: a fold is scored by as few as {counted(self.n_groups, 'group')} of role val, so "
            "the scores of settings are rough; raise data.split.val for finer ones"
        )

    def _nothing_to_score(self, where: str, variant: str) -> UserError:
        return UserError(
            f"search.folds: photos of role val were required in {where} of variant {variant}, found "
            "none; raise data.split.val, lower confirm.folds, or give the variants one data.split"
        )

    def score(self, spec: TrialSpec) -> float:
        """Return the score of a finished training.

        Raises:
            UserError: it predicted no photo that counts.
        """
        from orchestrator.evaluation.validation_scores import held_out_score  # noqa: PLC0415
        from orchestrator.stages.trial_phase import scorer_of_head  # noqa: PLC0415

        artifact = self.env.store.get("trial", spec.key)
        score = self.env.experiment.spec.parsed_score
        scorer = scorer_of_head(spec.train, score, self.env.schema)
        value = held_out_score(artifact, self.samples, scorer)
        if value is None:
            raise self._nothing_to_score(f"the predictions of {spec.trial_id}", spec.variant)
        return value


def _n_params(env: Env, spec: TrialSpec) -> float:
    """Return the number of parameters of a trained model."""
    path = env.store.get("trial", spec.key).file("model.json")
    return float(json.loads(path.read_text(encoding="utf-8"))["n_params"])


def _train(trainings: Trainings) -> None:
    from orchestrator.search.judging.folds import FoldStudies, fold_controller  # noqa: PLC0415
    from orchestrator.search.study import Studies, search_controller  # noqa: PLC0415
    from orchestrator.stages.trial_phase import (  # noqa: PLC0415
        card_shares,
        feature_sources,
        train_all,
    )
    from orchestrator.store.event_types import (  # noqa: PLC0415
        FOLD_SCORE,
        N_PARAMS,
        PhaseStarted,
    )

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

    def describe_fold(
        trial_id: str, variant: str, point: dict[str, Any], step: FoldStep
    ) -> TrialSpec:
        source = folds.best_key(sources[variant], step) if variant in sources else None
        seed, fold = step
        return trainings.describe(
            trial_id, "search", variant, point, seed=seed, fold=fold, source=source
        )

    trainings.check()
    search = spec.search or Search(trials=1)
    steps = search.fold_steps(spec.confirm)
    scorer = FoldScorer(trainings, steps) if steps else None
    if scorer is not None and (caution := scorer.caution()):
        trainings.env.console.say(f"  {caution}")

    def measure(trial: TrialSpec) -> dict[str, float]:
        metrics = {}
        if scorer is not None:
            metrics[FOLD_SCORE] = scorer.score(trial)
        if search.counts_parameters:
            metrics[N_PARAMS] = _n_params(env, trial)
        return metrics

    _replay_earlier(trainings, search)
    env.ledger.append(PhaseStarted(phase="search"), commit=True)
    studies = Studies(
        env.paths.run_id, search, variants, spec.seed, describe, sources, env.console.say
    )
    gpus_per_trial = spec.resources.per_trial.least_gpu
    if steps:
        folds = FoldStudies(studies, steps, describe_fold, measure)
        controller = fold_controller(
            folds,
            env.ledger,
            finished=trainings.stored_history,
            gpus_per_trial=gpus_per_trial,
            shares=card_shares(env),
            is_lost=trainings.is_lost,
        )
        train_all(env, controller, "search", folds.n_trials)
        return
    controller = search_controller(
        studies,
        env.ledger,
        {name: arm.train.duration for name, arm in experiment.arms.items()},
        measure=measure if search.counts_parameters else None,
        finished=trainings.stored_history,
        gpus_per_trial=gpus_per_trial,
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
