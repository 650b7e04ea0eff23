"""Two runs' ensembles beside each other, on the test photos that both answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_prep.catalog.label_schema import Schema
from orchestrator.base.errors import UserError
from orchestrator.base.wording import counted, signed
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import Metric, macro_f1, score_of
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.evaluation.sequential_testing import labels_key, predictions_key
from orchestrator.spec.load import read
from orchestrator.spec.score import DEFAULT, score_title
from orchestrator.store import tables
from orchestrator.store.looks import count_look
from orchestrator.store.run_dir import RunPaths

_METRICS = ("macro_f1", "accuracy")


@dataclass(frozen=True)
class _Answers:
    """A run's answers on the test photos, by sample id."""

    preds: dict[str, int]
    labels: dict[str, int]
    public: frozenset[str]  # samples; empty where there is no public half
    groups: dict[str, str] | None  # None where one is not known

    def on(self, ids: Sequence[str], n_classes: int) -> Predictions:
        """Return the answers on some samples beside their labels."""
        truth = np.array([self.labels[sample] for sample in ids], np.int64)
        given = np.array([[self.preds[sample] for sample in ids]], np.int64)
        owners = None if self.groups is None else [self.groups[sample] for sample in ids]
        return Predictions(list(ids), truth, given, n_classes, owners)


def compare_runs(first: RunPaths, second: RunPaths) -> dict[str, Any]:
    """Return the scores of two ensembles and their differences on one part of one test set.

    It is a look at these test labels, and is written into the store's ledger of looks.

    Returns:
        part (private or whole), score: of the first run's spec, where it is not macro F1, runs:
        [{run_id, policy, members, macro_f1, accuracy, that score, and public_macro_f1 (and
        public_score, by that score) where there is a public part}], differences: {metric: as
        `PairedTest.to_json`, first minus second}, look: 1 for the first at these labels, null
        where the store cannot be written.

    Raises:
        UserError: a run has no votes or test labels, or they were tested on other labels or parts.
    """
    answers = _read_answers(first)
    others = _read_answers(second)
    if others.labels != answers.labels or others.public != answers.public:
        raise UserError(
            f"runs {first.run_id} and {second.run_id}: the same test labels and public part were "
            "required, found different ones; compare runs over one test set"
        )
    whole = sorted(answers.labels)
    private = [sample for sample in whole if sample not in answers.public]
    spec = read(first.resolved, check_roots=False).spec
    schema = Schema.of(spec.data.labels)
    metrics: dict[str, Metric] = {name: name for name in _METRICS}
    if spec.score not in metrics:
        metrics = {"score": scorer_of(spec.parsed_score, schema), **metrics}
    # the second run may know more classes: both are counted over all that either answers
    highest = max([*answers.preds.values(), *others.preds.values()], default=0)
    n_classes = max(schema.n_classes, highest + 1)
    arms = [run.on(private, n_classes) for run in (answers, others)]
    runs = []
    for paths, run, arm in zip((first, second), (answers, others), arms, strict=True):
        selection = paths.read_json("selection")
        row = {
            "run_id": paths.run_id,
            "policy": selection["policy"],
            "members": selection["members"],
        }
        stored = (selection.get("ensemble") or {}).get("test") or {}
        for name, metric in metrics.items():
            # the interval that `results` prints, where it is of these photos and this score
            is_stored = name != "score" or selection.get("score") == spec.score
            bounds = stored.get(name) if is_stored else None
            row[name] = bounds or interval(arm, metric=metric, seed=0).to_json()
        if run.public:
            shown = run.on(sorted(run.public), n_classes)
            row["public_macro_f1"] = macro_f1(shown.targets, shown.preds[0], n_classes)
            if spec.score != DEFAULT:
                scorer = scorer_of(spec.parsed_score, schema)
                row["public_score"] = score_of(shown.targets, shown.preds[0], n_classes, scorer)
        runs.append(row)
    differences = {}
    for name, metric in metrics.items():
        differences[name] = paired_difference(*arms, metric=metric).to_json()
    return {
        **({"score": spec.score} if spec.score != DEFAULT else {}),
        "part": "private" if answers.public else "whole",
        "runs": runs,
        "differences": differences,
        "look": _count_look(first, second, [run.on(whole, n_classes) for run in (answers, others)]),
    }


def _count_look(first: RunPaths, second: RunPaths, arms: Sequence[Predictions]) -> int | None:
    """Return the number of this look; None where the store can only be read."""
    key = labels_key(arms[0].sample_ids, arms[0].targets.tolist())
    facts = {"what": "compare", "run": f"{first.run_id}, {second.run_id}"}
    try:
        return count_look(first.store, key, predictions_key(*arms), facts).number
    except OSError:
        return None


def _read_answers(paths: RunPaths) -> _Answers:
    """Read a run's votes, the labels, the public part, and the groups where all are known."""
    for path in (paths.votes, paths.test_labels):
        if not path.is_file():
            raise UserError(
                f"run {paths.run_id}: {path.name} was required, found none; it needs a labelled "
                "test set"
            )
    votes = tables.read(paths.votes)
    truth = tables.read(paths.test_labels)
    preds = dict(zip(votes["sample_id"].to_pylist(), votes["pred"].to_pylist(), strict=True))
    labels = dict(zip(truth["sample_id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    public = frozenset(truth.filter(pc.equal(truth["part"], "public"))["sample_id"].to_pylist())
    catalog = tables.read(paths.catalog, ["sample_id", "group"])
    names = dict(zip(catalog["sample_id"].to_pylist(), catalog["group"].to_pylist(), strict=True))
    groups = {sample: names[sample] for sample in labels}
    are_known = all(group is not None for group in groups.values())
    return _Answers(preds, labels, public, groups if are_known else None)


def compare_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Return what `compare` prints."""
    part = "the test set"
    if comparison["part"] == "private":
        part = "the private half of the test set"
    differences = comparison["differences"]
    size = differences["macro_f1"]
    units = counted(size["n_groups"], "group")
    if size["too_narrow"]:
        units = "photos resampled: too narrow"
    lines = [f"on {part} ({counted(size['n_samples'], 'photo')}, {units})"]
    titles = {name: score_title(name) for name in differences}
    if "score" in titles:
        titles["score"] = score_title(comparison["score"])
    for row in comparison["runs"]:
        spans = []
        for metric, title in titles.items():
            bounds = row[metric]
            span = f"{bounds['estimate']:.3f} ({bounds['low']:.3f} to {bounds['high']:.3f})"
            spans.append(f"{title} {span}")
        if "public_macro_f1" in row:
            shown = row.get("public_score", row["public_macro_f1"])
            title = score_title(comparison.get("score", DEFAULT))
            spans[-1] += f"; public half: {title} {shown:.3f}"
        members = f"policy {row['policy']}, {counted(len(row['members']), 'member')}"
        lines.append(f"{row['run_id']}  {members}: {', '.join(spans)}")
    for metric, title in titles.items():
        lines.append(f"first minus second, {title}: {_difference_text(differences[metric])}")
    if comparison.get("look"):
        lines.append(
            f"look {comparison['look']} at these test labels in this store; a choice made by them "
            "needs new test photos"
        )
    return lines


def _difference_text(tested: Mapping[str, Any]) -> str:
    text = signed(tested["difference"])
    if tested["low"] is None:
        return f"{text}, not tested: {tested['reason']}"
    bounds = f"90 % interval {signed(tested['low'])} to {signed(tested['high'])}"
    return f"{text} ({bounds}), p {tested['p_value']:.3f}"
