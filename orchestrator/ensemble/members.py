"""An ensemble that can answer: its members with their preparation and checkpoints, its rule, its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Member:
    """One setting: what it does to a photo, and the checkpoints whose mean probability is its answer."""

    setting: str
    variant: str
    votes: int
    prep: Prep
    checkpoints: tuple[
        Path, ...
    ]  # folders with weights.safetensors and model.json, their hashes checked

    @property
    def steps(self) -> list[Any]:
        """Return what identifies the preparation: steps, their versions, the hashes of their weights."""
        return steps_identity(self.prep)


@dataclass(frozen=True)
class Ensemble:
    """Members in rank order and how their answers become one."""

    name: str
    members: tuple[Member, ...]
    rule: str  # hard | soft
    majority: int  # the answer for a photo that nobody can read
    classes: Mapping[str, list[str]]  # label -> class names; their order gives the code


def member_trials(paths: RunPaths, settings: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return per member the finished trials whose checkpoints answer for it, rows of trials.parquet."""
    phase = "confirm" if read(paths.resolved, check_roots=False).spec.confirm else "search"
    wanted = [
        ("phase", "=", phase),
        ("status", "=", "COMPLETE"),
        ("setting", "in", settings or [""]),
    ]
    rows = tables.read(paths.trials, filters=wanted).to_pylist()
    found = {setting: [row for row in rows if row["setting"] == setting] for setting in settings}
    return found if phase == "confirm" else {setting: own[:1] for setting, own in found.items()}


def checkpoint(store: Store, trial: Mapping[str, Any]) -> Artifact:
    """Return a trial's artifact, the hashes of its weights and model checked.

    Raises:
        UserError: it is gone, or a file differs from what its manifest says.
    """
    artifact = store.get("trial", Path(trial["checkpoint"]).name)
    for name in ("weights.safetensors", "model.json"):
        artifact.file(name)
    return artifact


def of_run(paths: RunPaths, store: Store) -> Ensemble:
    """Return a run's ensemble.

    Raises:
        UserError: it has none, or a checkpoint is not what it should be.
    """
    selection = paths.read_json("selection")
    if not selection:
        raise UserError(
            f"run {paths.run_id}: an ensemble was required, the run has none yet; see `status {paths.run_id}`"
        )
    from data_prep.catalog.labels import Schema  # noqa: PLC0415

    experiment = read(paths.resolved, check_roots=False)
    settings: list[str] = selection["members"]
    trials = member_trials(paths, settings)
    members = [
        Member(
            setting,
            trials[setting][0]["variant"],
            votes,
            experiment.arms[trials[setting][0]["variant"]].prep,
            tuple(checkpoint(store, trial).path for trial in trials[setting]),
        )
        for setting, votes in zip(
            settings, selection.get("weights") or [1] * len(settings), strict=True
        )
    ]
    for member in members:
        _require_same_steps(paths, member)
    rule = (selection.get("vote") or {}).get("rule", "hard")
    classes = Schema.of(experiment.spec.data.labels).classes
    return Ensemble(paths.run_id, tuple(members), rule, _majority(paths), classes)


def _require_same_steps(paths: RunPaths, member: Member) -> None:
    """Refuse to answer through other steps or weights than the member learned from."""
    sets = (paths.read_json("prep") or {}).get("sets", [])
    made = next((one["steps"] for one in sets if member.variant in one["variants"]), None)
    if made is None or made == member.steps:
        return
    differ = [
        f"{old['step']['name']} (version {old['version']})" if isinstance(old, dict) else str(old)
        for old, new in zip_longest(made, member.steps)
        if old != new and old is not None
    ]
    raise UserError(
        f"run {paths.run_id}: its photos were prepared by {', '.join(differ)}; here that step's version or weights "
        "differ; submit its spec again with this release, or predict with the one that made it"
    )


def _majority(paths: RunPaths) -> int:
    labels = [
        label
        for label in tables.read(paths.catalog, ["label"])["label"].to_pylist()
        if label is not None
    ]
    values, counts = np.unique(labels, return_counts=True)
    return int(values[counts.argmax()])
