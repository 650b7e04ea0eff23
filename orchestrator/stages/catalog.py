"""The catalog stage: every photo is read once."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from data_prep.files import atomic_path
from orchestrator.base.errors import UserError
from orchestrator.base.json_types import Json
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, Found
from orchestrator.planning.stage_keys import catalog_key
from orchestrator.store.artifacts import Artifact

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Catalog:
    """The photos of a run, with their labels, groups and states."""

    outcome: str
    note: str
    artifact: Artifact

    @cached_property
    def table(self) -> pa.Table:
        """All rows of the catalog; the file is read once."""
        from orchestrator.store import tables  # noqa: PLC0415

        return tables.read(self.artifact.file("catalog.parquet"))

    @property
    def content(self) -> str:
        """The hash of all that later stages read."""
        return str(self.artifact.result["content"])

    @property
    def photos(self) -> str:
        """The hash of the photos."""
        return str(self.artifact.result["photos"])

    @property
    def quarantined(self) -> dict[str, str]:
        """Sample id -> why the photo cannot be used."""
        quarantined: dict[str, str] = self.artifact.result["quarantined"]
        return quarantined

    @property
    def majority_class(self) -> int:
        """The most frequent class of the training data, the answer for an unreadable photo."""
        return int(self.artifact.result["majority_class"])


def find(scope: Scope) -> Found:
    """Find the catalog of these files and labels."""
    key = catalog_key(scope)
    artifacts = frozenset({("catalog", key)})
    artifact = scope.store.find("catalog", key)
    if artifact is None:
        why = "files, labels or groups are new or changed"
        return Found(why, key=key, artifacts=artifacts)
    return Found(
        "these files and labels were read before",
        is_cached=True,
        key=key,
        artifacts=artifacts,
        output=Catalog(CACHED, "", artifact),
    )


def run(env: Env) -> Catalog:
    """Read every photo once: hash, size, labels, and whether it decodes.

    Raises:
        DataError: data or the labels of a test table are not as the spec says.
    """
    from data_prep.catalog.answers_table import placeholder  # noqa: PLC0415

    key = catalog_key(env)
    spec = env.experiment.spec
    with env.single_flight("catalog", key, "reads the same photos"):
        artifact = env.store.find("catalog", key)
        if artifact is not None and (_is_outdated(env, artifact) or _has_split_groups(artifact)):
            env.store.remove("catalog", key)
            artifact = None
        outcome = CACHED if artifact else SUCCEEDED
        if artifact is None:
            artifact = _build(env, key)
    with atomic_path(env.paths.catalog) as beside:
        shutil.copyfile(artifact.file("catalog.parquet"), beside)
    _require_columns(env.experiment.spec.subgroups, artifact)
    facts = artifact.result
    note = f"{facts['n_ok']} photos, {facts['n_groups']} groups"
    if facts["quarantined"]:
        note += f", {len(facts['quarantined'])} quarantined"
    for text in (*facts.get("notes", []), placeholder(spec.data, env.experiment.base)):
        if text:
            note += f"; {text}"
    return Catalog(outcome, note, artifact)


def _require_columns(names: list[str], artifact: Artifact) -> None:
    """Refuse subgroups of columns that the table does not have.

    Raises:
        UserError: a column is missing.
    """
    if not names:
        return
    import pyarrow.parquet as pq  # noqa: PLC0415

    from data_prep.catalog.label_schema import name_in_catalog  # noqa: PLC0415

    columns = pq.read_schema(artifact.file("catalog.parquet")).names
    missing = [name for name in names if name_in_catalog(name, columns) not in columns]
    if missing:
        raise UserError(
            f"subgroups: columns of the table were required, found no {', '.join(missing)}; "
            f"the catalog has {', '.join(columns)}"
        )


def _build(env: Env, key: str) -> Artifact:
    from data_prep.catalog.builder import (  # noqa: PLC0415
        build_catalog,
        content_hash,
        photos_hash,
        reading_notes,
    )
    from orchestrator.cluster.ray_tasks import ray_map  # noqa: PLC0415
    from orchestrator.store import tables  # noqa: PLC0415

    with (
        env.store.draft("catalog", key, params={}, inputs={"files": env.files}) as draft,
        env.console.task("catalog", None) as advance,
    ):
        table = build_catalog(
            env.experiment.spec.data,
            env.experiment.base,
            map_chunks=partial(ray_map, name="catalog", on_bucket=env.reads_bucket),
            progress=advance,
            work=env.store.work_dir("catalog", key),
        )
        tables.write(table, draft.path / "catalog.parquet")
        draft.result |= {"content": content_hash(table), "photos": photos_hash(table)}
        draft.result |= _facts(table) | {"notes": reading_notes(table)}
    return env.store.get("catalog", key)


def _is_outdated(env: Env, artifact: Artifact) -> bool:
    """Return True if a photo could not be read for an earlier run, and can be read now.

    Rights to read, and the limit of pixels, are no part of the key.
    """
    from data_prep.catalog.photo_inspection import may_be_read_now  # noqa: PLC0415
    from data_prep.catalog.photo_paths import photo_path  # noqa: PLC0415
    from data_prep.roots.places import open_binary  # noqa: PLC0415

    if artifact.manifest["finished"] >= env.photos_since:
        return False
    for sample, status in artifact.result["quarantined"].items():
        if not may_be_read_now(status):
            continue
        try:
            path = photo_path(env.experiment.spec.data, env.experiment.base, sample)
            open_binary(path).close()
        except OSError:
            continue
        return True
    return False


def _has_split_groups(artifact: Artifact) -> bool:
    """Return True for a catalog of an earlier version in which one group has two names.

    Blanks around a name and its Unicode form once made another group of it, so that photos of one
    group were on both sides. Few tables have such names, so the version of all catalogs stays.
    """
    from data_prep.catalog.photo_groups import group_name  # noqa: PLC0415
    from orchestrator.store import tables  # noqa: PLC0415

    if "notes" in artifact.result:
        return False
    groups = tables.read(artifact.file("catalog.parquet"), columns=["group"])["group"]
    return any(name != group_name(name) for name in groups.unique().to_pylist() if name)


def _facts(table: pa.Table) -> Json:
    import pyarrow.compute as pc  # noqa: PLC0415

    is_usable = pc.equal(table["status"], "ok")
    usable = table.filter(is_usable)
    bad = table.filter(pc.invert(is_usable))
    counts = Counter(label for label in usable["label"].to_pylist() if label is not None)
    majority = min(counts, key=lambda label: (-counts[label], label), default=0)
    statuses = zip(bad["sample_id"].to_pylist(), bad["status"].to_pylist(), strict=True)
    return {
        "n_photos": len(table),
        "n_ok": len(usable),
        "n_groups": pc.count_distinct(usable["group"]).as_py(),
        "majority_class": majority,
        "quarantined": dict(statuses),
    }
