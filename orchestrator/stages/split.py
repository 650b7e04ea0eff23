"""The split stage: every labelled sample gets its role and fold."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from orchestrator.stages.context import Context, Done
from orchestrator.store import tables


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
