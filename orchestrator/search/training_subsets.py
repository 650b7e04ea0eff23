"""Which samples are for what in a training: a small file per variant, seed and fold, one for MixUp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.catalog.labels import train_borders, train_codes
from data_prep.split import cells, excluded, inner_part, rows_of_seed
from orchestrator.base.keys import digest
from orchestrator.stages.context import Context
from orchestrator.store import tables
from trainers.config import NoMixUp, OfflineMixUp, OnlineMixUp, Train


def parts_file(context: Context, variant: str, seed: int, fold: int | None) -> Path:
    """Write which sample is for what in one training: train and val, or the inner parts and the fold.

    The fold is dealt by the confirm seed. Excluded samples are predicted with it and never trained
    on. In search, where `fold` is None, the seed decides nothing.
    """
    key, schema = context.folds[variant].key, context.schema
    moved = train_borders(context.experiment.arms[variant].data.labels)
    part = "search" if fold is None else f"seed{seed}-fold{fold}"
    path = (
        context.paths.parts / f"{key[:12]}{f'-{digest(moved)[:8]}' if moved else ''}-{part}.parquet"
    )
    if path.is_file():
        return path
    folds = tables.read(context.folds[variant].file("folds.parquet"))
    folds = rows_of_seed(folds, None if fold is None else seed)
    rows = {row["sample_id"]: row for row in folds.to_pylist()}
    if fold is None:
        parts = {
            sample: row["role"] for sample, row in rows.items() if row["role"] in {"train", "val"}
        }
    else:
        train, val = inner_part(folds, fold, context.experiment.arms[variant].data.split, schema)
        parts = {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}
        parts |= {sample: "holdout" for sample, row in rows.items() if row["fold"] == fold}
    samples = sorted(parts)
    codes = [list(schema.decode(rows[sample]["label"])) for sample in samples]
    for name, found in _moved_codes(context, variant).items():  # what is scored keeps its borders
        for sample, code in zip(samples, codes, strict=True):
            if parts[sample] == "train":
                code[schema.names.index(name)] = found[sample]
    columns: dict[str, Any] = {
        "sample_id": pa.array(samples, pa.string()),
        "part": [parts[sample] for sample in samples],
    }
    columns |= {
        f"label_{name}": pa.array([int(code[at]) for code in codes], pa.int64())
        for at, name in enumerate(schema.names)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def mixable_file(context: Context, train: Train) -> Path | None:
    """Write which samples MixUp may mix, and with which; None where it does not ask.

    Raises:
        DataError: the spec names a column that the table does not have.
    """
    mixup = train.augment.mixup
    if isinstance(mixup, NoMixUp) or (isinstance(mixup, OnlineMixUp) and not mixup.only):
        return None
    within = mixup.within if isinstance(mixup, OfflineMixUp) else []
    path = (
        context.paths.parts
        / f"mixable-{digest([context.require_catalog().key, mixup.only, within])[:12]}.parquet"
    )
    if path.is_file():
        return path
    table, schema, where = context.catalog_table(), context.schema, "train.augment.mixup"
    table = table.filter(pc.is_valid(table["label"]))
    fits = (
        excluded(table, schema, [mixup.only], f"{where}.only")
        if mixup.only
        else np.ones(len(table), bool)
    )
    columns = {
        "sample_id": table["sample_id"],
        "fits": pa.array(fits),
        "within": pa.array(cells(table, schema, within, f"{where}.within")),
        "group": table["group"]
        .combine_chunks()
        .dictionary_encode()
        .indices.cast(pa.int64())
        .fill_null(-1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def _moved_codes(context: Context, variant: str) -> dict[str, dict[str, int]]:
    """Return the codes under `train_bins` by label and sample."""
    labels = context.experiment.arms[variant].data.labels
    if not train_borders(labels):
        return {}
    catalog = context.catalog_table()
    rows = catalog.filter(pc.is_valid(catalog["label"]))
    found = train_codes(labels, rows)
    return {
        name: dict(zip(rows["sample_id"].to_pylist(), codes, strict=True))
        for name, codes in found.items()
    }
