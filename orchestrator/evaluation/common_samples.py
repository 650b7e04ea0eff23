"""Comparisons on the samples that all sides kept: arms that exclude different photos answer different questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orchestrator.evaluation.metrics import Oof, macro_f1
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.ledger import TrialRecord

_LEAST = 0.5
"""Share of the smallest side that must be common; val parts of different splits have next to nothing in common."""


def shared(arms: Mapping[str, Oof]) -> dict[str, Oof]:
    """Return every arm on the samples that all of them answered; as they are where those are few."""
    common = set.intersection(*(set(oof.sample_ids) for oof in arms.values())) if arms else set()
    if len(common) < _LEAST * min((len(oof.sample_ids) for oof in arms.values()), default=0):
        return dict(arms)
    return {
        name: oof.take(
            np.array([at for at, sample in enumerate(oof.sample_ids) if sample in common], np.int64)
        )
        for name, oof in arms.items()
    }


def search_scores(trials: Sequence[TrialRecord], objective: str) -> list[float]:
    """Return the val macro F1 of finished trials, on the samples that all their val parts hold.

    Where all saw one val part, or parts that have little in common, each counts by its own.
    """
    own = [float(trial.metrics[objective]) for trial in trials]
    if len({trial.started.parts for trial in trials}) < 2:
        return own
    found = [_answers(trial) for trial in trials]
    common = sorted(set.intersection(*(set(answers) for answers in found)))
    sizes = {len(answers) for answers in found}
    if (len(sizes) == 1 and len(common) == min(sizes)) or len(common) < _LEAST * min(sizes):
        return own
    scores = []
    for answers in found:
        target, pred = np.array([answers[sample] for sample in common], np.int64).T
        scores.append(macro_f1(target, pred, int(max(target.max(), pred.max())) + 1))
    return scores


def _answers(trial: TrialRecord) -> dict[str, tuple[int, int]]:
    """Read sample -> (target, answer) of a trial's val part."""
    artifact = Store(Path(trial.started.store)).get("trial", trial.key)
    table = tables.read(artifact.file("predictions.parquet"), ["sample_id", "target", "pred"])
    columns = (table[name].to_pylist() for name in ("sample_id", "target", "pred"))
    return {sample: (target, pred) for sample, target, pred in zip(*columns, strict=True)}
