"""The split stage: every labelled sample gets its role, and a fold per confirm seed."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from orchestrator.stages.context import Context, Done
from orchestrator.store import tables


def split(context: Context) -> Done:
    """Give every labelled sample its role and its fold per confirm seed, per variant."""
    from data_prep.split import assign, inner_part, rows_of_seed  # noqa: PLC0415

    catalog, confirm = context.require_catalog(), context.experiment.spec.confirm
    n_folds = confirm.folds if confirm else None
    seeds = confirm.seeds if confirm else []
    made, parts = 0, []
    for name, arm in context.experiment.arms.items():
        key = context.keys.split(arm, catalog.result["content"])
        if context.store.find("split", key) is None:
            made += 1
            table = assign(
                context.catalog_table(),
                context.schema,
                arm.data.split,
                arm.data.exclude,
                n_folds,
                seeds,
            )
            with context.store.draft(
                "split", key, params={}, inputs={"catalog": catalog.key}
            ) as draft:
                tables.write(table, draft.path / "folds.parquet")
                draft.result |= dict(Counter(rows_of_seed(table)["role"].to_pylist()))
        artifact = context.store.get("split", key)
        table = tables.read(artifact.file("folds.parquet"))
        if artifact.key not in {one.key for one in context.folds.values()}:
            for seed in seeds:  # a class that confirm cannot train on is refused now
                for fold in range(n_folds or 0):
                    inner_part(rows_of_seed(table, seed), fold, arm.data.split, context.schema)
        context.folds[name] = artifact
        parts.append(table.add_column(0, "variant", pa.array([name] * len(table), pa.string())))
    tables.write(pa.concat_tables(parts), context.paths.folds)
    roles = next(iter(context.folds.values())).result
    note = ", ".join(
        f"{roles[role]} {role}" for role in ("train", "val", "test", "excluded") if roles.get(role)
    )
    return Done("SUCCEEDED" if made else "CACHED", note)
