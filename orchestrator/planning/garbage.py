"""What no run of a store needs: artifacts of deleted runs, and leftovers of work that has ended."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.base.errors import UserError
from orchestrator.planning.run_environment import Scope
from orchestrator.planning.stage import ArtifactName, Stage, find_stages
from orchestrator.spec.load import read as read_spec
from orchestrator.store.artifacts import DRAFT, WORK, Artifact, Store
from orchestrator.store.ledger import TrialRecord, is_live, read, replay
from orchestrator.store.run_dir import RunPaths, all_runs

KINDS = (
    "catalog",
    "audit",
    "split",
    "prepare",
    "shard",
    "rows",
    "features",
    "search",
    "confirm",
    "trial",
)
"""Other folders of a store are left alone."""

Names = set[ArtifactName]


@dataclass(frozen=True)
class Item:
    """One folder to delete."""

    kind: str
    name: str
    place: str
    why: str
    size_bytes: int


@dataclass(frozen=True)
class Garbage:
    """What may go, and how much stays."""

    items: list[Item]
    kept_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)


def find_garbage(store: Store, stages: tuple[Stage, ...]) -> Garbage:
    """Find what no run needs.

    Raises:
        UserError: a run or an audit is live, or its spec cannot be read.
    """
    for audit in sorted((store.root / "audits").glob("*/")):
        if is_live(audit):
            raise UserError(
                f"gc: a store without live audits was required, {audit.name} is live; wait for it"
            )
    artifacts: Names = set()
    work: Names = set()
    for run in all_runs(store.root):
        if is_live(run.root):
            raise UserError(
                f"gc: a store without live runs was required, {run.run_id} is live; "
                "wait or cancel it"
            )
        trials = list(replay(read(run.events)).trials.values())
        artifacts |= _artifacts(store, run, stages) | {("trial", trial.key) for trial in trials}
        work |= _work(run, trials)
    artifacts |= _shards(store, artifacts) | _features(store, artifacts)
    items = []
    kept_bytes = 0
    for kind in KINDS:
        for name, size in store.sizes(kind).items():
            reason = _why_unneeded(kind, name, artifacts, work)
            if reason is None:
                kept_bytes += size
            else:
                items.append(Item(kind, name, f"{store.name}/{kind}/{name}", reason, size))
    return Garbage(items, kept_bytes)


def _why_unneeded(kind: str, name: str, artifacts: Names, work: Names) -> str | None:
    """Return why a folder of a kind may go; None for one that a run needs."""
    if name.startswith(DRAFT):
        return "was never finished"
    if name.startswith(WORK):
        key = name.removeprefix(WORK)
        is_needed = (kind, key) in work or (kind != "trial" and (kind, key) in artifacts)
        return None if is_needed else "work of a training that has ended"
    return None if (kind, name) in artifacts else f"no run needs this {kind}"


def collect(store: Store, garbage: Garbage) -> None:
    """Delete garbage."""
    for item in garbage.items:
        store.remove(item.kind, item.name)


def _artifacts(store: Store, run: RunPaths, stages: tuple[Stage, ...]) -> Names:
    """Return the artifacts that the stages of a run refer to.

    Raises:
        UserError: the spec of the run cannot be read.
    """
    plan = run.read_json("plan")
    if not run.resolved.is_file() or plan is None:
        return set()  # it never began
    try:
        experiment = read_spec(run.resolved, check_roots=False)
    except UserError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"gc: a readable spec of every run was required, {run.resolved} of run {run.run_id} "
            f"does not pass `check` any more ({reason}); delete the run's folder first if you do "
            "not need it"
        ) from None
    entries = find_stages(Scope(experiment, plan["files"], store), stages).values()
    return set().union(*(entry.artifacts for entry in entries))


def _work(run: RunPaths, trials: list[TrialRecord]) -> Names:
    """Return the trainings that a run would go on with: a finished one has none."""
    if (run.read_json("summary") or {}).get("state") == "SUCCEEDED":
        return set()
    return {
        ("trial", trial.key)
        for trial in trials
        if trial.status is None or trial.has_transient_failure
    }


def _shards(store: Store, needed: Names) -> Names:
    """Return the shards that needed preparations hold: the same files, or the same content."""
    hashes = set()
    for kind, key in needed:
        artifact = store.find(kind, key) if kind == "prepare" else None
        if artifact is not None:
            hashes |= _hashes(artifact)
    return {("shard", s.key) for s in store.all("shard") if not hashes.isdisjoint(_hashes(s))}


def _hashes(artifact: Artifact) -> set[str]:
    return {facts["sha256"] for facts in artifact.manifest["files"].values()}


def _features(store: Store, needed: Names) -> Names:
    """Return the kept features of needed preparations. The audit's features may go."""
    features = set()
    for artifact in store.all("features"):
        if ("prepare", artifact.manifest["inputs"].get("photos")) in needed:
            features.add(("features", artifact.key))
    return features
