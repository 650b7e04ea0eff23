"""Arms that exclude different photos, or cut a label elsewhere in training, are compared on equal terms."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from data_prep.catalog.builder import build_catalog
from data_prep.catalog.label_schema import Schema
from data_prep.label_codes import train_codes
from data_prep.split import assign
from orchestrator.base.errors import UserError
from orchestrator.evaluation.common_samples import little_in_common, on_common_samples
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.validation_scores import search_scores
from orchestrator.search.subset_files import subset_file
from orchestrator.stages.trial_phase import rank_trials
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import TrialRecord
from tests.data_prep.conftest import AGE, contest  # noqa: F401 - a fixture


def oof(ids: list[str], preds: list[int]) -> Predictions:
    targets = np.array([int(name[1:]) % 2 for name in ids])
    return Predictions(ids, targets, np.array([preds]), 2, ids)


def test_arms_are_compared_on_the_samples_that_all_kept():
    arms = {
        "all": oof(["s0", "s1", "s2", "s3"], [0, 1, 1, 0]),
        "fewer": oof(["s3", "s0", "s1"], [1, 0, 0]),
    }
    found = on_common_samples(arms)
    assert [sorted(one.sample_ids) for one in found.values()] == [["s0", "s1", "s3"]] * 2
    assert found["all"].preds.tolist() == [[0, 1, 0]]
    assert on_common_samples({}) == {}


def test_arms_with_little_in_common_are_compared_there_or_refused():
    """They were ranked on different photos in silence where less than half were common."""
    arms = {"a": oof(["s0", "s1", "s2"], [0, 1, 0]), "b": oof(["s2", "s5", "s6"], [0, 1, 0])}
    aligned = on_common_samples(arms)
    assert [arm.sample_ids for arm in aligned.values()] == [["s2"], ["s2"]]
    assert "compared on the 1 photo that all" in (little_in_common([3, 3], 1) or "")
    assert little_in_common([4, 3], 2) is None
    with pytest.raises(UserError, match="found none; give the variants"):
        on_common_samples({"a": arms["a"], "b": oof(["s5"], [1])})


def test_a_paired_difference_counts_what_it_left_out():
    tested = paired_difference(
        oof(["s0", "s1", "s2", "s3"], [0, 1, 1, 1]), oof(["s0", "s1", "s9"], [0, 0, 1])
    )
    assert (tested.n_samples, tested.n_left_out) == (2, 3)


def finished(
    store: Store, name: str, part: str, answers: dict[str, tuple[int, int]], score: float
) -> TrialRecord:
    rows = [
        {"trial_id": name, "setting": name, "variant": name, "seed": 0, "sample_id": sample, "split": "val", "target": target,
         "pred": pred, "probs": [0.5, 0.5]}
        for sample, (target, pred) in answers.items()
    ]  # fmt: skip
    with store.draft("trial", name, params={}, inputs={}) as draft:
        tables.write(tables.from_rows(rows, tables.PREDICTIONS), draft.path / "predictions.parquet")
    started = TrialStarted(
        trial_id=name,
        phase="search",
        setting=name,
        variant=name,
        key=name,
        store=str(store.root),
        parts=part,
    )
    ended = TrialEnded(trial_id=name, status="COMPLETE", metrics={"val_macro_f1": score})
    return TrialRecord(started, ended=ended)


def test_finalists_are_chosen_on_the_val_samples_that_all_arms_kept(tmp_path):
    store = Store(tmp_path)
    easy = {"a": (0, 0), "b": (1, 1), "c": (0, 0)}
    hard = {**easy, "d": (1, 0)}  # the same answers, and one more photo that nobody gets right
    trials = [finished(store, "easy", "p1", easy, 1.0), finished(store, "hard", "p2", hard, 0.73)]
    assert search_scores(trials, store) == [1.0, 1.0]
    assert rank_trials(trials, store) == [("easy", "easy", 1.0), ("hard", "hard", 1.0)]
    other = {"c": (0, 1), "x": (1, 1), "y": (0, 0), "z": (1, 1)}  # one photo in common
    apart = [trials[1], finished(store, "other", "p3", other, 0.9)]
    assert search_scores(apart, store) == [1.0, 0.0], "not each on photos of its own"
    alone = [finished(store, "x", "p1", easy, 0.4), finished(store, "y", "p1", easy, 0.5)]
    assert search_scores(alone, store) == [0.4, 0.5]  # one val part: as the trials said


def test_in_a_store_that_was_moved_arms_are_compared_as_before(tmp_path):
    """The ledger has whole paths of the place where the trials were trained."""
    store = Store(tmp_path / "before")
    easy = {"a": (0, 0), "b": (1, 1)}
    hard = {**easy, "d": (1, 0)}
    trials = [
        finished(store, "easy", "/x/p1", easy, 1.0),
        finished(store, "hard", "/x/p2", hard, 0.7),
    ]
    later = finished(store, "later", "/y/p1", easy, 0.9)  # a run that went on after the move
    store.root.rename(tmp_path / "after")
    moved = Store(tmp_path / "after")
    assert search_scores(trials, moved) == [1.0, 1.0]
    assert search_scores([trials[0], later], moved) == [1.0, 0.9]


@pytest.mark.parametrize("fold", [None, 1])
def test_a_moved_border_reaches_training_samples_alone(contest, tmp_path, fold):  # noqa: F811
    for row in contest.people:
        row["age"] = 58 if row["age"] == 41 else row["age"]
    contest.save()
    data = contest.data(labels={"age": AGE | {"train_bins": [30, 57]}})
    catalog, schema = build_catalog(data, contest.base), Schema.of(data.labels)
    plain = assign(catalog, schema, data.split, [], 3).to_pylist()
    wanted = (1, "train")
    someone = next(row["group"] for row in plain if (row["fold"], row["role"]) == wanted)
    folds = assign(catalog, schema, data.split, [{"id": someone}], 3)
    store = Store(tmp_path / "store")
    with store.draft("split", "k" * 16, params={}, inputs={}) as draft:
        tables.write(folds, draft.path / "folds.parquet")
    path = subset_file(tmp_path / "parts", store.get("split", "k" * 16), data, catalog, 0, fold)
    parts = tables.read(path).to_pylist()
    of_someone = {row["part"] for row in parts if someone in row["sample_id"]}
    assert of_someone == (set() if fold is None else {"holdout"})  # predicted, never trained on
    age = dict(zip(catalog["sample_id"].to_pylist(), catalog["age"].to_pylist(), strict=True))
    found = {(row["part"] == "train", age[row["sample_id"]], row["label_age"]) for row in parts}
    assert {(True, 58, 2), (True, 22, 0), (True, 60, 2), (False, 58, 1)} <= found
    assert not {(True, 58, 1), (False, 58, 2)} & found


def test_training_codes_come_from_columns_and_folders_alike(contest):  # noqa: F811
    labels = {
        "age": AGE | {"train_bins": [30, 50]},
        "years": {"from": "folder", "part": 3, "bins": [30, 60], "train_bins": [25, 41]},
    }
    data = contest.data(labels=labels)
    catalog = build_catalog(data, contest.base)
    rows = catalog.filter(pc.is_valid(catalog["label"]))
    codes = train_codes(data.labels, rows)
    by_age = {name: set(zip(rows["age"].to_pylist(), codes[name], strict=True)) for name in codes}
    assert by_age == {"age": {(22, 0), (41, 1), (60, 2)}, "years": {(22, 0), (41, 2), (60, 2)}}
