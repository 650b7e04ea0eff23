"""The phases that train: search and confirm, one Tune experiment each."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_prep.files import file_sha256
from data_prep.section import identity
from data_prep.weights.cache import recorded
from orchestrator.base.errors import UserError
from orchestrator.base.keys import stage_key
from orchestrator.base.versions import VERSIONS
from orchestrator.evaluation import common_samples as fair
from orchestrator.evaluation import selection
from orchestrator.search.controller import OBJECTIVE, TrialController
from orchestrator.search.precision import precision_of
from orchestrator.search.reuse import earlier, write_families
from orchestrator.search.study import Studies, search_controller
from orchestrator.search.training_subsets import mixable_file, parts_file
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_tables import collect, write_tables
from orchestrator.search.worker import Watch
from orchestrator.spec.models import Experiment
from orchestrator.spec.search_space import Confirm, Search
from orchestrator.stages.context import Context, Done
from orchestrator.store.events import (
    EpochReported,
    LimitReached,
    PhaseStarted,
    TrialEnded,
    TrialReopened,
    TrialStarted,
)
from orchestrator.store.ledger import TrialRecord, read, replay
from trainers.config import FrozenDeepHead


def _trial(
    context: Context,
    trial_id: str,
    phase: str,
    variant: str,
    point: dict[str, Any],
    seed: int,
    fold: int | None,
    source: str | None = None,
) -> TrialSpec:
    """Describe one trial. `source` is the key of the trial that head frozen_deep stands on."""
    setting, arm = context.experiment.setting(variant, point)
    parts, sizes = (
        parts_file(context, variant, fold),
        dict(zip(context.schema.names, context.schema.sizes, strict=True)),
    )
    mixable = mixable_file(context, arm.train)
    inputs = {"prepare": context.prepared[variant].key, "parts": file_sha256(parts)}
    inputs |= {"mixable": file_sha256(mixable)} if mixable else {}
    inputs |= {"source": source} if source else {}
    if arm.train.model.pretrained and (weights := recorded(arm.train.model.backbone)):
        inputs |= {"weights": next(iter(weights.values()))}
    train = arm.train.model_dump(mode="json", by_alias=True)
    train["precision"] = precision = precision_of(context, arm)
    trained_as = identity(arm.train)
    if precision != "fp32":
        trained_as |= {
            "precision": precision
        }  # what `auto` chose here: another machine may choose otherwise
    key = stage_key(
        "trial",
        VERSIONS["trial"],
        {"train": trained_as, "seed": seed, "labels": sizes, "fold": fold},
        inputs,
    )
    share = context.experiment.spec.resources.per_trial
    return TrialSpec(
        trial_id,
        setting,
        variant,
        phase,
        seed,
        fold,
        point,
        train,
        key,
        str(context.store.root),
        str(context.rows[variant].path),
        str(parts),
        sizes,
        threads=max(1, int(share.cpu)),
        device=share.device,
        inputs=inputs,
        mixable=str(mixable) if mixable else None,
        source=source,
    )


def _before_trials(context: Context) -> None:
    """Do what must not wait for a trial: refuse unknown columns, and probe precisions while all cores are free."""
    search = context.experiment.spec.search
    for variant, arm in context.experiment.arms.items():
        mixable_file(context, arm.train)
        space = search.space_of(variant) if search else {}
        paths = [path for path in ("train.model.backbone", "train.precision") if path in space]
        for values in itertools.product(*(space[path].corners() for path in paths)):
            point = dict(zip(paths, values, strict=True))
            precision_of(context, context.experiment.setting(variant, point)[1])


def sources(experiment: Experiment) -> dict[str, str]:
    """Return variant -> the variant whose feature map it stands on, for those with head frozen_deep."""
    heads = {name: arm.train.model.head for name, arm in experiment.arms.items()}
    return {name: head.source for name, head in heads.items() if isinstance(head, FrozenDeepHead)}


def _best_of(context: Context, variant: str) -> TrialRecord | None:
    """Return the best finished search trial of a variant, ordered as finalists are."""
    done = [
        t
        for t in phase_trials(context, "search")
        if t.variant == variant and t.status == "COMPLETE"
    ]
    return min(done, key=lambda t: (-t.metrics[OBJECTIVE], t.setting), default=None)


def _run(context: Context, controller: TrialController, phase: str, total: int) -> None:
    from orchestrator.search.ray_tune import run  # noqa: PLC0415

    resources = context.experiment.spec.resources
    share = resources.per_trial
    fit = int(min(context.cpus / share.cpu, context.gpus / share.gpu if share.gpu else np.inf))
    concurrent = max(
        1, fit if resources.max_concurrent == "auto" else min(fit, resources.max_concurrent)
    )
    watch = Watch(
        share.wall_s,
        share.report_s,
        share.memory_gb,
        str(context.paths.control),
        str(context.paths.logs),
    )
    with context.reporter.trials(phase, total, lambda: controller.snapshot(total)) as tick:
        folder = context.paths.tune / phase
        run(
            controller,
            folder,
            cpu=share.cpu,
            gpu=share.gpu,
            max_concurrent=concurrent,
            watch=watch,
            tick=tick,
        )


def _in_store(context: Context) -> Callable[[TrialSpec], list[dict[str, float]] | None]:
    """Return what looks up the epochs of a finished training."""

    def find(spec: TrialSpec) -> list[dict[str, float]] | None:
        found = context.store.find("trial", spec.key)
        return found.result["history"] if found else None

    return find


def _take_over(context: Context, wanted: Search, families: dict[str, str]) -> None:
    """Write into the ledger what an earlier run of the same study tells, where this one has not begun."""
    if not phase_trials(context, "search"):
        for one in earlier(context.store, families, wanted, besides=context.paths.run_id).values():
            for event in one.events:
                context.ledger.append(event)
            context.reporter.say(
                f"  search: {one.n_trials} trials are taken over from run {one.run_id}"
            )
    write_families(context.paths.root, families)


def phase_trials(context: Context, phase: str) -> list[TrialRecord]:
    """Return the trials of a phase in the order they were started."""
    return [
        trial for trial in replay(context.ledger.events).trials.values() if trial.phase == phase
    ]


def _reuse(context: Context, kind: str, key: str) -> bool:
    """Take a finished phase out of the store: its events into the ledger, its Tune folder into the run."""
    found = context.store.find(kind, key)
    if found is None or phase_trials(context, kind):
        return False
    for event in read(found.file("events.jsonl")):
        context.ledger.append(event)
    shutil.rmtree(context.paths.tune / kind, ignore_errors=True)
    shutil.copytree(found.path / "tune", context.paths.tune / kind)
    return True


def _keep(context: Context, kind: str, key: str, result: dict[str, Any]) -> None:
    """Put a finished phase into the store, for the next run that asks for the same.

    Not one with failures by chance: they would be failures for every run to come.
    """
    if context.store.find(kind, key) or any(
        trial.has_transient_failure for trial in phase_trials(context, kind)
    ):
        return
    names = {trial.trial_id for trial in phase_trials(context, kind)}
    events = [
        event.to_json()
        for event in context.ledger.events
        if isinstance(event, TrialStarted | EpochReported | TrialEnded | TrialReopened)
        and event.trial_id in names
    ]
    with context.store.draft(kind, key, params={}, inputs={}) as draft:
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        (draft.path / "events.jsonl").write_text(text, encoding="utf-8")
        shutil.copytree(context.paths.tune / kind, draft.path / "tune")
        draft.result |= result


def _note(context: Context, trials: list[TrialRecord]) -> str:
    counted = {
        name: sum(trial.status == name for trial in trials)
        for name in ("COMPLETE", "PRUNED", "FAILED")
    }
    told = [f"{n} {name.lower()}" for name, n in counted.items() if n]
    if n_cached := sum(trial.is_cached for trial in trials):
        told.append(f"{n_cached} of them cached")
    found = [
        context.store.find("trial", key)
        for key in {t.key for t in trials if t.status == "COMPLETE"}
    ]
    taken = sum(
        facts["size_bytes"]
        for artifact in found
        if artifact
        for facts in artifact.manifest["files"].values()
    )
    reached = [event.reason for event in context.ledger.events if isinstance(event, LimitReached)]
    return ", ".join([*told, f"{taken / 1e6:.0f} MB of checkpoints", *reached[-1:]])


def search(context: Context) -> Done:
    """Try settings: one trial each, on role train, scored on role val."""
    spec, key = context.experiment.spec, context.keys.search(context.require_catalog())
    reused = _reuse(context, "search", key)
    if not reused:
        stands_on = sources(context.experiment)

        def make(trial_id: str, variant: str, point: dict[str, Any]) -> TrialSpec:
            best = _best_of(context, stands_on[variant]) if variant in stands_on else None
            return _trial(
                context,
                f"s-{trial_id}" if not trial_id.startswith("s-") else trial_id,
                "search",
                variant,
                point,
                spec.seed,
                None,
                source=best.key if best else None,
            )

        _before_trials(context)
        wanted = spec.search or Search(trials=1)
        _take_over(context, wanted, context.keys.families(context.require_catalog()))
        context.ledger.append(PhaseStarted(phase="search"), commit=True)
        variants = list(context.experiment.arms)
        studies = Studies(
            context.paths.run_id, wanted, variants, spec.seed, make, stands_on, context.reporter.say
        )
        durations = {name: arm.train.duration for name, arm in context.experiment.arms.items()}
        controller = search_controller(
            studies,
            context.ledger,
            durations,
            finished=_in_store(context),
            gpus_per_trial=spec.resources.per_trial.gpu,
        )
        _run(context, controller, "search", sum(map(studies.budget, variants)))
    trials = phase_trials(context, "search")
    write_tables(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.error or trial.why) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, none of {len(trials)} is: {'; '.join(causes[:3])}"
        )
    _keep(context, "search", key, {"ranking": [list(row) for row in ranking(trials)]})
    return Done("CACHED" if reused else "SUCCEEDED", _note(context, trials))


def ranking(trials: list[TrialRecord]) -> list[tuple[str, str, float]]:
    """Return (setting, variant, score) of the finished trials, scored on the val samples that all of them kept."""
    done = [trial for trial in trials if trial.status == "COMPLETE"]
    scores = fair.search_scores(done, OBJECTIVE)
    return [(t.setting, t.variant, score) for t, score in zip(done, scores, strict=True)]


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
    reused = _reuse(context, "confirm", key)
    if not reused:
        _before_trials(context)
        specs = _confirm_trials(context, wanted, {setting: points[setting] for setting in chosen})
        by_id = {spec.trial_id: spec for spec in specs}
        known = {trial.trial_id for trial in phase_trials(context, "confirm")}
        context.ledger.append(PhaseStarted(phase="confirm"), commit=True)
        controller = TrialController(
            context.ledger,
            "confirm",
            _in_order(
                [spec for spec in specs if spec.trial_id not in known], lambda: controller.records
            ),
            resume=lambda trial: (by_id[trial.trial_id], None),
            finished=_in_store(context),
        )
        _run(context, controller, "confirm", len(specs))
    trials = phase_trials(context, "confirm")
    write_tables(context)
    collect(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        raise UserError(
            f"confirm: at least one finished trial was required, all {len(trials)} failed; see `results`"
        )
    _keep(context, "confirm", key, {})
    return Done("CACHED" if reused else "SUCCEEDED", _note(context, trials))


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
                _trial(context, trial_id, "confirm", variant, point, seed, fold, source=source)
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
