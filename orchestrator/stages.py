"""The bodies of the stages: each finds its artifact or makes it, and leaves the run's files behind."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels import Schema
from data_prep.steps import steps_identity
from orchestrator import tables
from orchestrator.errors import UserError
from orchestrator.keys import digest, stage_key
from orchestrator.ledger import Ledger
from orchestrator.plan import VERSIONS, Keys
from orchestrator.progress import Reporter
from orchestrator.runs import RunPaths
from orchestrator.spec import Experiment
from orchestrator.store import Artifact, Store, write_json


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

    def require_catalog(self) -> Artifact:
        if self.catalog is None:
            raise UserError("the catalog was required and has not been made")
        return self.catalog

    def n_quarantined(self) -> int:
        """Count the photos that could not be read or prepared."""
        lost = set(self.catalog.result["quarantined"]) if self.catalog else set()
        return len(lost.union(*(artifact.result["quarantined"] for artifact in self.prepared.values())))

    def catalog_table(self) -> pa.Table:
        return tables.read(self.require_catalog().file("catalog.parquet"))


@dataclass(frozen=True)
class Done:
    """How a stage ended: SUCCEEDED or CACHED, and a few words for the person who watches."""

    outcome: str
    note: str


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Map a function over items with Ray tasks, results in order, at most a few per core in flight."""
    import ray  # noqa: PLC0415

    remote = ray.remote(num_cpus=1)(function)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for item in items:
        waiting.append(remote.remote(item))
        if len(waiting) >= limit:
            yield ray.get(waiting.pop(0))
    for reference in waiting:
        yield ray.get(reference)


def catalog(context: Context) -> Done:
    """Read every photo once: hash, size, labels, and whether it decodes."""
    from data_prep.catalog import build_catalog, content_hash, photos_hash  # noqa: PLC0415

    data, base, key = context.experiment.spec.data, context.experiment.base, context.keys.catalog
    found = context.store.find("catalog", key)
    if found is None:
        with (
            context.store.draft("catalog", key, params={}, inputs={"files": context.keys.files}) as draft,
            context.reporter.task("catalog", None) as advance,
        ):
            work = context.store.work_dir("catalog", key)
            table = build_catalog(data, base, map_chunks=ray_map, progress=advance, work=work)
            tables.write(table, draft.path / "catalog.parquet")
            draft.result |= {"content": content_hash(table), "photos": photos_hash(table), **_facts(table)}
    context.catalog = artifact = found or context.store.get("catalog", key)
    copy_file(artifact.file("catalog.parquet"), context.paths.catalog)
    facts = artifact.result
    note = f"{facts['n_ok']} photos, {facts['n_groups']} groups"
    if facts["quarantined"]:
        note += f", {len(facts['quarantined'])} quarantined"
    return Done("CACHED" if found else "SUCCEEDED", note)


def _facts(table: pa.Table) -> dict[str, Any]:
    ok = pc.equal(table["status"], "ok")
    bad = table.filter(pc.invert(ok))
    labels = Counter(label for label in table.filter(ok)["label"].to_pylist() if label is not None)
    majority = min(labels, key=lambda label: (-labels[label], label)) if labels else 0
    return {
        "n_photos": len(table),
        "n_ok": pc.sum(ok).as_py() or 0,
        "n_groups": pc.count_distinct(table["group"]).as_py(),
        "majority_class": majority,
        "quarantined": dict(zip(bad["sample_id"].to_pylist(), bad["status"].to_pylist(), strict=True)),
    }


def split(context: Context) -> Done:
    """Give every labelled sample its role and fold, per variant."""
    from data_prep.split import assign  # noqa: PLC0415

    catalog, confirm = context.require_catalog(), context.experiment.spec.confirm
    n_folds = confirm.folds if confirm else None
    made, parts = 0, []
    for name, arm in context.experiment.arms.items():
        key = context.keys.split(arm, catalog.result["content"])
        if context.store.find("split", key) is None:
            made += 1
            table = assign(context.catalog_table(), context.schema, arm.data.split, arm.data.exclude, n_folds)
            with context.store.draft("split", key, params={}, inputs={"catalog": catalog.key}) as draft:
                tables.write(table, draft.path / "folds.parquet")
                draft.result |= dict(Counter(table["role"].to_pylist()))
        context.folds[name] = artifact = context.store.get("split", key)
        table = tables.read(artifact.file("folds.parquet"))
        parts.append(table.add_column(0, "variant", pa.array([name] * len(table), pa.string())))
    tables.write(pa.concat_tables(parts), context.paths.folds)
    roles = next(iter(context.folds.values())).result
    note = ", ".join(f"{roles[role]} {role}" for role in ("train", "val", "test", "excluded") if roles.get(role))
    return Done("SUCCEEDED" if made else "CACHED", note)


def audit(context: Context, *, probe: bool = False) -> Done:
    """Look for what makes scores lie: leaks, copies, corrupt files, shortcuts.

    Where a split leaves groups on both sides, a quick model measures what that is worth; `probe` asks such a model
    about every label.
    """
    from data_prep.audit import audit as examine  # noqa: PLC0415
    from orchestrator.probe import leak_gaps, probe_labels  # noqa: PLC0415

    content, arms = context.require_catalog().result["content"], context.experiment.arms
    key = context.keys.audit(content, probe=probe)
    found = context.store.find("audit", key)
    if found is None:
        folds = {name: tables.read(artifact.file("folds.parquet")) for name, artifact in context.folds.items()}
        with context.store.draft("audit", key, params={}, inputs={"catalog": context.require_catalog().key}) as draft:
            facts = examine(
                context.catalog_table(),
                folds,
                context.schema,
                labels=context.experiment.spec.data.labels,
                exclude={name: arm.data.exclude for name, arm in arms.items()},
                gaps=leak_gaps(context, folds),
                probe=probe_labels(context) if probe else None,
            )
            write_json(draft.path / "audit.json", facts)
            draft.result["n_warnings"] = len(facts.get("warnings", []))
    artifact = found or context.store.get("audit", key)
    copy_file(artifact.file("audit.json"), context.paths.audit)
    n_warnings = artifact.result["n_warnings"]
    return Done("CACHED" if found else "SUCCEEDED", f"{n_warnings} warning(s), see audit.json" if n_warnings else "")


def prepare(context: Context) -> Done:
    """Turn photos into shards of crops, one set per distinct `prep`; then into one array that trials map."""
    photos = context.require_catalog().result["photos"]
    made: dict[str, Artifact] = {}
    prepared = copied = 0
    cached = True
    for name, arm in context.experiment.arms.items():
        key = context.keys.prepare(arm, photos)
        if key not in made:
            found = context.store.find("prepare", key)
            if found is None:
                cached = False
                counts = _prepare_one(context, key, arm.prep)
                prepared, copied = prepared + counts[0], copied + counts[1]
            made[key] = found or context.store.get("prepare", key)
        context.prepared[name] = made[key]
        context.rows[name] = _rows(context, made[key])
    lost = {sample for artifact in made.values() for sample in artifact.result["quarantined"]}
    note = f"{prepared} prepared, {copied} copied" if not cached else ""
    if lost:
        note += f", {len(lost)} quarantined"
    return Done("CACHED" if cached else "SUCCEEDED", note)


def _prepare_one(context: Context, key: str, prep: Any) -> tuple[int, int]:
    from data_prep.pool import ShardTask, prepare_shards  # noqa: PLC0415
    from data_prep.shards import n_shards_for, shard_name, write_index  # noqa: PLC0415

    steps, share = steps_identity(prep), context.experiment.spec.resources.per_prep_worker
    wanted, donors = _shard_rows(context), _donors(context, steps)
    keys = {number: _shard_key(steps, rows) for number, rows in wanted.items()}
    tasks = [
        ShardTask(number, rows, [path for n, folder in donors if (path := folder / shard_name(number % n)).is_file()])
        for number, rows in wanted.items()
        if context.store.find("shard", keys[number]) is None
    ]
    work = context.store.work_dir("prepare", key)
    n_workers = max(1, int(min(context.cpus / share.cpu, context.gpus / share.gpu if share.gpu else len(tasks) or 1)))
    total, done, prepared, copied = sum(len(task.rows) for task in tasks), 0, 0, 0
    with context.reporter.task("prepare", total) as advance:
        for result in prepare_shards(tasks, prep, work, n_workers=n_workers, cpus=share.cpu, gpus=share.gpu):
            number = result.task.number
            with context.store.draft("shard", keys[number], params={"steps": steps}, inputs={}) as draft:
                shutil.move(result.path, draft.path / "shard.parquet")
                draft.result |= {
                    "n_rows": len(result.task.rows),
                    "n_prepared": result.n_prepared,
                    "n_copied": result.n_copied,
                    "quarantined": dict(result.quarantined),
                }
            context.ledger.append(
                "shard",
                commit=True,
                number=number,
                key=keys[number],
                n_prepared=result.n_prepared,
                n_copied=result.n_copied,
            )
            prepared, copied, done = (
                prepared + result.n_prepared,
                copied + result.n_copied,
                done + len(result.task.rows),
            )
            advance(done, f"{len(result.quarantined)} quarantined" if result.quarantined else "")
    with context.store.draft("prepare", key, params={"steps": steps}, inputs={}) as draft:
        quarantined: dict[str, str] = {}
        for number in sorted(wanted):
            shard = context.store.get("shard", keys[number])
            link(shard.file("shard.parquet"), draft.path / shard_name(number))
            quarantined |= shard.result["quarantined"]
        write_index(draft.path, n_shards=n_shards_for(sum(map(len, wanted.values()))), steps=steps, size=prep.size)
        draft.result |= {
            "n_shards": len(wanted),
            "quarantined": quarantined,
            "n_prepared": prepared,
            "n_copied": copied,
        }
    return prepared, copied


def _shard_rows(context: Context) -> dict[int, list[tuple[str, str, str]]]:
    """Deal the usable photos (sample_id, path, sha256) to shards by their ids."""
    from data_prep.catalog import photo_path  # noqa: PLC0415
    from data_prep.shards import n_shards_for, shard_of  # noqa: PLC0415

    data, base = context.experiment.spec.data, context.experiment.base
    table = context.catalog_table()
    table = table.filter(pc.equal(table["status"], "ok"))
    n_shards = n_shards_for(len(table))
    rows: dict[int, list[tuple[str, str, str]]] = {number: [] for number in range(n_shards)}
    for sample, sha256 in zip(table["sample_id"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        rows[shard_of(sample, n_shards)].append((sample, str(photo_path(data, base, sample)), sha256))
    return {number: sorted(found) for number, found in rows.items() if found}


def _shard_key(steps: Any, rows: list[tuple[str, str, str]]) -> str:
    return stage_key("shard", VERSIONS["shard"], steps, {"rows": digest([[sample, sha] for sample, _, sha in rows])})


def _donors(context: Context, steps: Any) -> list[tuple[int, Path]]:
    """Return earlier preparations by the same steps, newest first: their numbers of shards are powers of two."""
    from data_prep.shards import read_index  # noqa: PLC0415

    found = [artifact for artifact in context.store.all("prepare") if artifact.manifest["params"]["steps"] == steps]
    return [(read_index(artifact.path).n_shards, artifact.path) for artifact in found[:2]]


def _rows(context: Context, prepared: Artifact) -> Artifact:
    """Decode the shards once into a memory-mapped array that all trials share."""
    from data_prep.shards import memory_map  # noqa: PLC0415

    key = context.keys.rows(prepared.key)
    if (found := context.store.find("rows", key)) is not None:
        return found
    with context.store.draft("rows", key, params={}, inputs={"prepare": prepared.key}) as draft:
        memory_map(prepared.path, draft.path)
    return context.store.get("rows", key)


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
