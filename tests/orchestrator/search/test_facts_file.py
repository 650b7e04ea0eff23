"""Groups and numbers on their way to a loss: from the catalog to the task of one training."""

import json

import numpy as np
import pyarrow as pa
import pytest

from data_prep.config import Data
from orchestrator.search.subset_files import facts_file
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.store import tables
from trainers import training_loop
from trainers.config import Train

N = 12
IDS = [f"train/{row:02}.jpg" for row in range(N)]
NUMBERS = pa.table({"age": [None if row == 3 else 5.5 * row for row in range(N)]})["age"]
ORDERED = {"model": {"head": {"name": "shallow", "ordered": {"age": "distribution"}}}}
DATA = Data.model_validate(
    {
        "source": {"layout": "table", "root": "set", "table": "t.csv", "path": "photo"},
        "labels": {
            "color": {"from": "column", "column": "color", "classes": ["red", "green"]},
            "age": {"from": "column", "column": "age", "bins": [20, 40]},
        },
        "group": "person",
    }
)


def catalog():
    people = [f"p{row // 3}" for row in range(N)]
    table = pa.table({"sample_id": IDS, "group": people, "age": NUMBERS})
    test = pa.table({"sample_id": ["test/a"], "group": ["p9"], "age": pa.array([99.0])})
    return pa.concat_tables([table, test])


def facts_of(folder, train):
    return facts_file(folder, Train.model_validate(train), DATA, catalog(), "key")


def test_a_training_that_needs_nothing_has_no_file(tmp_path):
    assert facts_of(tmp_path, {}) is None
    corn = {"model": {"head": {"name": "shallow", "ordered": {"age": "corn"}}}}
    assert facts_of(tmp_path, corn) is None, "its classes say all"
    assert not list(tmp_path.iterdir())


def test_groups_and_numbers_of_the_source_are_written_and_nothing_of_the_test_set(tmp_path):
    path = facts_of(tmp_path, {**ORDERED, "loss": "logit_adjustment"})
    table = tables.read(path)
    assert table["sample_id"].to_pylist() == IDS
    assert table["group"].to_pylist() == [row // 3 for row in range(N)]
    assert table["number_age"].to_pylist() == NUMBERS.to_pylist()
    assert json.loads(table.schema.metadata[b"borders"]) == {"age": [20, 40]}
    assert tables.read(facts_of(tmp_path, ORDERED)).column_names == ["sample_id", "number_age"]


class Seen(Exception):
    pass


def test_a_training_knows_the_numbers_that_it_may_learn(tmp_path, monkeypatch):
    """Photo 7 is held out, photo 3 has no number, photo 11 was lost in preparation."""
    train = Train.model_validate({**ORDERED, "loss": "logit_adjustment"})
    facts = facts_file(tmp_path, train, DATA, catalog(), "key")
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows/rows.npy", np.zeros((N - 1, 8, 8, 3), np.uint8))
    (tmp_path / "rows/rows.json").write_text(json.dumps(IDS[:-1]))
    parts = ["holdout" if row == 7 else "val" if row == 8 else "train" for row in range(N)]
    columns = {
        "sample_id": IDS,
        "part": parts,
        "label_color": [0, 1] * 6,
        "label_age": [0, 1, 2] * 4,
    }
    tables.write(pa.table(columns), tmp_path / "parts.parquet")
    seen = []

    def look(config, task, **others):
        seen.append(task)
        raise Seen

    monkeypatch.setattr(training_loop, "train", look)
    spec = TrialSpec(
        "c-1", "s", "v", "confirm", 0, 0, {}, train.model_dump(mode="json", by_alias=True), "k" * 16,
        str(tmp_path / "store"), str(tmp_path / "rows"), str(tmp_path / "parts.parquet"),
        {"color": 2, "age": 3}, facts=str(facts),
    )  # fmt: skip
    with pytest.raises(Seen):
        run_trial(spec, lambda *_: None)
    (task,) = seen
    assert task.groups.tolist() == [row // 3 for row in range(N - 1)]
    values = task.numbers["age"].values
    assert np.flatnonzero(np.isnan(values)).tolist() == [3, 7]
    assert values[10] == 55.0
    assert task.numbers["age"].borders == (20.0, 40.0)
    assert spec.to_json()["facts"] == str(facts)


def test_a_trial_without_facts_is_written_as_before():
    spec = TrialSpec("t", "s", "v", "search", 0, None, {}, {}, "k", "st", "r", "p", {"color": 2})
    assert not {"facts", "score"} & spec.to_json().keys()
