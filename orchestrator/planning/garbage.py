"""What no run of a store needs: artifacts that only deleted runs refer to, and the leavings of work that has ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import UserError
from orchestrator.planning.stage import ArtifactName, Scope, Stage, find_stages
from orchestrator.spec.load import read as read_spec
from orchestrator.store.artifacts import Store
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

    path: Path
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
        UserError: a run or an audit is live, or what it needs cannot be told.
    """
    for audit in sorted((store.root / "audits").glob("*/")):
        if is_live(audit):
            raise UserError(
                f"gc: a store without live audits was required, {audit.name} is audited; wait for it"
            )
    artifacts: Names = set()
    work: Names = set()
    for run in all_runs(store.root):
        if is_live(run.root):
            raise UserError(
                f"gc: a store without live runs was required, {run.run_id} is live; wait or cancel it"
            )
        trials = list(replay(read(run.events)).trials.values())
        artifacts |= _artifacts(store, run, stages) | {("trial", trial.key) for trial in trials}
        work |= _work(run, trials)
    artifacts |= _shards(store, artifacts) | _features(store, artifacts)
    items = []
    kept = 0
    for kind in KINDS:
        for path, key, what in _folders(store.root / kind):
            if what == "draft":
                reason: str | None = "was never finished"
            elif what == "work":
                needed = (kind, key) in work or (kind != "trial" and (kind, key) in artifacts)
                reason = None if needed else "work of a training that has ended"
            else:
                reason = None if (kind, key) in artifacts else f"no run needs this {kind}"
            if reason is None:
                kept += _size(path)
            else:
                items.append(Item(path, reason, _size(path)))
    return Garbage(items, kept)


def collect(found: Garbage) -> None:
    """Delete what was found; a folder without its manifest is no artifact, so that goes first."""
    for item in found.items:
        (item.path / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(item.path, ignore_errors=True)


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
    found = find_stages(Scope(experiment, plan["files"], store), stages)
    return set().union(*(entry.artifacts for entry in found.values()))


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
    """Return the shards that needed preparations are made of: the files are the same ones, or have the same content."""
    prepared = [
        found for kind, key in needed if kind == "prepare" and (found := store.find(kind, key))
    ]
    hashes = {
        facts["sha256"] for artifact in prepared for facts in artifact.manifest["files"].values()
    }
    shards = store.all("shard")
    return {
        ("shard", s.key)
        for s in shards
        if any(f["sha256"] in hashes for f in s.manifest["files"].values())
    }


def _features(store: Store, needed: Names) -> Names:
    """Return the kept features of photos that are needed. The audit's own name no preparation, and may go."""
    found = (
        (feature.key, feature.manifest["inputs"].get("photos")) for feature in store.all("features")
    )
    return {("features", key) for key, photos in found if ("prepare", photos) in needed}


def _folders(home: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (folder, key, artifact | work | draft) of a kind."""
    for path in sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []:
        if path.name.startswith(".draft-"):
            yield path, "", "draft"
        elif path.name.startswith(".work-"):
            yield path, path.name.removeprefix(".work-"), "work"
        elif not path.name.startswith("."):
            yield path, path.name, "artifact"


def _size(path: Path) -> int:
    """Return the bytes that deleting a folder frees: a file that stands elsewhere too frees none."""
    files = (file.stat() for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(facts.st_size // facts.st_nlink for facts in files)
