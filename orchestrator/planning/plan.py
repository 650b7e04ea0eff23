"""What a spec would run: stages, keys, what is cached and why, how much it may cost.

Planning reads manifests and folder listings only, so it answers at once and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from data_prep.catalog.fingerprint import fingerprint
from orchestrator.base.errors import SpecError
from orchestrator.planning.card_sharing_notes import sharing_notes
from orchestrator.planning.cost import gpu_hours, training_s
from orchestrator.planning.run_environment import Scope
from orchestrator.planning.stage import Found, Stage, find_stages
from orchestrator.planning.stage_keys import catalog_key, prepare_keys, run_key, study_families
from orchestrator.search.reuse import earlier
from orchestrator.spec.models import Experiment
from orchestrator.spec.search_space import Confirm, Search, grid_size
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.run_dir import RunPaths
from trainers.config import remarks

_SLOW_SAMPLING_S = 60.0


@dataclass(frozen=True)
class PlannedStage:
    """A stage before it runs: its expected outcome (CACHED or WOULD_RUN), and why."""

    name: str
    outcome: str
    why: str
    key: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything `plan` prints and `submit` follows."""

    run_id: str
    run_key: str
    files: str  # fingerprint of the data roots
    stages: tuple[PlannedStage, ...]
    trials: dict[str, int]  # phase -> number of trainings at most
    n_photos: int | None  # None until the catalog is known
    n_to_prepare: int | None
    training_s: float | None  # one trial after another; None where no trial like it ran here
    notes: tuple[str, ...]
    n_cached: int = 0  # search trials that an earlier run has finished

    def to_json(self) -> dict[str, object]:
        """Return the content of plan.json."""
        return asdict(self)


def make_plan(experiment: Experiment, store: Store, stages: tuple[Stage, ...]) -> Plan:
    """Find out what would run.

    Raises:
        SpecError: a data root or table is missing.
    """
    try:
        files = fingerprint(experiment.spec.data, experiment.base)
    except (OSError, ValueError) as error:
        raise SpecError(str(error)) from None
    scope = Scope(experiment, files, store)
    key = run_key(scope)
    run_id = f"{experiment.spec.name}-{key[:8]}"
    summary = RunPaths(store.root / "runs" / run_id).read_json("summary") or {}
    entries = find_stages(scope, stages)
    catalog = store.find("catalog", catalog_key(scope))
    n_photos = None
    n_to_prepare = None
    n_reused = 0
    if catalog:
        n_photos = catalog.result["n_ok"]
        n_to_prepare = entries["prepare"].n_to_prepare
        n_reused = _n_reused(scope, catalog, run_id)
    search = entries["search"]
    if n_reused and not search.is_cached:
        why = f"{n_reused} trials are in the store and replayed to the sampler, the rest is trained"
        entries["search"] = replace(search, why=why)
    trials = n_trials(experiment)
    n_to_train = sum(trials.values()) - n_reused - _n_shared(experiment)
    estimate = training_s(experiment, store, n_to_train)
    notes = _notes(experiment)
    seconds = None
    if estimate:
        seconds = round(estimate.seconds, 1)
        notes.append(
            f"training time is estimated from {estimate.n_trials} earlier trial(s) with this "
            "backbone; size counts too"
        )
    hours = gpu_hours(experiment, n_to_train, n_photos)
    if hours is not None:
        notes.append(hours)
    notes += sharing_notes(experiment, store)
    return Plan(
        run_id=run_id,
        run_key=key,
        files=files,
        stages=_planned(entries, is_finished=summary.get("state") == "SUCCEEDED"),
        trials=trials,
        n_photos=n_photos,
        n_to_prepare=n_to_prepare,
        training_s=seconds,
        notes=tuple(notes),
        n_cached=n_reused,
    )


def _n_reused(scope: Scope, catalog: Artifact, run_id: str) -> int:
    """Count the search trials that an earlier run of the same study has finished.

    The ledgers of earlier runs are read for this. Garbage collection plans every run of a store,
    so no stage's `find` reads them.
    """
    experiment = scope.experiment
    if experiment.spec.search is None:
        return 0
    prepared = prepare_keys(experiment, catalog.result["photos"])
    families = study_families(experiment, catalog.result["content"], prepared)
    studies = earlier(scope.store, families, experiment.spec.search, besides=run_id)
    return sum(study.n_trials for study in studies.values())


def _planned(entries: Mapping[str, Found], *, is_finished: bool) -> tuple[PlannedStage, ...]:
    planned = []
    for name, entry in entries.items():
        outcome = "CACHED" if entry.is_cached or is_finished else "WOULD_RUN"
        why = "this run has finished" if is_finished else entry.why
        planned.append(PlannedStage(name, outcome, why, entry.key))
    return tuple(planned)


def n_trials(experiment: Experiment) -> dict[str, int]:
    """Return the largest number of trainings per phase."""
    spec = experiment.spec
    n_folds = (spec.search.folds if spec.search else None) or 1
    trials = {"search": _n_settings(experiment) * n_folds}
    if spec.confirm:
        n_finalists = _n_finalists(experiment, spec.confirm)
        trials["confirm"] = n_finalists * len(spec.confirm.seeds) * spec.confirm.folds
    return trials


def _n_settings(experiment: Experiment) -> int:
    return sum(_n_search(experiment.spec.search, name) for name in experiment.arms)


def _n_finalists(experiment: Experiment, confirm: Confirm) -> int:
    return min(max(confirm.finalists, len(experiment.arms)), _n_settings(experiment))


def _n_shared(experiment: Experiment) -> int:
    """Count the trainings of confirm that are those of the search."""
    search = experiment.spec.search
    confirm = experiment.spec.confirm
    if search is None or confirm is None:
        return 0
    return _n_finalists(experiment, confirm) * (search.folds or 0)


def _n_search(search: Search | None, variant: str) -> int:
    space = search.space_of(variant) if search else {}
    if search is None or not space:
        return 1
    if search.sampler == "grid":
        return min(search.trials, grid_size(space))
    return search.trials


def _notes(experiment: Experiment) -> list[str]:
    spec = experiment.spec
    notes: list[str] = []
    if spec.data.split.strategy == "random":
        notes.append(
            "split random puts photos of one group on both sides; its scores are too good "
            "(audit.json says how far)"
        )
    for name, arm in experiment.arms.items():
        notes += [f"variant {name}: {remark}" for remark in remarks(arm.train)]
    if spec.data.test is None:
        notes.append("no data.test: no vote and no submission")
    if spec.search and spec.search.folds:
        notes.append(
            f"search.folds: {spec.search.folds} of the trainings of each finalist in confirm are "
            "those of the search, and not trained again"
        )
    if spec.search and spec.search.folds and spec.confirm:
        confirm = spec.confirm
        if spec.search.folds > (len(confirm.seeds) - 1) * confirm.folds:
            notes.append(
                "search.folds: no seed of confirm is left that the search does not use, so the luck of "
                "the trainings that settings were chosen by is in every estimate; add one to confirm.seeds"
            )
    if spec.search and (cost := _sampling_s(spec.search)) > _SLOW_SAMPLING_S:
        notes.append(
            f"search.sampler {spec.search.sampler}: suggestions alone take about {cost / 60:.0f} "
            f"minutes per variant for {spec.search.trials} trials, because each depends on all "
            "before it; with random and qmc it does not"
        )
    return notes


def _sampling_s(search: Search) -> float:
    """Estimate the seconds that a study's suggestions take, from `make bench ONLY=driver_10k`."""
    n = search.trials
    per_trial = {"tpe": 8e-6, "gp": 1.3e-3}.get(search.sampler, 0.0)  # seconds per earlier trial
    return per_trial * n * n / 2
