"""Two runs' ensembles beside each other, on the test photos that both answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_prep.catalog.labels import Schema
from orchestrator.base.errors import UserError
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.spec.load import read
from orchestrator.store import tables
from orchestrator.store.run_dir import RunPaths


def compare_runs(first: RunPaths, second: RunPaths) -> dict[str, Any]:
    """Return the scores of two ensembles and their paired differences on one part of one test set.

    Returns:
        part (private or whole), runs: [{run_id, policy, members, macro_f1, accuracy, and public_macro_f1 where there
        is a public part}], differences: {metric: as `PairedTest.to_json`, first minus second}.

    Raises:
        UserError: a run has no votes or test labels, or the two were tested on different labels or parts.
    """
    sides = [_side(paths) for paths in (first, second)]
    labels, public, groups = sides[0][1:]
    for one, (_, other_labels, other_public, _) in zip((first, second), sides, strict=True):
        if other_labels != labels or other_public != public:
            raise UserError(
                f"runs {first.run_id} and {one.run_id}: the same test labels and public part were required, found "
                "different ones; compare runs over one test set"
            )
    private = sorted(set(labels) - public)
    schema = Schema.of(read(first.resolved, check_roots=False).spec.data.labels)
    # the second run may know more classes: both are counted over all that either answers
    n_classes = max(
        schema.n_classes, *(preds[sample] + 1 for preds, *_ in sides for sample in labels)
    )
    judged = [_oof(preds, labels, private, groups, n_classes) for preds, *_ in sides]
    runs = []
    for paths, (preds, *_), oof in zip((first, second), sides, judged, strict=True):
        selection = paths.read_json("selection")
        row = {
            "run_id": paths.run_id,
            "policy": selection["policy"],
            "members": selection["members"],
        }
        for metric in ("macro_f1", "accuracy"):
            row[metric] = interval(oof, metric=metric, seed=0).to_json()
        if public:
            shown = _oof(preds, labels, sorted(public), groups, n_classes)
            row["public_macro_f1"] = macro_f1(shown.targets, shown.preds[0], shown.n_classes)
        runs.append(row)
    return {
        "part": "private" if public else "whole",
        "runs": runs,
        "differences": {
            m: paired_difference(*judged, metric=m).to_json() for m in ("macro_f1", "accuracy")
        },
    }


def _side(
    paths: RunPaths,
) -> tuple[dict[str, int], dict[str, int], frozenset[str], dict[str, str] | None]:
    """Return a run's answers, the labels, the public part, and the groups where all are known."""
    for path in (paths.votes, paths.test_labels):
        if not path.is_file():
            raise UserError(
                f"run {paths.run_id}: {path.name} was required, found none; it needs a labelled test set"
            )
    votes = tables.read(paths.votes)
    truth = tables.read(paths.test_labels)
    preds = dict(zip(votes["sample_id"].to_pylist(), votes["pred"].to_pylist(), strict=True))
    labels = dict(zip(truth["sample_id"].to_pylist(), truth["label"].to_pylist(), strict=True))
    public = frozenset(truth.filter(pc.equal(truth["part"], "public"))["sample_id"].to_pylist())
    catalog = tables.read(paths.catalog, ["sample_id", "group"])
    of = dict(zip(catalog["sample_id"].to_pylist(), catalog["group"].to_pylist(), strict=True))
    groups = {sample: of[sample] for sample in labels}
    known = groups if all(group is not None for group in groups.values()) else None
    return preds, labels, public, known


def _oof(
    preds: dict[str, int],
    labels: dict[str, int],
    ids: list[str],
    groups: dict[str, str] | None,
    n_classes: int,
) -> Predictions:
    truth = np.array([labels[sample] for sample in ids], np.int64)
    given = np.array([[preds[sample] for sample in ids]], np.int64)
    owners = None if groups is None else [groups[sample] for sample in ids]
    return Predictions(ids, truth, given, n_classes, owners)


def compare_lines(found: dict[str, Any]) -> list[str]:
    """Return what `compare` prints."""
    part = "the private half of the test set" if found["part"] == "private" else "the test set"
    n = found["differences"]["macro_f1"]
    units = f"{n['n_samples']} photos, " + (
        "photos resampled: too narrow" if n["too_narrow"] else f"{n['n_groups']} groups"
    )
    lines = [f"on {part} ({units})"]
    for row in found["runs"]:
        shown = f"; public half {row['public_macro_f1']:.3f}" if "public_macro_f1" in row else ""
        spans = ", ".join(
            f"{name} {row[key]['estimate']:.3f} ({row[key]['low']:.3f} to {row[key]['high']:.3f})"
            for key, name in (("macro_f1", "macro F1"), ("accuracy", "accuracy"))
        )
        lines.append(
            f"{row['run_id']}  policy {row['policy']}, {len(row['members'])} members: {spans}{shown}"
        )
    for key, name in (("macro_f1", "macro F1"), ("accuracy", "accuracy")):
        one = found["differences"][key]
        lines.append(
            f"first minus second, {name}: {one['difference']:+.3f} (90 % interval {one['low']:+.3f} to "
            f"{one['high']:+.3f}), p {one['p_value']:.3f}"
        )
    return lines
