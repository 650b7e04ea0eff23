"""What a spec would run: stages, keys, what is cached and why, how much it may cost.

Planning reads manifests and folder listings only, so that it answers at once and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from data_prep.catalog.fingerprint import fingerprint
from data_prep.catalog.labels import Schema, train_borders
from data_prep.preparation.steps import steps_identity
from data_prep.section import identity
from data_prep.weights.cache import is_fetched, recorded
from orchestrator.base.errors import SpecError
from orchestrator.base.keys import digest, stage_key
from orchestrator.base.versions import QUICK_BACKBONE, STAGES, VERSIONS
from orchestrator.planning.cost import training_s
from orchestrator.search.reuse import earlier
from orchestrator.spec.models import Arm, Experiment, known_to_training
from orchestrator.spec.search_space import Search, grid_size
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.run_dir import RunPaths
from trainers.config import FrozenDeepHead, remarks

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
    training_s: (
        float | None
    )  # estimate, one trial after another; None where no trial like it ran in this store
    notes: tuple[str, ...]
    n_cached: int = 0  # search trials that an earlier run has finished

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return asdict(self)


class Keys:
    """The keys of an experiment's stages; those below the catalog need its content."""

    def __init__(self, experiment: Experiment, files: str) -> None:
        self.experiment = experiment
        self.files = files
        self.schema = Schema.of(experiment.spec.data.labels)
        self._partial: dict[
            str, str
        ] = {}  # key of a set of shards -> of the one that lacks photos by chance

    @property
    def run(self) -> str:
        return digest(
            {"spec": self.experiment.identity(), "versions": VERSIONS, "files": self.files}
        )

    @property
    def catalog(self) -> str:
        data = known_to_training(self.experiment.spec.data)
        params = {name: data[name] for name in ("source", "test", "group", "join_duplicates")}
        # borders that only training knows change no row of the catalog
        params["labels"] = {
            name: {k: v for k, v in label.items() if k != "train_bins"}
            for name, label in data["labels"].items()
        }
        return stage_key("catalog", VERSIONS["catalog"], params, {"files": self.files})

    def split(self, arm: Arm, content: str) -> str:
        confirm = self.experiment.spec.confirm
        params = {
            "split": identity(arm.data.split),
            "exclude": arm.data.exclude,
            "folds": confirm.folds if confirm else None,
            "seeds": confirm.seeds if confirm else None,
        }
        return stage_key("split", VERSIONS["split"], params, {"catalog": content})

    def roles(self, arm: Arm, content: str) -> str:
        """Return the identity of a split without its folds, which is all that search depends on."""
        params = {"split": identity(arm.data.split), "exclude": arm.data.exclude}
        return stage_key("split", VERSIONS["split"], params, {"catalog": content})

    def audit(self, content: str, *, probe: bool = False) -> str:
        inputs = {
            f"split/{name}": self.split(arm, content) for name, arm in self.experiment.arms.items()
        }
        params = {"labels": identity(self.experiment.spec.data)["labels"], "probe": probe}
        if not is_fetched(QUICK_BACKBONE):
            params["without"] = (
                QUICK_BACKBONE  # nothing was measured with it; once it is there, it is
            )
        return stage_key("audit", VERSIONS["audit"], params, {"catalog": content, **inputs})

    def prepare(self, arm: Arm, photos: str) -> str:
        key = stage_key(
            "prepare", VERSIONS["prepare"], steps_identity(arm.prep), {"photos": photos}
        )
        return self._partial.get(key, key)

    def without(self, whole: str, samples: list[str]) -> str:
        """Return the key of a set of shards that lacks samples; it is what `prepare` gives from now on."""
        key = stage_key("prepare", VERSIONS["prepare"], {"without": samples}, {"whole": whole})
        self._partial[whole] = key
        return key

    def rows(self, prepare: str) -> str:
        return stage_key("rows", VERSIONS["rows"], {}, {"prepare": prepare})

    def _inputs(self, catalog: Artifact, *, with_folds: bool = False) -> dict[str, str]:
        inputs: dict[str, str] = {}
        for name in self.experiment.backbones():  # of the hub: those that are pinned say nothing
            inputs |= {f"weights/{name}": sha256 for sha256 in recorded(name).values()}
        for name, arm in self.experiment.arms.items():
            split = self.split if with_folds else self.roles
            inputs[f"split/{name}"] = split(arm, catalog.result["content"])
            inputs[f"prepare/{name}"] = self.prepare(arm, catalog.result["photos"])
        return inputs

    def search(self, catalog: Artifact) -> str:
        spec = self.experiment.spec
        params = {
            "seed": spec.seed,
            "search": identity(spec.search) if spec.search else None,
            "train": {name: identity(arm.train) for name, arm in self.experiment.arms.items()},
            "trial": VERSIONS["trial"],
            "train_bins": {
                name: train_borders(arm.data.labels) for name, arm in self.experiment.arms.items()
            },
        }
        return stage_key("search", VERSIONS["search"], params, self._inputs(catalog))

    def families(self, catalog: Artifact) -> dict[str, str]:
        """Return per variant a digest of all that decides one of its search trials and what is suggested.

        Left out are the number of trials, limits, starting points and the space: another one of these is the same
        study going on.
        """
        spec, inputs = self.experiment.spec, self._inputs(catalog)
        if spec.search is None:
            return {}
        how = {
            "seed": spec.seed,
            "sampler": spec.search.sampler,
            "scheduler": identity(spec.search.scheduler),
        }
        return {
            name: digest(
                {
                    **how,
                    "variant": name,
                    "train": identity(arm.train),
                    "versions": [VERSIONS["search"], VERSIONS["trial"]],
                    "train_bins": train_borders(arm.data.labels),
                    "split": inputs[f"split/{name}"],
                    "prepare": inputs[f"prepare/{name}"],
                    **{key: value for key, value in inputs.items() if key.startswith("weights/")},
                }
            )
            for name, arm in self.experiment.arms.items()
            # what stands on another variant's best trial is another study when that one has more trials
            if not isinstance(arm.train.model.head, FrozenDeepHead)
        }

    def confirm(self, catalog: Artifact, finalists: list[str]) -> str:
        spec = self.experiment.spec
        params = {
            "confirm": identity(spec.confirm) if spec.confirm else None,
            # the order says which setting of its source a frozen head stands on
            "finalists": finalists if self._stands_on_another() else sorted(finalists),
            "trial": VERSIONS["trial"],
        }
        inputs = self._inputs(catalog, with_folds=True)
        return stage_key("confirm", VERSIONS["confirm"], params, inputs)

    def _stands_on_another(self) -> bool:
        return any(
            isinstance(arm.train.model.head, FrozenDeepHead)
            for arm in self.experiment.arms.values()
        )


def make_plan(experiment: Experiment, store: Store) -> Plan:
    """Work out what would run.

    Raises:
        SpecError: a data root or table is missing.
    """
    try:
        files = fingerprint(experiment.spec.data, experiment.base)
    except (OSError, ValueError) as error:
        raise SpecError(str(error)) from None
    keys = Keys(experiment, files)
    run_id = f"{experiment.spec.name}-{keys.run[:8]}"
    finished = (RunPaths(store.root / "runs" / run_id).read_json("summary") or {}).get(
        "state"
    ) == "SUCCEEDED"
    n_cached = _n_cached(keys, store, run_id)
    stages, n_photos, n_to_prepare = _stages(keys, store, finished, n_cached)
    trials = n_trials(experiment)
    cost = training_s(experiment, store, sum(trials.values()) - n_cached)
    notes = _notes(experiment)
    if cost:
        notes = (
            *notes,
            f"training time is judged by {cost[1]} earlier trial(s) with this backbone; size counts too",
        )
    took_s = round(cost[0], 1) if cost else None
    return Plan(
        run_id, keys.run, files, stages, trials, n_photos, n_to_prepare, took_s, notes, n_cached
    )


def _n_cached(keys: Keys, store: Store, run_id: str) -> int:
    """Count the search trials that need no training, because an earlier run has done the same study with fewer."""
    spec, catalog = keys.experiment.spec, store.find("catalog", keys.catalog)
    if spec.search is None or catalog is None:
        return 0
    found = earlier(store, keys.families(catalog), spec.search, besides=run_id)
    return sum(one.n_trials for one in found.values())


def n_trials(experiment: Experiment) -> dict[str, int]:
    """Return the largest number of trainings per phase."""
    spec, n_variants = experiment.spec, len(experiment.arms)
    trials = {"search": sum(_n_search(spec.search, name) for name in experiment.arms)}
    if spec.confirm:
        n_finalists = min(max(spec.confirm.finalists, n_variants), trials["search"])
        trials["confirm"] = n_finalists * len(spec.confirm.seeds) * spec.confirm.folds
    return trials


def _n_search(search: Search | None, variant: str) -> int:
    space = search.space_of(variant) if search else {}
    if search is None or not space:
        return 1
    return min(search.trials, grid_size(space)) if search.sampler == "grid" else search.trials


def _notes(experiment: Experiment) -> tuple[str, ...]:
    spec = experiment.spec
    notes = []
    if spec.data.split.strategy == "random":
        notes.append(
            "split random puts photos of one person on both sides; its scores are too good (audit.json says how far)"
        )
    notes += [
        f"variant {name}: {why}"
        for name, arm in experiment.arms.items()
        for why in remarks(arm.train)
    ]
    if spec.data.test is None:
        notes.append("no data.test: no vote and no submission")
    if spec.search and (cost := _sampling_s(spec.search)) > _SLOW_SAMPLING_S:
        notes.append(
            f"search.sampler {spec.search.sampler}: suggestions alone take about {cost / 60:.0f} minutes per variant for "
            f"{spec.search.trials} trials, because each looks at all before it; random and qmc do not"
        )
    return tuple(notes)


def _sampling_s(search: Search) -> float:
    """Estimate the seconds that a study's suggestions take, from `make bench ONLY=driver_10k`."""
    n = search.trials
    per_trial = {"tpe": 8e-6, "gp": 1.3e-3}.get(search.sampler, 0.0)  # seconds per earlier trial
    return per_trial * n * n / 2


def _finalists(experiment: Experiment, search: Artifact) -> list[str]:
    from orchestrator.evaluation.selection import finalists  # noqa: PLC0415 - NumPy, needed only where a search is cached

    ranking = [(setting, variant, score) for setting, variant, score in search.result["ranking"]]
    return finalists(
        ranking,
        experiment.spec.confirm.finalists if experiment.spec.confirm else 0,
        list(experiment.arms),
    )


def confirm_key(keys: Keys, catalog: Artifact, search: Artifact) -> str:
    """Return the key of the confirmation that follows a finished search."""
    return keys.confirm(catalog, _finalists(keys.experiment, search))


def _stages(
    keys: Keys, store: Store, finished: bool, n_cached: int
) -> tuple[tuple[PlannedStage, ...], int | None, int | None]:
    planned: list[PlannedStage] = []

    def add(name: str, cached: bool, key: str | None, why: str) -> None:
        outcome = "CACHED" if cached or finished else "WOULD_RUN"
        planned.append(
            PlannedStage(name, outcome, "this run has finished" if finished else why, key)
        )

    catalog = store.find("catalog", keys.catalog)
    add(
        "catalog",
        catalog is not None,
        keys.catalog,
        "these files and labels were read before"
        if catalog
        else "files, labels or groups are new or changed",
    )
    if catalog is None:
        for name in STAGES[1:]:
            add(name, False, None, "waits for the catalog")
        return tuple(planned), None, None
    content, arms = catalog.result["content"], keys.experiment.arms
    audit = keys.audit(content)
    splits = {name: keys.split(arm, content) for name, arm in arms.items()}
    prepares = {name: keys.prepare(arm, catalog.result["photos"]) for name, arm in arms.items()}
    missing_splits = [name for name, key in splits.items() if not store.find("split", key)]
    missing_preps = [name for name, key in prepares.items() if not store.find("prepare", key)]
    partial = (
        {one.manifest["inputs"].get("whole") for one in store.all("prepare")}
        if missing_preps
        else set()
    )
    add(
        "audit",
        store.find("audit", audit) is not None,
        audit,
        "data and splits are unchanged" if store.find("audit", audit) else "data or splits changed",
    )
    add(
        "split",
        not missing_splits,
        digest(splits),
        "splits are unchanged"
        if not missing_splits
        else f"new split for {', '.join(missing_splits)}",
    )
    add(
        "prepare",
        not missing_preps,
        digest(prepares),
        "photos and steps are unchanged"
        if not missing_preps
        else f"photos, steps or weights changed for {', '.join(missing_preps)}"
        if {prepares[name] for name in missing_preps} - partial
        else f"photos that were lost by chance are tried again for {', '.join(missing_preps)}",
    )
    search_key = keys.search(catalog)
    search = store.find("search", search_key)
    add(
        "search",
        search is not None,
        search_key,
        "the same trials on the same data were finished"
        if search
        else f"{n_cached} trials are in the store and told to the sampler, the rest is trained"
        if n_cached
        else "settings, data or splits are new; finished trials are reused one by one",
    )
    wanted_key, confirm = None, None
    if search is not None and keys.experiment.spec.confirm:
        wanted_key = confirm_key(keys, catalog, search)
        confirm = store.find("confirm", wanted_key)
    add(
        "confirm",
        confirm is not None or keys.experiment.spec.confirm is None,
        wanted_key,
        "confirm: null"
        if keys.experiment.spec.confirm is None
        else "the same finalists were confirmed before"
        if confirm
        else "waits for the finalists of the search",
    )
    for name in STAGES[6:]:
        add(name, False, None, "quick, made anew for each run")
    n_photos = catalog.result["n_ok"]
    distinct = {prepares[name] for name in missing_preps} - partial
    return tuple(planned), n_photos, n_photos * len(distinct)
