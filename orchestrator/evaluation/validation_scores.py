"""Scores of trainings on what they did not learn from, read from their answers in the store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from orchestrator.evaluation.common_samples import on_common_samples
from orchestrator.evaluation.metrics import Metric, score_of
from orchestrator.evaluation.predictions import Predictions
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, Store
from orchestrator.store.event_types import objective
from orchestrator.store.ledger import TrialRecord


def _macro_f1(_: TrialRecord) -> Metric:
    return "macro_f1"


def search_scores(
    trials: Sequence[TrialRecord],
    store: Store,
    metric_of: Callable[[TrialRecord], Metric] = _macro_f1,
) -> list[float]:
    """Return the val scores of finished trials on the samples that all their val parts hold.

    Where all saw one val part, each counts by the score that it reported.

    Args:
        trials: each with the metrics of its best epoch.
        store: with their artifacts; it may have been moved since they were trained.
        metric_of: returns how the answers of a trial are scored.

    Raises:
        UserError: the val parts have no sample in common.
    """
    reported = [objective(trial.metrics) for trial in trials]
    # the ledger has whole paths, and the name alone says what is in the file
    if len({Path(trial.started.parts or "").name for trial in trials}) < 2:
        return reported
    answers = {trial.trial_id: _read(trial, store) for trial in trials}
    aligned = on_common_samples(answers)
    n_common = len(next(iter(aligned.values())).sample_ids)
    if all(len(arm.sample_ids) == n_common for arm in answers.values()):
        return reported
    scores = []
    for trial, arm in zip(trials, aligned.values(), strict=True):
        scores.append(score_of(arm.targets, arm.preds[0], arm.n_classes, metric_of(trial)))
    return scores


def held_out_score(artifact: Artifact, samples: Collection[str], metric: Metric) -> float | None:
    """Return the score of a training on those of the samples that it held out; None if it held out none.

    Args:
        artifact: of the training.
        samples: that count.
        metric: how its answers are scored.
    """
    answers = _answers(artifact)
    held_out = answers.among(samples)
    if not held_out.sample_ids:
        return None
    return score_of(held_out.targets, held_out.preds[0], held_out.n_classes, metric)


def _read(trial: TrialRecord, store: Store) -> Predictions:
    """Read a trial's answers on its val part."""
    return _answers(store.get("trial", trial.key))


def _answers(artifact: Artifact) -> Predictions:
    table = tables.read(artifact.file("predictions.parquet"), ["sample_id", "target", "pred"])
    targets = table["target"].to_numpy()
    preds = table["pred"].to_numpy()
    n_classes = int(max(np.max(targets, initial=0), np.max(preds, initial=0))) + 1
    return Predictions(table["sample_id"].to_pylist(), targets, preds[None], n_classes)
