import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.base.errors import UserError
from orchestrator.ensemble.run_comparison import compare_lines, compare_runs
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.evaluation.predictions import Predictions
from orchestrator.store import tables
from orchestrator.store.looks import FILE
from orchestrator.store.run_dir import RunPaths

SPEC = Path(__file__).resolve().parents[3] / "experiments/smoke.yaml"


def leave(root, name, preds, labels, parts, groups):
    """Leave the files of a run that `compare` reads."""
    run = root / "runs" / name
    run.mkdir(parents=True)
    ids = [f"test/{at:03}" for at in range(len(labels))]
    rows = [
        {"sample_id": i, "ImageID": i, "pred": int(p), "votes": 1, "tie": False, "outcome": "voted"}
        for i, p in zip(ids, preds, strict=True)
    ]
    tables.write(tables.from_rows(reversed(rows), tables.votes_schema([])), run / "votes.parquet")
    tables.write(
        pa.table({"sample_id": ids, "label": labels, "part": parts}), run / "test_labels.parquet"
    )
    tables.write(
        pa.table({"sample_id": ids, "group": pa.array(groups, pa.string())}),
        run / "catalog.parquet",
    )
    shutil.copyfile(SPEC, run / "resolved.yaml")
    (run / "selection.json").write_text(json.dumps({"policy": name, "members": ["a"]}))
    return RunPaths(run)


def test_two_ensembles_are_compared_on_the_private_half_by_id(tmp_path):
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 90), [f"p{at // 3}" for at in range(90)]
    parts = ["public" if at % 2 else "private" for at in range(90)]
    good = np.where(rng.random(90) < 0.9, labels, (labels + 1) % 3)
    bad = np.where(rng.random(90) < 0.5, labels, (labels + 1) % 3)
    runs = [
        leave(tmp_path, name, preds, labels, parts, groups)
        for name, preds in (("robust", good), ("leaderboard", bad))
    ]
    found = compare_runs(*runs)
    private = np.array([part == "private" for part in parts])
    expected = [macro_f1(labels[private], preds[private], 3) for preds in (good, bad)]
    assert [row["macro_f1"]["estimate"] for row in found["runs"]] == pytest.approx(expected)
    one = found["differences"]["macro_f1"]
    assert one["difference"] == pytest.approx(expected[0] - expected[1])
    assert (found["part"], one["n_samples"], one["n_groups"], one["too_narrow"]) == (
        "private",
        45,
        30,
        False,
    )
    assert one["low"] > 0
    constant = np.repeat([0, 3], 45)  # a person's photos differ in age, not in gender
    mixed = [
        leave(tmp_path, name, good + constant, labels + constant, parts, groups)
        for name in ("c", "d")
    ]
    bounds = compare_runs(*mixed)["runs"][0]["accuracy"]
    mine = [group for group, keep in zip(groups, private, strict=True) if keep]
    photos = [f"s{at}" for at in range(len(mine))]
    right = (good == labels)[private].astype(int)
    expected = interval(
        Predictions(photos, right * 0, 1 - right[None], 2, mine), metric="accuracy", seed=0
    )
    assert (bounds["low"], bounds["high"]) == pytest.approx((expected.low, expected.high))
    assert any("policy leaderboard" in line for line in compare_lines(found))


def test_a_run_that_knows_more_classes_is_compared_in_either_order(tmp_path):
    """smoke.yaml knows 18 classes; the second run answers a 19th and a 21st."""
    labels = np.arange(12) % 3
    more = labels.copy()
    more[[0, 5]] = [18, 20]
    parts, groups = ["public"] * 3 + ["private"] * 9, [f"p{at // 2}" for at in range(12)]
    few, many = (
        leave(tmp_path, name, preds, labels, parts, groups)
        for name, preds in (("few", labels), ("many", more))
    )
    one, other = (compare_runs(*pair)["differences"] for pair in ((few, many), (many, few)))
    assert one["accuracy"]["difference"] == pytest.approx(1 / 9)
    assert one["macro_f1"]["difference"] == pytest.approx(-other["macro_f1"]["difference"])


def test_runs_over_other_labels_or_without_any_are_refused(tmp_path):
    labels = [0, 1, 2, 0]
    first = leave(tmp_path, "a", labels, labels, ["whole"] * 4, [None] * 4)
    second = leave(tmp_path, "b", labels, [0, 1, 2, 1], ["whole"] * 4, [None] * 4)
    assert compare_runs(first, first)["differences"]["accuracy"]["too_narrow"]
    with pytest.raises(UserError, match="the same test labels and public part were required"):
        compare_runs(first, second)
    (tmp_path / "runs/b/test_labels.parquet").unlink()
    with pytest.raises(UserError, match=r"run b: test_labels.parquet was required"):
        compare_runs(first, second)


def test_a_comparison_is_a_look_at_its_test_labels(tmp_path):
    """Nothing counted it, so the best of many pairs of runs could be picked by test labels."""
    labels = np.arange(12) % 3
    more = [labels, (labels + 1) % 3, np.where(np.arange(12) < 3, 0, labels)]
    parts, groups = ["whole"] * 12, [f"p{at // 2}" for at in range(12)]
    a, b, c = (leave(tmp_path, f"r{i}", p, labels, parts, groups) for i, p in enumerate(more))
    pairs = [(a, b), (b, a), (a, c), (a, b)]
    comparisons = [compare_runs(*pair) for pair in pairs]
    assert [comparison["look"] for comparison in comparisons] == [1, 1, 2, 1]
    assert "look 2 at these test labels" in compare_lines(comparisons[2])[-1]
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()  # a store that cannot be written
    assert compare_runs(a, b)["look"] is None


def test_one_person_gives_no_test_and_a_sentence(tmp_path):
    runs = [
        leave(tmp_path, n, [0, 1, i], [0, 1, 2], ["whole"] * 3, ["p"] * 3)
        for i, n in enumerate("ab")
    ]
    assert "not tested: needs 2 groups or more" in "\n".join(compare_lines(compare_runs(*runs)))


def test_the_interval_is_the_one_that_results_prints(tmp_path):
    labels, groups = np.arange(90) % 3, [f"p{at // 3}" for at in range(90)]
    run = leave(tmp_path, "a", labels, labels, ["whole"] * 90, groups)
    score = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    selection = {"policy": "robust", "members": ["a"], "ensemble": {"test": {"macro_f1": score}}}
    (run.root / "selection.json").write_text(json.dumps(selection))
    assert score == compare_runs(run, run)["runs"][0]["macro_f1"]
