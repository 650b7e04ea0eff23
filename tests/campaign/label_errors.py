"""What the errors of one label of a finished run cost, and where they are.

`python -m tests.campaign.label_errors RUN_FOLDER --label age --aim 0.70` prints, for each variant out of
fold: macro F1 with a share of the groups whose answers of that label are set right, the smallest share
that reaches the aim, and how many errors lie near a bound of the label's bins.
"""

import argparse
from pathlib import Path

import numpy as np

from orchestrator.evaluation.metrics import macro_f1
from orchestrator.report.confusion_matrices import oof_answers, with_label_right, without_val
from orchestrator.report.load import load
from orchestrator.store import tables

_N_DRAWS = 20
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
_NEAR = (3, 5, 10)


def mended(answers, schema, position, groups, share):
    """Return the mean macro F1 where a share of the groups, drawn anew each time, has that label right."""
    right = with_label_right(answers.targets, answers.preds, schema.sizes, position)
    names = np.unique(groups)
    scores = []
    for draw in range(_N_DRAWS):
        rng = np.random.default_rng(draw)
        chosen = rng.permutation(names)[: round(share * len(names))]
        preds = np.where(np.isin(groups, chosen), right, answers.preds)
        scores.append(macro_f1(answers.targets, preds, schema.n_classes))
    return float(np.mean(scores))


def nearness(answers, schema, position, numbers, bounds):
    """Return near -> (share of the photos, share of the errors, error rate near, error rate elsewhere)."""
    truth = np.unravel_index(answers.targets, schema.sizes)[position]
    answer = np.unravel_index(answers.preds, schema.sizes)[position]
    is_wrong = truth != answer
    distance = np.min([np.abs(numbers - bound) for bound in bounds], axis=0)
    found = {}
    for near in _NEAR:
        is_near = distance <= near
        found[near] = (
            is_near.mean(), is_near[is_wrong].mean(), is_wrong[is_near].mean(), is_wrong[~is_near].mean()
        )  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--label", default="age")
    parser.add_argument("--aim", type=float, default=0.70)
    asked = parser.parse_args()
    run = load(asked.run)
    position = list(run.schema.names).index(asked.label)
    label = run.resolved.data.labels[asked.label]
    catalog = tables.read(asked.run / "catalog.parquet").to_pydict()
    group_of = dict(zip(catalog["sample_id"], catalog["group"], strict=True))
    number_of = dict(zip(catalog["sample_id"], catalog[label["column"]], strict=True))
    predictions = tables.read(asked.run / "predictions.parquet")
    predictions = without_val(predictions, run.folds)
    for setting, candidate in run.candidates.items():
        answers = oof_answers(predictions, [setting], "hard", run.schema.n_classes)
        groups = np.array([group_of[name] for name in answers.sample_ids])
        numbers = np.array([number_of[name] for name in answers.sample_ids], float)
        print(
            f"{candidate.variant}: {len(answers.targets)} photos of {len(np.unique(groups))} groups"
        )
        for share in _SHARES:
            score = mended(answers, run.schema, position, groups, share)
            print(f"  {asked.label} of {share:.0%} of the groups set right: macro F1 {score:.3f}")
        steps = (share / 100 for share in range(101))
        enough = (s for s in steps if mended(answers, run.schema, position, groups, s) >= asked.aim)
        print(f"  {asked.aim:.2f} is reached with {next(enough, 1.0):.0%}")
        for near, (photos, errors, rate, other) in nearness(
            answers, run.schema, position, numbers, label["bins"]
        ).items():
            print(
                f"  within {near} of a bound: {photos:.0%} of the photos, {errors:.0%} of the errors; "
                f"{rate:.0%} of them wrong, {other:.0%} of the others"
            )


if __name__ == "__main__":
    main()
