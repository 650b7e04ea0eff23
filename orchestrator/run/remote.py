"""Commands on the cluster of a job server, for people who have neither its data nor its store."""

from __future__ import annotations

import base64
import getpass
import json
import os
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from data_prep.files import atomic_path
from data_prep.roots.places import is_url
from orchestrator.base.errors import INTERRUPTED, SpecError, UserError
from orchestrator.base.json_types import Json
from orchestrator.cluster.jobs import Answer, JobServer
from orchestrator.spec.load import read
from orchestrator.spec.models import Experiment
from orchestrator.store.artifacts import git_commit

_PACKAGES = ("orchestrator", "trainers", "data_prep")
_MAX_BYTES = 20 * 2**20  # of what travels; the packages are about 3 MB
_CHECK = "orchestrator.run.remote_check"
_REPORT = "orchestrator.run.remote_report"


@dataclass(frozen=True)
class Order:
    """What to submit, and how; paths other than the spec's are the cluster's."""

    spec: Path
    overrides: tuple[str, ...]
    base: Path | None
    store: str | Path | None
    insecure: bool = False
    detach: bool = False
    smoke: bool = False
    allow_download: bool = False
    max_runs: int | None = None
    allow_code: bool = False


@contextmanager
def _parcel(spec: Path | None = None, code: Sequence[Path] = ()) -> Iterator[Path]:
    """Make the folder that travels: the three packages, the spec, its code; no data and no secrets.

    Raises:
        UserError: it is too large.
    """
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in _PACKAGES:
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        if spec is not None:
            shutil.copyfile(spec, folder / "spec.yaml")
        for file in code:
            shutil.copyfile(file, folder / file.name)
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if n_bytes > _MAX_BYTES:
            raise UserError(
                f"at most {_MAX_BYTES / 1e6:.0f} MB were required for {', '.join(_PACKAGES)} and the "
                f"spec, found {n_bytes / 1e6:.0f} MB; move what is no code out of {root}"
            )
        yield folder


def submit(address: str, order: Order) -> int:
    """Run a spec as a job of a cluster; return its exit code, or 0 at once where it is detached.

    The submission id is the run's id, so a second submit attaches to the same job.

    Raises:
        UserError: the cluster is not reached, differs in its versions, or lacks data or store.
    """
    experiment = read(
        order.spec,
        list(order.overrides),
        need_data=False,
        base=order.base,
        allow_code=order.allow_code,
    )
    server = JobServer(address, insecure=order.insecure)
    words = ["spec.yaml"]
    if order.base is not None or _has_relative_root(experiment):
        words += ["--base", str(order.base or order.spec.resolve().parent)]
    for change in order.overrides:
        words += ["--set", change]
    if order.store is not None:
        words += ["--store", str(order.store)]
    with _parcel(order.spec, list(experiment.code.values())) as folder:
        facts = _check(server, words, folder)
        if order.store is None:
            words += ["--store", facts.store]
        words = ["orchestrator", "submit", *words, "--address", "$RAY_ADDRESS"]
        for name in ("insecure", "smoke", "allow_download", "allow_code"):
            if getattr(order, name):
                words.append(f"--{name.replace('_', '-')}")
        if order.max_runs is not None:
            words += ["--max-runs", str(order.max_runs)]
        about = {
            "run": facts.run_id,
            "spec": experiment.spec.name,
            "user": getpass.getuser(),
            "commit": git_commit() or "unknown",
            "store": facts.store,
        }
        name, is_new = _name_of(server, facts.run_id)
        if is_new:
            is_new = server.submit(words, folder, name, about)
    said = "sent" if is_new else "has it already; following it"
    sentence = f"run {facts.run_id}: {address} {said}, store {facts.store}\n"
    if order.detach:
        sys.stderr.write(sentence)
        sys.stdout.write(f"{facts.run_id}\n")
        return 0
    return follow(server, name, facts.run_id, sentence)


def _has_relative_root(experiment: Experiment) -> bool:
    """Return True if data are looked for relative to a folder; the cluster must have that then."""
    data = experiment.spec.data
    roots = [getattr(side, "root", None) for side in (data.source, data.test)]
    return any(
        root is not None and not is_url(root) and not Path(root).is_absolute() for root in roots
    )


def follow(server: JobServer, name: str, run_id: str, sentence: str = "") -> int:
    """Print a sentence, then what the job of a run prints; Ctrl-C leaves it, and the run goes on.

    The sentence is printed here, so that a Ctrl-C in answer to it already finds its handler.
    """
    try:
        sys.stderr.write(sentence)
        return server.follow(name, _write)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nno longer following; run {run_id} goes on. To come back: "
            f"logs {run_id} --follow --address {server.address}; "
            f"to end it: cancel {run_id} --address {server.address}\n"
        )
        return INTERRUPTED


def call(address: str, arguments: Sequence[str], run: str | None) -> int:
    """Run a command where the store is, print its answer here, and return its exit code.

    Args:
        address: of the job server.
        arguments: the command line without --address.
        run: the run that it names; its job knows the store.
    """
    server = JobServer(address)
    words = ["orchestrator", *arguments]
    if "--store" not in arguments and (store := _store_of(server, run)):
        words += ["--store", store]
    with _parcel() as folder:
        answer = server.call(words, folder)
    _write(answer.text)
    return answer.exit_code


def logs(address: str, arguments: Sequence[str], run: str) -> int:
    """Print the events of a run, or follow what its job prints."""
    if not {"--follow", "-f"} & set(arguments):
        return call(address, arguments, run)
    server = JobServer(address)
    for job in server.jobs_of_runs():
        if run == "latest" or job.metadata["run"].startswith(run):
            return follow(server, job.submission_id, job.metadata["run"])
    raise SpecError(f"RUN {run}: a run with a job at {address} was required, found none")


def report(address: str, run: str, store: str | Path | None, place: Path | None) -> Path:
    """Let the cluster write the report of a run, bring the page here, and return where it is.

    Args:
        address: of the job server.
        run: its name, the beginning of one, or `latest`.
        store: of the cluster; None: the one that the run's job knows.
        place: for the page; None: a file here that is named after the run.

    Raises:
        UserError: the cluster is not reached, or the run has no report.
    """
    server = JobServer(address)
    store = store or _store_of(server, run)
    with _parcel() as folder:
        answer = server.call([_REPORT, run, *(("--store", str(store)) if store else ())], folder)
    facts = _facts_of(server, answer)
    place = place or Path(f"{facts['run']}.html")
    with atomic_path(place) as beside:
        beside.write_bytes(zlib.decompress(base64.b64decode(facts["page"])))
    return place


def packed(page: bytes) -> str:
    """Return a page as text that a job's log carries whole."""
    return base64.b64encode(zlib.compress(page)).decode()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass(frozen=True)
class Facts:
    """What the cluster says of itself and of a spec before anything is trained."""

    run_id: str
    store: str
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions that have to be equal on both sides."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "torch": metadata.version("torch").partition("+")[0]}


def _check(server: JobServer, words: list[str], folder: Path) -> Facts:
    """Let the cluster plan the spec: its data, its store and its versions are checked there."""
    facts = Facts(**_facts_of(server, server.call([_CHECK, *words], folder)))
    for name, here in versions().items():
        there = facts.versions.get(name)
        if there != here:
            raise UserError(
                f"{name} {here} was required at {server.address}, as it is here, found {there}; "
                "install one of them on both sides"
            )
    return facts


def _facts_of(server: JobServer, answer: Answer) -> Json:
    """Return the facts that a command of this package printed as its last line.

    Raises:
        UserError: it printed what is missing instead.
    """
    last = answer.text.strip().splitlines()[-1:] or [""]
    if answer.exit_code != 0 or not last[0].startswith("{"):
        error = SpecError if answer.exit_code == SpecError.exit_code else UserError
        raise error(f"on the cluster at {server.address}: {answer.text.strip()}")
    facts: Json = json.loads(last[0])
    return facts


def _name_of(server: JobServer, run_id: str) -> tuple[str, bool]:
    """Return the submission id for a run, and True if no live job has it."""
    jobs = [job for job in server.jobs_of_runs() if job.metadata["run"] == run_id]
    if not jobs:
        return run_id, True
    if not jobs[0].has_ended:
        return jobs[0].submission_id, False
    return f"{run_id}-{len(jobs) + 1}", True  # Ray takes each id once


def _store_of(server: JobServer, run: str | None) -> str | None:
    """Return the store of the latest job whose run fits; None where the cluster's own is meant."""
    for job in server.jobs_of_runs():
        if run is None or run == "latest" or job.metadata["run"].startswith(run):
            return job.metadata.get("store")
    return None


def default_store_of_cluster() -> str:
    """Return the store that the cluster's environment names.

    Raises:
        SpecError: it names none; a folder below the job's copy of the code would be lost.
    """
    name = os.environ.get("ORCHESTRATOR_STORE")
    if not name:
        raise SpecError(
            "a store of the cluster was required, found none; name one with --store FOLDER, or set "
            "ORCHESTRATOR_STORE where the cluster is started"
        )
    return name
