"""Each member of a run's ensemble alone on the test set, beside one of them.

`python -m tests.campaign.members_on_test RUN_FOLDER --beside plain` prints, for each member, macro F1 of
its vote over all its checkpoints, and the paired difference to the member of that variant: 90 % intervals
over the groups of the test set. The luck of trainings is not in them, as each member answers once.
"""

import argparse
from pathlib import Path

import numpy as np

from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.report.load import load
from orchestrator.store import tables


def members_alone(root):
    """Return variant -> its answers on the labelled test photos, best member first."""
    run = load(root)
    labels = tables.read(root / "test_labels.parquet").to_pydict()
    truth = dict(zip(labels["sample_id"], labels["label"], strict=True))
    catalog = tables.read(root / "catalog.parquet", ["sample_id", "group"]).to_pydict()
    group_of = dict(zip(catalog["sample_id"], catalog["group"], strict=True))
    votes = tables.read(root / "votes.parquet").to_pydict()
    samples = votes["sample_id"]
    targets = np.array([truth[name] for name in samples], np.int64)
    groups = [group_of[name] for name in samples]
    found = {}
    for setting in run.members:
        preds = np.array([votes[f"pred_{setting}"]], np.int64)
        answers = Predictions(samples, targets, preds, run.schema.n_classes, groups)
        found[run.candidates[setting].variant] = answers
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--beside", default="plain")
    asked = parser.parse_args()
    members = members_alone(asked.run)
    reference = members[asked.beside]
    n_groups = len(set(reference.groups))
    print(f"{len(reference.sample_ids)} photos of {n_groups} groups; differences to {asked.beside}")
    if load(asked.run).selection.vote.adjusted is not None:
        print("answers are those that select.adjust has moved")
    for variant, answers in members.items():
        alone = interval(answers, metric="macro_f1", seed=0).to_json()
        told = f"{variant:<18} {alone['estimate']:.3f} ({alone['low']:.3f} to {alone['high']:.3f})"
        if variant != asked.beside:
            tested = paired_difference(answers, reference, metric="macro_f1").to_json()
            low, high = tested["low"], tested["high"]
            told += f"  {tested['difference']:+.3f} ({low:+.3f} to {high:+.3f}), p {tested['p_value']:.3f}"
        print(told)


if __name__ == "__main__":
    main()
