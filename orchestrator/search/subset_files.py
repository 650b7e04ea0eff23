"""The subsets of a training: a small file per variant, seed and fold, and one for MixUp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.catalog.label_schema import MISSING, Schema
from data_prep.config import Data, StemLabel
from data_prep.exclusions import cells, excluded
from data_prep.label_codes import number_of, train_borders, train_codes, values_in
from data_prep.split import Ints, inner_part, may_learn, rows_of_seed
from orchestrator.base.keys import digest
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact
from trainers.config import Train
from trainers.settings.augment import NoMixUp, OfflineMixUp, OnlineMixUp

_LEARNED = ("train", "val")
BORDERS = "borders"
"""The metadata of a facts file that has the borders of its labels, as JSON."""


def subset_file(
    folder: Path, folds: Artifact, data: Data, catalog: pa.Table, seed: int, fold: int | None
) -> Path:
    """Write which sample has which part in one training, and its label codes.

    A sample that lacks a label may be in part train alone; its code there is null.

    Args:
        folder: for the file; one that exists is taken as it is.
        folds: the split of the variant.
        data: the settings of the variant.
        catalog: the photos.
        seed: the confirm seed, by which folds are dealt; without a fold it decides nothing.
        fold: None for roles train and val; a number for the inner parts of the other folds, and
            this fold as the hold-out, excluded samples too.
    """
    moved = train_borders(data.labels)
    suffix = f"-{digest(moved)[:8]}" if moved else ""
    name = "search" if fold is None else f"seed{seed}-fold{fold}"
    path = folder / f"{folds.key[:12]}{suffix}-{name}.parquet"
    if path.is_file():
        return path
    schema = Schema.of(data.labels)
    table = tables.read(folds.file("folds.parquet"))
    table = rows_of_seed(table, None if fold is None else seed)
    parts = _parts(table, data, schema, fold)
    samples = sorted(parts)
    labels = dict(zip(table["sample_id"].to_pylist(), table["label"].to_pylist(), strict=True))
    codes = _codes(samples, labels, catalog, schema)
    columns: dict[str, Any] = {
        "sample_id": pa.array(samples, pa.string()),
        "part": pa.array([parts[sample] for sample in samples], pa.string()),
    }
    moved_codes = _moved_codes(data, catalog) if moved else {}
    for index, label in enumerate(schema.names):
        column = codes[:, index].tolist()
        if label in moved_codes:  # what is scored keeps its borders
            for row, sample in enumerate(samples):
                if parts[sample] == "train":
                    column[row] = moved_codes[label][sample]
        known = [None if code == MISSING else code for code in column]
        columns[f"label_{label}"] = pa.array(known, pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def _parts(folds: pa.Table, data: Data, schema: Schema, fold: int | None) -> dict[str, str]:
    """Return sample -> train, val or holdout."""
    rows = folds.to_pylist()
    if fold is None:
        parts = {row["sample_id"]: row["role"] for row in rows if row["role"] in _LEARNED}
    else:
        train, val = inner_part(folds, fold, data.split, schema)
        parts = {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}
        for row in rows:
            if row["fold"] == fold:
                parts[row["sample_id"]] = "holdout"
    scored = {row["group"] for row in rows if parts.get(row["sample_id"], "train") != "train"}
    parts |= dict.fromkeys(may_learn(folds, data.split, scored), "train")
    return parts


def _codes(
    samples: list[str], labels: dict[str, int | None], catalog: pa.Table, schema: Schema
) -> Ints:
    """Return the codes of samples, (n_samples, n_labels); MISSING where one lacks a label."""
    joint = [labels[sample] for sample in samples]
    codes: Ints = schema.decode(np.array([label or 0 for label in joint], np.int64))
    lacking = [row for row, label in enumerate(joint) if label is None]
    if lacking:
        place = {sample: row for row, sample in enumerate(catalog["sample_id"].to_pylist())}
        of_catalog = catalog.take([place[samples[row]] for row in lacking])
        for column, name in enumerate(schema.names):
            known = of_catalog[f"label_{name}"].fill_null(MISSING)
            codes[lacking, column] = known.to_numpy()
    return codes


def mixable_file(
    folder: Path, train: Train, catalog: pa.Table, catalog_key: str, schema: Schema
) -> Path | None:
    """Write which samples MixUp may mix, and with which; None where it mixes all.

    Raises:
        DataError: the spec names a column that the table does not have.
    """
    mixup = train.augment.mixup
    if isinstance(mixup, NoMixUp) or (isinstance(mixup, OnlineMixUp) and not mixup.only):
        return None
    within = mixup.within if isinstance(mixup, OfflineMixUp) else []
    name = digest([catalog_key, mixup.only, within])[:12]
    path = folder / f"mixable-{name}.parquet"
    if path.is_file():
        return path
    where = "train.augment.mixup"
    table = catalog.filter(pc.is_valid(catalog["label"]))
    fits = np.ones(len(table), bool)
    if mixup.only:
        fits = excluded(table, schema, [mixup.only], f"{where}.only")
    groups = table["group"].combine_chunks().dictionary_encode().indices
    columns = {
        "sample_id": table["sample_id"],
        "fits": pa.array(fits),
        "within": pa.array(cells(table, schema, within, f"{where}.within")),
        "group": groups.cast(pa.int64()).fill_null(-1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(pa.table(columns), path)
    return path


def facts_file(
    folder: Path, train: Train, data: Data, catalog: pa.Table, catalog_key: str
) -> Path | None:
    """Write what losses need to know of samples beside their classes; None where they need nothing.

    Columns: sample_id; where groups are counted, group as a number; number_<label> of the labels
    whose numbers are learned, null where a sample has none. The table's metadata has their borders.
    """
    labels = {name: data.labels[name] for name in train.numbered_labels}
    if not train.counts_groups and not labels:
        return None
    rules = {name: label.model_dump(mode="json") for name, label in labels.items()}
    path = folder / f"facts-{digest([catalog_key, train.counts_groups, rules])[:12]}.parquet"
    if path.is_file():
        return path
    table = catalog.filter(pc.starts_with(catalog["sample_id"], "train/"))
    columns: dict[str, Any] = {"sample_id": table["sample_id"]}
    if train.counts_groups:
        groups = table["group"].combine_chunks().dictionary_encode().indices
        columns["group"] = groups.cast(pa.int64()).fill_null(-1)
    borders = {}
    for name, label in labels.items():
        if isinstance(label, StemLabel):
            continue  # it has no numbers, and the checks of a spec refuse it
        numbers = [number_of(value) for value in values_in(label, table)]
        columns[f"number_{name}"] = pa.array(numbers, pa.float64())
        borders[name] = label.bins
    facts = pa.table(columns).replace_schema_metadata({BORDERS: json.dumps(borders)})
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(facts, path)
    return path


def _moved_codes(data: Data, catalog: pa.Table) -> dict[str, dict[str, int]]:
    """Return label -> sample -> its code under `train_bins`."""
    samples = catalog["sample_id"].to_pylist()
    codes = {}
    for label, column in train_codes(data.labels, catalog).items():
        codes[label] = dict(zip(samples, column, strict=True))
    return codes
