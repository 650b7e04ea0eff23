"""An ensemble that can answer: members with preparation and checkpoints, vote rule, labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.prep_config import Prep
from data_prep.preparation.step_identity import steps_identity
from orchestrator.base.errors import UserError
from orchestrator.evaluation.probabilities.adjustment import AdjustedLabel
from orchestrator.spec.load import read
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.preparation import Preparation
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.selection import Selection


@dataclass(frozen=True)
class Member:
    """One setting: its preparation, and the checkpoints whose mean probability is its answer."""

    setting: str
    variant: str
    votes: int
    prep: Prep
    checkpoints: tuple[Path, ...]  # folders with weights and model.json, their hashes checked
    adjustment: tuple[AdjustedLabel, ...] = ()  # of each checkpoint's answers; empty for none

    @property
    def steps(self) -> list[Any]:
        """Return what identifies the preparation: steps, versions, hashes of their weights."""
        return steps_identity(self.prep)


@dataclass(frozen=True)
class Ensemble:
    """Members in rank order and how their answers become one."""

    name: str
    members: tuple[Member, ...]
    rule: str  # hard | soft
    majority: int  # the answer for an unreadable photo
    classes: Mapping[str, list[str]]  # label -> class names; their order gives the code
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Label -> the temperature of its stated confidences; empty where they stay as they are."""
    group_mean: tuple[str, ...] = ()
    """Labels whose probabilities are averaged over the photos of a group."""
    code: Path | None = None
    """The folder of code that its models need; None where they need none."""

    def allow_code(self, *, allowed: bool) -> None:
        """Allow this process to run the code of the models, where they have some.

        Raises:
            UserError: they have, and it is not allowed.
        """
        if self.code is None:
            return
        names = ", ".join(sorted(path.name for path in self.code.glob("*.py")))
        if not names:
            raise UserError(
                f"{self.name}: the code of its models was required in {self.code}, found none; "
                "take the bundle from its source again, or submit the spec again"
            )
        if not allowed:
            raise UserError(
                f"{self.name}: its models run {names} of {self.code}, code with your rights: "
                "read it, then give --allow-code"
            )
        from trainers.own_parts import allow  # noqa: PLC0415

        allow(*self.code.glob("*.py"))


class _MemberTrial(NamedTuple):
    """A finished training whose checkpoint answers for a member."""

    setting: str
    variant: str
    checkpoint: str


def _member_trials(paths: RunPaths, phase: str, settings: list[str]) -> list[_MemberTrial]:
    """Return the trials of the members: those of confirm, or the first of each in search."""
    wanted = [("phase", "=", phase), ("status", "=", "COMPLETE"), ("setting", "in", settings)]
    rows = tables.read(paths.trials, list(_MemberTrial._fields), filters=wanted).to_pylist()
    trials: list[_MemberTrial] = []
    seen = set()
    for trial in (_MemberTrial(**row) for row in rows):
        if phase == "confirm" or trial.setting not in seen:
            trials.append(trial)
            seen.add(trial.setting)
    return trials


def checkpoint(store: Store, key: str) -> Artifact:
    """Return the artifact of a trial, the hashes of its weights and model checked.

    Raises:
        UserError: it is gone, or a file differs from what its manifest says.
    """
    artifact = store.get("trial", key)
    for name in ("weights.safetensors", "model.json"):
        artifact.file(name)
    return artifact


def of_run(paths: RunPaths, store: Store) -> Ensemble:
    """Return a run's ensemble.

    Raises:
        UserError: it has none, or a checkpoint is not what it should be.
    """
    selection = as_record(Selection, paths.read_json("selection"))
    if not selection.members:
        raise UserError(
            f"run {paths.run_id}: an ensemble was required, the run has none yet; "
            f"see `status {paths.run_id}`"
        )
    from data_prep.catalog.label_schema import Schema  # noqa: PLC0415

    experiment = read(paths.resolved, check_roots=False)
    phase = "confirm" if experiment.spec.confirm else "search"
    all_trials = _member_trials(paths, phase, list(selection.members))
    weights = selection.weights or (1,) * len(selection.members)
    members = []
    for setting, votes in zip(selection.members, weights, strict=True):
        trials = [trial for trial in all_trials if trial.setting == setting]
        variant = trials[0].variant
        checkpoints = [checkpoint(store, Path(trial.checkpoint).name).path for trial in trials]
        prep = experiment.arms[variant].prep
        adjustment = _adjustment(selection, setting)
        member = Member(setting, variant, votes, prep, tuple(checkpoints), adjustment)
        _require_same_steps(paths, member)
        members.append(member)
    classes = Schema.of(experiment.spec.data.labels).classes
    rule = selection.vote.rule or "hard"
    return Ensemble(
        paths.run_id,
        tuple(members),
        rule,
        _majority(paths),
        classes,
        selection.vote.temperatures,
        tuple(experiment.spec.vote.group_mean),
        paths.code if any(needs_code(member) for member in members) else None,
    )


def needs_code(member: Member) -> bool:
    """Return True if the models of a member have parts that are code of a user."""
    for folder in member.checkpoints:
        try:
            model = json.loads((folder / "model.json").read_bytes())["model"]
            parts = (model.get("backbone"), model.get("head"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # no model; what loads it says so
        if any(isinstance(part, dict) and "use" in part for part in parts):
            return True
    return False


def _adjustment(selection: Selection, setting: str) -> tuple[AdjustedLabel, ...]:
    """Return how a member's answers are moved; empty where they are not."""
    adjusted = selection.vote.adjusted
    labels = adjusted.members.get(setting, ()) if adjusted else ()
    return tuple(AdjustedLabel(row.label, row.temperature, row.shift) for row in labels)


def _require_same_steps(paths: RunPaths, member: Member) -> None:
    """Refuse to prepare photos in another way than the member was trained with.

    Raises:
        UserError: a step, its version or its weights differ.
    """
    prepared = as_record(Preparation, paths.read_json("prep"))
    trained = [item.steps for item in prepared.sets if member.variant in item.variants]
    if not trained or list(trained[0]) == member.steps:
        return
    differ = []
    for old, new in zip_longest(trained[0], member.steps):
        if old != new and old is not None:
            differ.append(_step_text(old))
    raise UserError(
        f"run {paths.run_id}: its photos were prepared by {', '.join(differ)}; here that step has "
        "another version or other weights; submit its spec again with this release, or predict "
        "with the release that trained it"
    )


def _step_text(step: Any) -> str:
    if isinstance(step, dict):
        return f"{step['step']['name']} (version {step['version']})"
    return str(step)


def _majority(paths: RunPaths) -> int:
    """Return the most frequent class of the catalog."""
    labels = tables.read(paths.catalog, ["label"])["label"].drop_null().to_numpy()
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()])
