"""The bodies of the stages: each finds its artifact or makes it, and leaves the run's files behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.catalog.labels import Schema
from data_prep.files import write_json
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.cluster.tasks import ray_map
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


def catalog(context: Context) -> Done:
    """Read every photo once: hash, size, labels, and whether it decodes."""
    from data_prep.catalog.builder import build_catalog, content_hash, photos_hash  # noqa: PLC0415

    data, base, key = context.experiment.spec.data, context.experiment.base, context.keys.catalog
    with context.turn("catalog", key, "reads the same photos"):
        found = context.store.find("catalog", key)
        if (
            found is not None
            and found.manifest["finished"] < context.began
            and _come_back(context, found)
        ):
            shutil.rmtree(found.path)  # rights are no part of the key
            found = None
        if found is None:
            with (
                context.store.draft(
                    "catalog", key, params={}, inputs={"files": context.keys.files}
                ) as draft,
                context.reporter.task("catalog", None) as advance,
            ):
                work = context.store.work_dir("catalog", key)
                table = build_catalog(data, base, map_chunks=ray_map, progress=advance, work=work)
                tables.write(table, draft.path / "catalog.parquet")
                draft.result |= {
                    "content": content_hash(table),
                    "photos": photos_hash(table),
                    **_facts(table),
                }
    context.catalog = artifact = found or context.store.get("catalog", key)
    copy_file(artifact.file("catalog.parquet"), context.paths.catalog)
    facts = artifact.result
    note = f"{facts['n_ok']} photos, {facts['n_groups']} groups"
    if facts["quarantined"]:
        note += f", {len(facts['quarantined'])} quarantined"
    return Done("CACHED" if found else "SUCCEEDED", note)


def _come_back(context: Context, catalog: Artifact) -> bool:
    """Return whether a photo that could not be read when the catalog was made can be read now."""
    from data_prep.catalog.builder import photo_path  # noqa: PLC0415
    from data_prep.catalog.inspection import UNREADABLE  # noqa: PLC0415

    data, base = context.experiment.spec.data, context.experiment.base
    for sample, status in catalog.result["quarantined"].items():
        if status.startswith(UNREADABLE):
            try:
                photo_path(data, base, sample).open("rb").close()
            except OSError:
                continue
            return True
    return False


def _facts(table: pa.Table) -> dict[str, Any]:
    ok = pc.equal(table["status"], "ok")
    bad = table.filter(pc.invert(ok))
    labels = Counter(label for label in table.filter(ok)["label"].to_pylist() if label is not None)
    majority = min(labels, key=lambda label: (-labels[label], label)) if labels else 0
    return {
        "n_photos": len(table),
        "n_ok": pc.sum(ok).as_py() or 0,
        "n_groups": pc.count_distinct(table.filter(ok)["group"]).as_py(),
        "majority_class": majority,
        "quarantined": dict(
            zip(bad["sample_id"].to_pylist(), bad["status"].to_pylist(), strict=True)
        ),
    }


def split(context: Context) -> Done:
    """Give every labelled sample its role and fold, per variant."""
    from data_prep.split import assign, inner_part  # noqa: PLC0415

    catalog, confirm = context.require_catalog(), context.experiment.spec.confirm
    n_folds = confirm.folds if confirm else None
    made, parts = 0, []
    for name, arm in context.experiment.arms.items():
        key = context.keys.split(arm, catalog.result["content"])
        if context.store.find("split", key) is None:
            made += 1
            table = assign(
                context.catalog_table(), context.schema, arm.data.split, arm.data.exclude, n_folds
            )
            with context.store.draft(
                "split", key, params={}, inputs={"catalog": catalog.key}
            ) as draft:
                tables.write(table, draft.path / "folds.parquet")
                draft.result |= dict(Counter(table["role"].to_pylist()))
        artifact = context.store.get("split", key)
        table = tables.read(artifact.file("folds.parquet"))
        if artifact.key not in {one.key for one in context.folds.values()}:
            for fold in range(n_folds or 0):  # a class that confirm cannot train on is refused now
                inner_part(table, fold, arm.data.split, context.schema)
        context.folds[name] = artifact
        parts.append(table.add_column(0, "variant", pa.array([name] * len(table), pa.string())))
    tables.write(pa.concat_tables(parts), context.paths.folds)
    roles = next(iter(context.folds.values())).result
    note = ", ".join(
        f"{roles[role]} {role}" for role in ("train", "val", "test", "excluded") if roles.get(role)
    )
    return Done("SUCCEEDED" if made else "CACHED", note)


def audit(context: Context, *, probe: bool = False) -> Done:
    """Look for what makes scores lie: leaks, copies, corrupt files, shortcuts.

    Where a split leaves groups on both sides, a quick model measures what that is worth; `probe` asks such a model
    about every label.
    """
    from data_prep.audit.examination import audit as examine  # noqa: PLC0415
    from orchestrator.stages.quick_model import leak_gaps, probe_labels  # noqa: PLC0415

    content, arms = context.require_catalog().result["content"], context.experiment.arms
    key = context.keys.audit(content, probe=probe)
    found = context.store.find("audit", key)
    if found is None:
        folds = {
            name: tables.read(artifact.file("folds.parquet"))
            for name, artifact in context.folds.items()
        }
        with context.store.draft(
            "audit", key, params={}, inputs={"catalog": context.require_catalog().key}
        ) as draft:
            facts = examine(
                context.catalog_table(),
                folds,
                context.schema,
                labels=context.experiment.spec.data.labels,
                exclude={name: arm.data.exclude for name, arm in arms.items()},
                gaps=leak_gaps(context, folds),
                probe=probe_labels(context) if probe else None,
            )
            write_json(draft.path / "audit.json", facts.to_json())
            draft.result["n_warnings"] = len(facts.warnings)
    artifact = found or context.store.get("audit", key)
    copy_file(artifact.file("audit.json"), context.paths.audit)
    n_warnings = artifact.result["n_warnings"]
    return Done(
        "CACHED" if found else "SUCCEEDED",
        f"{n_warnings} warning(s), see audit.json" if n_warnings else "",
    )


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
