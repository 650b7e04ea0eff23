"""What the two phases that train have in common: search and confirm."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.catalog.label_schema import Schema
from data_prep.files import file_sha256, write_text
from data_prep.section_base import identity
from data_prep.weights.cache import recorded
from orchestrator.base.keys import stage_key
from orchestrator.base.stage_versions import VERSIONS
from orchestrator.cluster.queue import Yielded
from orchestrator.evaluation import validation_scores
from orchestrator.evaluation.metrics import Scorer
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.planning.run_environment import Env
from orchestrator.search.card_sharing.capacity import TrialSize, size_of
from orchestrator.search.card_sharing.measurements import measured_uses
from orchestrator.search.card_sharing.shares import FixedShare, MeasuredShares, Shares
from orchestrator.search.compile_probe import known_times, time_steps
from orchestrator.search.controller import TrialController
from orchestrator.search.numeric_precision import choose_precision
from orchestrator.search.subset_files import facts_file, mixable_file, subset_file
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_process import Watch, stop_file
from orchestrator.spec.models import Arm, Experiment, Spec
from orchestrator.spec.score import DEFAULT, MACRO_F1, Score
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.split import Split
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import (
    EpochReported,
    LimitReached,
    RaceLooked,
    TrialEnded,
    TrialReopened,
    TrialStarted,
)
from orchestrator.store.ledger import TrialRecord, read
from trainers.config import Train
from trainers.preflight.step_times import StepTimes
from trainers.settings.model import FrozenDeepHead

_STATUSES = ("COMPLETE", "PRUNED", "FAILED")


class Ranked(NamedTuple):
    """A finished search trial and its score."""

    setting: str
    variant: str
    score: float


@dataclass(frozen=True)
class Trainings:
    """The inputs of all trials of a run, and how a trial is made of them."""

    env: Env
    catalog: Catalog
    split: Split
    prepare: Prepared

    def describe(
        self,
        trial_id: str,
        phase: str,
        variant: str,
        point: dict[str, Any],
        *,
        seed: int,
        fold: int | None = None,
        source: str | None = None,
    ) -> TrialSpec:
        """Describe one trial.

        Args:
            trial_id: its name in the run.
            phase: search or confirm.
            variant: of the spec.
            point: of the search space.
            seed: of the training.
            fold: the one held out in confirm.
            source: key of the trial that head frozen_deep depends on.
        """
        env = self.env
        setting, arm = env.experiment.setting(variant, point)
        subset = subset_file(
            env.paths.parts,
            self.split.artifacts[variant],
            env.experiment.arms[variant].data,
            self.catalog.table,
            seed,
            fold,
        )
        mixable = self._mixable_file(arm)
        facts = self._facts_file(arm)
        for file in (subset, mixable, facts):
            if file is not None:
                env.store.share(file)
        inputs = self._inputs(variant, arm, subset, mixable, source)
        if facts:
            inputs["facts"] = file_sha256(facts)
        share = env.trial_share
        precision = choose_precision(arm, env.schema, share, env.ledger)
        trained_as = identity(arm.train)
        if precision != "fp32":  # `auto` may choose another one on another machine
            trained_as["precision"] = precision
        sizes = dict(zip(env.schema.names, env.schema.sizes, strict=True))
        params = {"train": trained_as, "seed": seed, "labels": sizes, "fold": fold}
        score = trained_for(env.experiment.spec, env.schema)
        if score is not None:
            params["score"] = score
        return TrialSpec(
            trial_id,
            setting,
            variant,
            phase,
            seed,
            fold,
            point,
            arm.train.model_dump(mode="json", by_alias=True) | {"precision": precision},
            stage_key("trial", VERSIONS["trial"], params, inputs),
            env.store.name,
            str(self.prepare.rows[variant].path),
            str(subset),
            sizes,
            threads=max(1, int(share.cpu)),
            device=share.device,
            inputs=inputs,
            mixable=str(mixable) if mixable else None,
            facts=str(facts) if facts else None,
            source=source,
            score=score,
            code=env.code,
            step_times=self._step_times(arm, precision),
        )

    def _step_times(self, arm: Arm, precision: str) -> StepTimes | None:
        if arm.train.compile != "auto":
            return None
        train = arm.train.model_copy(update={"precision": precision})
        size = size_of(train, arm.prep.size)
        return known_times(size, self.env.trial_share.device, self.env.ledger)

    def _inputs(
        self, variant: str, arm: Arm, subset: Path, mixable: Path | None, source: str | None
    ) -> dict[str, str]:
        """Return the keys and hashes of all that a trial reads."""
        inputs = {"prepare": self.prepare.shards[variant].key, "parts": file_sha256(subset)}
        if mixable:
            inputs["mixable"] = file_sha256(mixable)
        if source:
            inputs["source"] = source
        model = arm.train.model
        if model.weights_sha256:
            inputs["weights"] = model.weights_sha256
        elif model.pretrained and model.timm_name and (weights := recorded(model.timm_name)):
            inputs["weights"] = next(iter(weights.values()))
        return inputs

    def check(self) -> None:
        """Do what should not wait for a trial.

        Unknown columns are refused; precisions and compiled steps are probed while nothing trains.
        """
        experiment = self.env.experiment
        search = experiment.spec.search
        share = self.env.trial_share
        for variant, arm in experiment.arms.items():
            self._mixable_file(arm)
            space = search.space_of(variant) if search else {}
            paths = [path for path in ("train.model.backbone", "train.precision") if path in space]
            for values in itertools.product(*(space[path].corners() for path in paths)):
                _, corner = experiment.setting(variant, dict(zip(paths, values, strict=True)))
                precision = choose_precision(corner, self.env.schema, share, self.env.ledger)
                time_steps(
                    corner,
                    precision,
                    self.env.schema,
                    share,
                    self.env.ledger,
                    n_photos=len(self.catalog.table),
                )

    def stored_history(self, trial: TrialSpec) -> list[dict[str, float]] | None:
        """Return the epochs of a training that the store has finished, else None."""
        artifact = self.env.store.find("trial", trial.key)
        return artifact.result["history"] if artifact else None

    def is_lost(self, record: TrialRecord) -> bool:
        """Return True if the store no longer has the artifact of a complete trial."""
        return not self.env.store.has("trial", record.key)

    def _mixable_file(self, arm: Arm) -> Path | None:
        catalog = self.catalog
        folder = self.env.paths.parts
        return mixable_file(folder, arm.train, catalog.table, catalog.artifact.key, self.env.schema)

    def _facts_file(self, arm: Arm) -> Path | None:
        catalog = self.catalog
        folder = self.env.paths.parts
        return facts_file(folder, arm.train, arm.data, catalog.table, catalog.artifact.key)


def feature_sources(experiment: Experiment) -> dict[str, str]:
    """Return variant -> the variant whose feature map its head frozen_deep depends on."""
    sources = {}
    for name, arm in experiment.arms.items():
        head = arm.train.model.head
        if isinstance(head, FrozenDeepHead):
            sources[name] = head.source
    return sources


def card_shares(env: Env) -> Shares:
    """Return which part of a card each trial of a phase gets."""
    share = env.trial_share
    if env.experiment.spec.resources.per_trial.gpu != "auto" or not share.gpu:
        return FixedShare(share.least_gpu)

    def size(trial: TrialSpec) -> TrialSize:
        pixels = env.experiment.arms[trial.variant].prep.size
        train = Train.model_validate(trial.train)
        return size_of(train, pixels, micro_batch=trial.micro_batch)

    return MeasuredShares(int(env.gpus), size, measured_uses(env.store))


def train_all(env: Env, controller: TrialController, phase: str, n_trials: int) -> None:
    """Train the trials of one phase.

    Raises:
        Yielded: another run goes first; the stage goes on from the ledger when it is run again.
    """
    from orchestrator.search.ray_tune import run  # noqa: PLC0415

    resources = env.experiment.spec.resources
    share = env.trial_share
    n_concurrent = int(env.cpus / share.cpu)
    if resources.per_trial.least_gpu:
        n_concurrent = min(n_concurrent, int(env.gpus / resources.per_trial.least_gpu))
    if resources.max_concurrent != "auto":
        n_concurrent = min(n_concurrent, resources.max_concurrent)
    watch = Watch(
        share.wall_s,
        share.report_s,
        share.memory_gb,
        str(env.paths.control),
        str(env.paths.logs),
        None if env.store.name == str(env.store.root) else env.store.name,
    )
    controller.must_yield = env.must_yield
    controller.must_stop = lambda trial_id: stop_file(env.paths.control, trial_id).exists()
    with env.console.trials(phase, n_trials, lambda: controller.snapshot(n_trials)) as tick:
        run(
            controller,
            env.paths.tune / phase,
            cpu=share.cpu,
            max_concurrent=max(1, n_concurrent),
            fork_server=env.fork_server,
            watch=watch,
            tick=tick,
        )
    if controller.has_yielded:
        raise Yielded


def phase_trials(env: Env, phase: str) -> list[TrialRecord]:
    """Return the trials of a phase in the order they were started."""
    trials = env.ledger.state.trials.values()
    return [trial for trial in trials if trial.phase == phase]


def trained_for(spec: Spec, schema: Schema) -> dict[str, object] | None:
    """Return the score that a trainer chooses its best epoch by; None where it is macro F1."""
    if spec.score == DEFAULT:
        return None
    score = spec.parsed_score
    return {"metric": score.metric, "labels": list(score.labels_among(schema.names))}


def rank_trials(
    trials: Sequence[TrialRecord],
    store: Store,
    score: Score = MACRO_F1,
    schema: Schema | None = None,
) -> list[Ranked]:
    """Return the finished trials with their scores on the val samples that all of them have.

    Args:
        trials: of the search.
        store: with their artifacts.
        score: of the spec.
        schema: of the labels; needed where the score is about a label.
    """
    finished = [trial for trial in trials if trial.status == "COMPLETE"]

    def metric_of(trial: TrialRecord) -> Scorer:
        return scorer_of_head(trial.started.train, score, schema)

    scores = validation_scores.search_scores(finished, store, metric_of)
    ranking = []
    for trial, value in zip(finished, scores, strict=True):
        ranking.append(Ranked(trial.setting, trial.variant, value))
    return ranking


def scorer_of_head(train: dict[str, Any], score: Score, schema: Schema | None) -> Scorer:
    """Return how the answers of a training are scored, over the labels that its head answers."""
    answered = train.get("model", {}).get("head", {}).get("labels")
    if schema is None or not answered:
        return scorer_of(score, schema)
    of_head = {name: names for name, names in schema.classes.items() if name in answered}
    return scorer_of(score, Schema(of_head))


def load_phase(env: Env, phase: str, key: str) -> bool:
    """Take a finished phase from the store, with its events and its Tune folder.

    Returns:
        False if the store does not have it, if it lost one of its trainings, or if this run has
        trials of the phase already.
    """
    artifact = env.store.find(phase, key)
    if artifact is None or phase_trials(env, phase):
        return False
    for event in read(artifact.file("events.jsonl")):
        env.ledger.append(event)
    shutil.rmtree(env.paths.tune / phase, ignore_errors=True)
    shutil.copytree(artifact.path / "tune", env.paths.tune / phase)
    finished = [trial for trial in phase_trials(env, phase) if trial.status == "COMPLETE"]
    return all(env.store.has("trial", trial.key) for trial in finished)


def save_phase(
    env: Env,
    phase: str,
    key: str,
    trials: Sequence[TrialRecord],
    ranking: Sequence[Ranked] = (),
    sizes: Mapping[str, float] | None = None,
) -> None:
    """Put a finished phase into the store, for the next run that asks for the same.

    A phase with a transient failure is not saved: later runs would take over that failure.
    """
    if env.store.find(phase, key) or any(trial.has_transient_failure for trial in trials):
        return
    names = {trial.trial_id for trial in trials}
    lines = []
    for event in env.ledger.events:
        is_kept = isinstance(event, RaceLooked) and phase == "confirm"
        if isinstance(event, TrialStarted | EpochReported | TrialEnded | TrialReopened):
            is_kept = event.trial_id in names
        if is_kept:
            lines.append(json.dumps(event.to_json(), ensure_ascii=False) + "\n")
    with env.store.draft(phase, key, params={}, inputs={}) as draft:
        write_text(draft.path / "events.jsonl", "".join(lines))
        shutil.copytree(env.paths.tune / phase, draft.path / "tune")
        if ranking:
            draft.result["ranking"] = [list(row) for row in ranking]
        if sizes:
            draft.result["sizes"] = dict(sizes)


def trials_note(env: Env, trials: Sequence[TrialRecord]) -> str:
    """Return the trials by status, the size of their checkpoints, and a limit that was reached."""
    parts = []
    for status in _STATUSES:
        if n := sum(trial.status == status for trial in trials):
            parts.append(f"{n} {status.lower()}")
    if n_cached := sum(trial.is_cached for trial in trials):
        parts.append(f"{n_cached} of them cached")
    n_bytes = 0
    for key in {trial.key for trial in trials if trial.status == "COMPLETE"}:
        if artifact := env.store.find("trial", key):
            n_bytes += sum(file["size_bytes"] for file in artifact.manifest["files"].values())
    parts.append(f"{n_bytes / 1e6:.0f} MB of checkpoints")
    limits = [event.reason for event in env.ledger.events if isinstance(event, LimitReached)]
    return ", ".join([*parts, *limits[-1:]])
