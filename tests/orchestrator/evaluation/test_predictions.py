import numpy as np
import pyarrow as pa
import pytest

from orchestrator.evaluation.predictions import (
    align,
    by_setting,
    groups_of,
    read_predictions,
)
from orchestrator.store import tables


def drawn(rng, settings=("a", "b"), seeds=(0, 1), n=30, n_classes=4):
    rows = []
    for setting in settings:
        for seed in seeds:
            for at in rng.permutation(n):
                probs = rng.dirichlet(np.ones(n_classes)).astype(np.float32)
                rows.append(
                    {"setting": setting, "seed": seed, "fold": int(at % 3), "sample_id": f"s{at:02}", "split": "oof",
                     "target": int(at % n_classes), "pred": int(probs.argmax()), "probs": probs.tolist()}
                )  # fmt: skip
    return rows


def test_arrays_hold_what_the_rows_say_whatever_their_order(tmp_path):
    rows = drawn(np.random.default_rng(0))
    tables.write(tables.from_rows(rows, tables.PREDICTIONS), tmp_path / "predictions.parquet")
    found = read_predictions(tmp_path / "predictions.parquet", "oof", 4)["b"]
    own = [row for row in rows if row["setting"] == "b"]
    assert sorted({row["sample_id"] for row in own}) == found.sample_ids
    for at, sample in enumerate(found.sample_ids):
        each = sorted(
            (row for row in own if row["sample_id"] == sample), key=lambda row: row["seed"]
        )
        assert [row["pred"] for row in each] == found.preds[:, at].tolist()
        assert each[0]["target"] == found.targets[at]
        assert np.mean([row["probs"] for row in each], axis=0) == pytest.approx(
            found.mean_probs[at], abs=1e-6
        )


def test_samples_that_a_seed_lacks_and_settings_over_other_classes_are_left_out():
    rows = [
        row
        for row in drawn(np.random.default_rng(1))
        if (row["seed"], row["sample_id"]) != (1, "s07")
    ]
    other = [{**row, "setting": "c", "probs": row["probs"][:3]} for row in rows]
    found = by_setting(tables.from_rows(rows + other, tables.PREDICTIONS), 4)
    assert sorted(found) == ["a", "b"]
    assert "s07" not in found["a"].sample_ids


def test_arms_are_shared_by_id():
    rows = [
        row
        for row in drawn(np.random.default_rng(2))
        if row["setting"] == "a" or row["sample_id"] > "s10"
    ]
    found = align(by_setting(tables.from_rows(rows, tables.PREDICTIONS), 4))
    assert found["a"].sample_ids == found["b"].sample_ids
    assert (len(found["a"].sample_ids), found["a"].targets.tolist()) == (
        19,
        found["b"].targets.tolist(),
    )


def test_only_labelled_photos_have_groups():
    catalog = pa.table(
        {
            "sample_id": ["p/1", "p/2", "q/1", "test/1"],
            "group": ["p", "p", "q", None],
            "label": pa.array([0, 1, 3, None], pa.int64()),
            "label_mask": pa.array([0, 1, 1, None], pa.int64()),
            "label_gender": pa.array([0, 0, 1, None], pa.int64()),
        }
    )
    assert groups_of(catalog) == {"p/1": "p", "p/2": "p", "q/1": "q"}
