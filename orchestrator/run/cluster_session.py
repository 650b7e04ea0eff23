"""What a run works on: the process that trainings are forked from, a cluster, and its turn there."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.markup import escape

from data_prep.files import write_text
from orchestrator.base.console import Reporter
from orchestrator.spec.models import Experiment
from orchestrator.store.run_dir import RunPaths

if TYPE_CHECKING:
    from orchestrator.cluster.queue import Turn

LOADED_TO_PREPARE = {
    "crop_face": ("torch", "deepface.modules.detection", "deepface.modules.modeling"),
    "fastmtcnn": ("facenet_pytorch",),
}
"""What the fork server imports for a step or detector. Not onnxruntime and pyarrow: they start threads."""


@contextmanager
def start_server(experiment: Experiment, address: str | None) -> Iterator[str | None]:
    """Start the process that trainings are forked from; it imports while the catalog is read.

    The workers of another machine's cluster cannot reach it.
    """
    from orchestrator.cluster.connection import is_local  # noqa: PLC0415
    from orchestrator.cluster.fork_server import start_fork_server  # noqa: PLC0415
    from orchestrator.search.trial_process import TRAINING_MODULES  # noqa: PLC0415

    if address is not None and not is_local(address):
        yield None
        return
    used = set()
    for arm in experiment.arms.values():
        for step in arm.prep.steps:
            used |= {step.name, getattr(step, "detector", "")}
    to_prepare = [
        name for key in LOADED_TO_PREPARE if key in used for name in LOADED_TO_PREPARE[key]
    ]
    threads = max(1, int(experiment.spec.resources.per_trial.cpu))
    with start_fork_server(
        [*to_prepare, *TRAINING_MODULES, "orchestrator.search.trial_process"], threads=threads
    ) as server:
        yield server


class ClusterSize(NamedTuple):
    """The cores and cards of a cluster."""

    cpus: float
    gpus: float


@contextmanager
def connect_run(
    experiment: Experiment,
    address: str | None,
    paths: RunPaths,
    reporter: Reporter,
    *,
    insecure: bool,
) -> Iterator[ClusterSize]:
    """Connect to a cluster that can run a trial and a worker of the preparation."""
    from orchestrator.cluster.connection import connect  # noqa: PLC0415

    resources = experiment.spec.resources
    with connect(address, insecure=insecure, may_exit=True) as cluster:
        if cluster.dashboard_url:
            reporter.say(f"dashboard {cluster.dashboard_url}")
        if cluster.job_page:
            write_text(paths.dashboard, cluster.job_page)
        if cluster.dashboard_problem:
            problem = escape(cluster.dashboard_problem)
            reporter.say(f"Ray's dashboard did not come up, the run goes on without: {problem}")
        cluster.require(
            cpu=max(resources.per_trial.cpu, resources.per_prep_worker.cpu),
            gpu=max(resources.per_trial.least_gpu, resources.per_prep_worker.gpu),
        )
        yield ClusterSize(cluster.resources.get("CPU", 1.0), cluster.resources.get("GPU", 0.0))


@contextmanager
def wait_for_turn(
    experiment: Experiment,
    address: str | None,
    paths: RunPaths,
    reporter: Reporter,
    *,
    max_runs: int | None,
) -> Iterator[Turn | None]:
    """Wait for the run's turn on a cluster that others use too; a local one has no queue."""
    if address is None:
        yield None
        return
    from orchestrator.cluster.jobs import USER_VARIABLE  # noqa: PLC0415
    from orchestrator.cluster.queue import GO, YIELD, Answer, Place, Turn  # noqa: PLC0415

    def show(answer: Answer) -> None:
        if answer.word == GO:
            paths.pending.unlink(missing_ok=True)
        elif answer.word == YIELD:
            reporter.say("a run of a higher priority waits: this one goes on after it")
        else:
            write_text(paths.pending, f"{answer.n_ahead} ahead")
            reporter.say(f"pending: {answer.n_ahead} ahead")

    place = Place(
        paths.run_id,
        os.environ.get(USER_VARIABLE) or getpass.getuser(),
        experiment.spec.resources.priority,
        time.time(),
        max_runs=max_runs,
    )
    with Turn(place, show) as turn:
        yield turn
