"""Predictions on samples that were held out, as arrays: read once, joined by sample id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.evaluation.metrics import Ints, Oof
from orchestrator.store import tables

Probs = NDArray[np.float32]
_COLUMNS = ["setting", "seed", "sample_id", "target", "pred", "probs"]


@dataclass(frozen=True)
class Sides:
    """Who stands on a photo, and the labels that are constant within groups: both by sample id."""

    groups: Mapping[str, str]
    strata: Mapping[str, str]

    @classmethod
    def of(cls, catalog: pa.Table, labels: Sequence[str]) -> Sides:
        """Read them from a catalog's labelled rows."""
        rows = catalog.filter(pc.is_valid(catalog["label"]))
        codes = np.stack([rows[f"label_{name}"].to_numpy() for name in labels], axis=1)
        return cls.among(rows["sample_id"].to_pylist(), rows["group"].to_pylist(), codes)

    @classmethod
    def among(cls, samples: Sequence[str], groups: Sequence[str], codes: Ints) -> Sides:
        """Find them among samples with their groups and the codes (N, n_labels) of their labels."""
        from data_prep.split import strata  # noqa: PLC0415

        _, inverse, constant = strata(groups, codes)
        of_group = [str(row.tolist()) for row in constant]
        return cls(
            dict(zip(samples, groups, strict=True)),
            {sample: of_group[at] for sample, at in zip(samples, inverse.tolist(), strict=True)},
        )

    def oof(self, sample_ids: Sequence[str], targets: Ints, preds: Ints, n_classes: int) -> Oof:
        """Return predictions (S, N) with their groups and strata."""
        groups = [self.groups[one] for one in sample_ids]
        return Oof(
            list(sample_ids),
            targets,
            preds,
            groups,
            [self.strata[one] for one in sample_ids],
            n_classes,
        )


@dataclass(frozen=True)
class HeldOut:
    """One setting's answers on the samples that all its seeds held out, in the order of their ids."""

    sample_ids: list[str]
    targets: Ints  # (N,)
    preds: Ints  # (S, N): one row per seed
    probs: Probs  # (N, C): mean over the checkpoints that held a sample out

    @property
    def votes(self) -> Ints:
        """Return the class that the setting, as a member, votes for: (N,)."""
        return self.probs.argmax(1).astype(np.int64)


def read_held_out(path: Path, split: str, n_classes: int) -> dict[str, HeldOut]:
    """Read predictions.parquet by setting; settings that answer over other classes are left out.

    Args:
        path: of the file.
        split: oof, or val where nothing was confirmed.
        n_classes: length of a probability vector.
    """
    return held_out(tables.read(path, _COLUMNS, filters=[("split", "=", split)]), n_classes)


def held_out(rows: pa.Table, n_classes: int) -> dict[str, HeldOut]:
    """Arrange rows of predictions (setting, seed, sample_id, target, pred, probs) by setting, seed and sample."""
    rows = rows.filter(pc.equal(pc.list_value_length(rows["probs"]), n_classes)).combine_chunks()
    if not len(rows):
        return {}
    settings, setting = np.unique(
        np.array(rows["setting"].to_pylist(), object), return_inverse=True
    )
    names, sample = _numbered(rows["sample_id"])
    seeds, targets, preds = (rows[name].to_numpy() for name in ("seed", "target", "pred"))
    probs = (
        rows["probs"]
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .reshape(-1, n_classes)
    )
    found = {}
    for number, name in enumerate(settings):
        at = np.flatnonzero(setting == number)
        own, seed = np.unique(seeds[at], return_inverse=True)
        there, place = np.unique(sample[at], return_inverse=True)
        answers = np.full((len(own), len(there)), -1, np.int64)
        answers[seed, place] = preds[at]
        truth = np.zeros(len(there), np.int64)
        truth[place] = targets[at]
        total = np.zeros((len(there), n_classes))
        np.add.at(total, place, probs[at].astype(np.float64))
        mean = (total / np.bincount(place)[:, None]).astype(np.float32)
        kept = np.flatnonzero((answers >= 0).all(0))
        if len(kept):
            ids = [names[code] for code in there[kept]]
            found[str(name)] = HeldOut(ids, truth[kept], answers[:, kept], mean[kept])
    return found


def shared(arms: Mapping[str, HeldOut]) -> dict[str, HeldOut]:
    """Return the arms on the samples that all of them answered, in one order."""
    ids = sorted(set.intersection(*(set(arm.sample_ids) for arm in arms.values()))) if arms else []
    found = {}
    for name, arm in arms.items():
        place = {sample: at for at, sample in enumerate(arm.sample_ids)}
        at = np.array([place[sample] for sample in ids], np.int64)
        found[name] = HeldOut(ids, arm.targets[at], arm.preds[:, at], arm.probs[at])
    return found


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """Return the distinct names in sorted order and every row's number among them."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return [names[at] for at in order], rank[encoded.indices.to_numpy()]
