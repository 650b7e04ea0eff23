"""What each reader does with foreign bytes; `python -m tests.campaign.faults --inputs 10` tries far more."""

import json
import resource

import pytest
from pydantic import ValidationError

from data_prep.preparation.shards import ShardError
from orchestrator.base.errors import SpecError
from orchestrator.spec.load import read as read_spec
from orchestrator.spec.search_space import Search, grid, grid_size
from orchestrator.store.ledger import LedgerDamaged, read
from tests.faults import inputs

N = {"spec loader": 15, "--set": 15}
READERS = {reader.name: reader for reader in inputs.readers()}


@pytest.mark.parametrize("name", READERS)
def test_foreign_bytes_give_an_answer_or_the_readers_own_error(name):
    inputs.fuzz(READERS[name], N.get(name, 40))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": None}, "found in size"),
        ({"shards": None}, "found in shards"),
        ({"size": 10**6}, "found in size"),
        ({"size": 16}, "photos of 16 x 16 were required by index.json, found a of 8 x 8"),
        ({"n_rows": 3}, "3 rows were required by index.json, found 2"),
        ({"file": "../shard-00000.parquet"}, r"found in shards\.0\.file"),
        ([], "an index was required"),
    ],
)
def test_an_index_that_lies_is_refused_before_anything_is_allocated(tmp_path, changes, text):
    index = json.loads(inputs.shard_files()["index.json"])
    if isinstance(changes, list):
        index = changes
    elif changes.keys() <= index.keys():
        index |= changes
    else:
        index["shards"][0] |= changes
    with pytest.raises(ShardError, match=text):
        inputs.read_shards(inputs.plain(index), tmp_path)


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (1, {"params": None}, "trial_started: params was required as dict, found None"),
        (1, {"trial_id": 7}, "trial_id was required as str, found 7"),
        (2, {"metrics": {"val_macro_f1": "0.5"}}, "numbers were required in metrics, found '0.5'"),
        (5, {"metrics": {"val_macro_f1": float("nan")}}, "found nan"),
        (2, {"metrics": {"val_loss": 1.0}}, "report: val_macro_f1 was required in metrics"),
        (6, {"wall_s": "long"}, "wall_s was required as float or int or NoneType, found 'long'"),
    ],
)
def test_a_record_of_other_types_is_named_with_its_number(tmp_path, number, changes, text):
    records = [dict(line) for line in inputs.ledger_lines()]
    records[number] |= changes
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(LedgerDamaged, match=f"record {number + 1}: .*{text}"):
        read(path)


def test_a_grid_of_a_billion_points_is_counted_without_listing_them():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    space = Search.model_validate(
        {
            "space": {
                "a": {"int": [0, 999_999_999]},
                "b": {"float": [0.0, 1.0], "step": 1e-6},
                "c": {"choice": [1, 2]},
            }
        }
    ).space
    assert 10**9 * (10**6 + 1) * 2 == grid_size(space)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    small = Search.model_validate(
        {"space": {"a": {"int": [1, 5], "step": 2}, "b": {"float": [0.5, 1.0], "step": 0.25}}}
    ).space
    assert grid_size(small) == len(grid(small)) == 9


@pytest.mark.parametrize(
    "override",
    ["prep.steps.name=x", "prep.steps." + "9" * 5000 + "=1", "name.x.y=1", "=1", "a", "data=&a 1"],
)
def test_an_override_that_fits_nowhere_is_one_message(tmp_path, override):
    spec = tmp_path / "spec.yaml"
    spec.write_text(inputs.SMOKE)
    with pytest.raises((SpecError, ValidationError)) as error:
        read_spec(spec, [override], check_roots=False)
    assert isinstance(error.value, SpecError)
