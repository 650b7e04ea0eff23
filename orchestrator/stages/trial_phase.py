"""What the two phases that train share: search and confirm."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.files import file_sha256
from data_prep.section import identity
from data_prep.weights.cache import recorded
from orchestrator.base.keys import stage_key
from orchestrator.base.versions import VERSIONS
from orchestrator.evaluation import common_samples as fair
from orchestrator.search.controller import OBJECTIVE, Bridge
from orchestrator.search.precision import precision_of
from orchestrator.search.training_subsets import mixable_file, parts_file
from orchestrator.search.trial import TrialSpec
from orchestrator.search.worker import Watch
from orchestrator.spec.models import Experiment
from orchestrator.stages.context import Context
from orchestrator.store.events import (
    EpochReported,
    LimitReached,
    TrialEnded,
    TrialReopened,
    TrialStarted,
)
from orchestrator.store.ledger import TrialRecord, read, replay
from trainers.config import FrozenDeepHead


def describe_trial(
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
        parts_file(context, variant, seed, fold),
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


def before_trials(context: Context) -> None:
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


def run_phase(context: Context, bridge: Bridge, phase: str, total: int) -> None:
    """Train the trials of one phase."""
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
    with context.reporter.trials(phase, total, lambda: bridge.look(total)) as tick:
        folder = context.paths.tune / phase
        run(
            bridge,
            folder,
            cpu=share.cpu,
            gpu=share.gpu,
            max_concurrent=concurrent,
            watch=watch,
            tick=tick,
        )


def in_store(context: Context) -> Callable[[TrialSpec], list[dict[str, float]] | None]:
    """Return what looks up the epochs of a finished training."""

    def find(spec: TrialSpec) -> list[dict[str, float]] | None:
        found = context.store.find("trial", spec.key)
        return found.result["history"] if found else None

    return find


def phase_trials(context: Context, phase: str) -> list[TrialRecord]:
    """Return the trials of a phase in the order they were started."""
    return [
        trial for trial in replay(context.ledger.events).trials.values() if trial.phase == phase
    ]


def ranking(trials: list[TrialRecord]) -> list[tuple[str, str, float]]:
    """Return (setting, variant, score) of the finished trials, scored on the val samples that all of them kept."""
    done = [trial for trial in trials if trial.status == "COMPLETE"]
    scores = fair.search_scores(done, OBJECTIVE)
    return [(t.setting, t.variant, score) for t, score in zip(done, scores, strict=True)]


def reuse(context: Context, kind: str, key: str) -> bool:
    """Take a finished phase out of the store: its events into the ledger, its Tune folder into the run."""
    found = context.store.find(kind, key)
    if found is None or phase_trials(context, kind):
        return False
    for event in read(found.file("events.jsonl")):
        context.ledger.append(event)
    shutil.rmtree(context.paths.tune / kind, ignore_errors=True)
    shutil.copytree(found.path / "tune", context.paths.tune / kind)
    return True


def keep(context: Context, kind: str, key: str, result: dict[str, Any]) -> None:
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


def note(context: Context, trials: list[TrialRecord]) -> str:
    """Count trials by status, and the size of their checkpoints."""
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
