"""The catalog stage: every photo is read once."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.cluster.tasks import ray_map
from orchestrator.stages.context import Context, Done, copy_file
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact


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
