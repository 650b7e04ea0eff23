"""What every stage of a run works with: the experiment, the store, the ledger, its share of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_listing import sides
from data_prep.roots.places import is_url
from orchestrator.spec.models import Experiment, TrialShare
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import DriverStarted, TrialStarted

if TYPE_CHECKING:
    from orchestrator.base.console import Reporter
    from orchestrator.store.ledger import Ledger
    from orchestrator.store.run_dir import RunPaths


@dataclass(frozen=True)
class Scope:
    """What decides the keys of a run, and where its artifacts are."""

    experiment: Experiment
    files: str  # fingerprint of the data roots
    store: Store

    @property
    def schema(self) -> Schema:
        """The labels and their classes."""
        return Schema.of(self.experiment.spec.data.labels)


@dataclass(frozen=True)
class Env(Scope):
    """What every stage of a run works with. Nothing in it changes but the ledger, which grows."""

    paths: RunPaths
    ledger: Ledger
    console: Reporter
    cpus: float
    gpus: float
    fork_server: str | None = None  # address of the process that trainings are forked from
    must_yield: Callable[[], bool] = lambda: False  # to a run that goes first on this cluster

    @property
    def trial_share(self) -> TrialShare:
        """What one trial gets on this cluster."""
        return self.experiment.spec.resources.per_trial.on(self.gpus)

    @property
    def reads_bucket(self) -> bool:
        """True if photos lie on a bucket, so that whoever reads them makes requests."""
        return any(is_url(section.root) for _, section in sides(self.experiment.spec.data))

    @property
    def code(self) -> list[str]:
        """The files of the user's own parts, which workers may run."""
        return [str(self.paths.code / name) for name in sorted(self.experiment.code)]

    @property
    def photos_since(self) -> float:
        """The time, in seconds since the epoch, from which this run takes photos as they are.

        It is the latest start of the run; once there are trials, it is the first start.
        """
        events = self.ledger.events
        starts = [event.time for event in events if isinstance(event, DriverStarted)]
        if not starts:
            return time.time()
        has_trials = any(isinstance(event, TrialStarted) for event in events)
        return starts[0] if has_trials else starts[-1]

    @contextmanager
    def single_flight(self, kind: str, name: str, activity: str) -> Iterator[None]:
        """Hold a lock of the store, so that one process at a time makes this artifact.

        Args:
            kind: of the artifact.
            name: of the lock.
            activity: what the other process does, for the message of the one that waits.
        """
        from filelock import Timeout  # noqa: PLC0415

        lock = self.store.lock(kind, f".lock-{name[:16]}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.console.say(f"  another run {activity}; this run waits and uses its result")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
