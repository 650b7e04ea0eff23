"""An ensemble that can answer: members with preparation and checkpoints, vote rule, labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import Prep
from data_prep.preparation.steps import steps_identity
from orchestrator.base.errors import UserError
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
    majority: int  # the answer for a photo that nobody can read
    classes: Mapping[str, list[str]]  # label -> class names; their order gives the code
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Label -> the temperature of its stated confidences; empty where they stay as they are."""


def member_trials(paths: RunPaths, settings: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the finished trials of every member, whose checkpoints answer for it.

    The trials are rows of trials.parquet: those of confirm, or the best one of search where the
    spec confirms nothing.
    """
    phase = "confirm" if read(paths.resolved, check_roots=False).spec.confirm else "search"
    wanted = [
        ("phase", "=", phase),
        ("status", "=", "COMPLETE"),
        ("setting", "in", settings or [""]),
    ]
    rows = tables.read(paths.trials, filters=wanted).to_pylist()
    trials: dict[str, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for row in rows:
        of_setting = trials[row["setting"]]
        if phase == "confirm" or not of_setting:
            of_setting.append(row)
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
    from data_prep.catalog.labels import Schema  # noqa: PLC0415

    experiment = read(paths.resolved, check_roots=False)
    trials = member_trials(paths, list(selection.members))
    weights = selection.weights or (1,) * len(selection.members)
    members = []
    for setting, votes in zip(selection.members, weights, strict=True):
        variant = trials[setting][0]["variant"]
        keys = [Path(trial["checkpoint"]).name for trial in trials[setting]]
        checkpoints = [checkpoint(store, key).path for key in keys]
        prep = experiment.arms[variant].prep
        member = Member(setting, variant, votes, prep, tuple(checkpoints))
        _require_same_steps(paths, member)
        members.append(member)
    classes = Schema.of(experiment.spec.data.labels).classes
    rule = selection.vote.rule or "hard"
    temperatures = selection.vote.temperatures
    return Ensemble(paths.run_id, tuple(members), rule, _majority(paths), classes, temperatures)


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
