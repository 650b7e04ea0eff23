"""The bodies of the stages: each finds its artifact or makes it, and leaves the run's files behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.catalog.labels import Schema
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.planning.plan import Keys
from orchestrator.spec.models import Experiment
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.events import DriverStarted, TrialStarted
from orchestrator.store.ledger import Ledger
from orchestrator.store.run_dir import RunPaths


@dataclass
class Context:
    """What a running experiment knows. Stages add what later ones read."""

    experiment: Experiment
    keys: Keys
    store: Store
    paths: RunPaths
    ledger: Ledger
    reporter: Reporter
    cpus: float
    gpus: float
    catalog: Artifact | None = None
    folds: dict[str, Artifact] = field(default_factory=dict)  # by variant
    prepared: dict[str, Artifact] = field(default_factory=dict)  # by variant
    rows: dict[str, Artifact] = field(default_factory=dict)  # by variant

    @property
    def schema(self) -> Schema:
        return self.keys.schema

    @property
    def began(self) -> float:
        """When the run was started last, in seconds since the epoch; once trials rest on its photos, when first."""
        starts = [event.time for event in self.ledger.events if isinstance(event, DriverStarted)]
        if not starts:
            return time.time()
        return float(
            starts[
                0 if any(isinstance(event, TrialStarted) for event in self.ledger.events) else -1
            ]
        )

    @contextmanager
    def turn(self, kind: str, name: str, does: str) -> Iterator[None]:
        """Wait until no other process makes this of a kind; `does` says what one does meanwhile."""
        from filelock import FileLock, Timeout  # noqa: PLC0415

        folder = self.store.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".lock-{name[:16]}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.reporter.say(f"  another run {does}; this one waits and takes what it makes")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def require_catalog(self) -> Artifact:
        if self.catalog is None:
            raise UserError("the catalog was required and has not been made")
        return self.catalog

    def n_quarantined(self) -> int:
        """Count the photos that could not be read or prepared."""
        lost = set(self.catalog.result["quarantined"]) if self.catalog else set()
        return len(
            lost.union(*(artifact.result["quarantined"] for artifact in self.prepared.values()))
        )

    def catalog_table(self) -> pa.Table:
        return tables.read(self.require_catalog().file("catalog.parquet"))


@dataclass(frozen=True)
class Done:
    """How a stage ended: SUCCEEDED or CACHED, and a few words for the person who watches."""

    outcome: str
    note: str


def copy_file(source: Path, place: Path) -> None:
    """Copy a file beside its place and rename it there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.copyfile(source, beside)
    beside.replace(place)


def link(source: Path, place: Path) -> None:
    """Link a file of the store to a second place, or copy it where links do not work."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def majority_class(context: Context) -> int:
    """Return the most frequent class of the training data, the answer for a photo that nobody can read."""
    value: int = context.require_catalog().result["majority_class"]
    return value


def load_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
