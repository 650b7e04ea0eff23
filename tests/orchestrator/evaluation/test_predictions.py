import numpy as np
import pyarrow as pa
import pytest

from orchestrator.evaluation.predictions import (
    align,
    by_setting,
    group_mean_of,
    groups_of,
    read_predictions,
    with_group_means,
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


SIZES = {"mask": 3, "gender": 2, "age": 2}
GROUPS = ["p", "q", "p", "p", "q", "r"]


def photos(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(12), n).astype(np.float32)


def marginal(probs, *axes):
    cube = probs.reshape(-1, 3, 2, 2)
    others = tuple(axis for axis in (1, 2, 3) if axis not in axes)
    return cube.sum(axis=others)


def test_photos_of_a_group_agree_on_averaged_labels_and_keep_the_others():
    probs = photos()
    averaged = group_mean_of(["age", "gender"], SIZES).over(GROUPS, probs)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(1.0, averaged.sum(1), rtol=1e-5)
    shared = marginal(averaged, 2, 3)
    for members in ([0, 2, 3], [1, 4], [5]):
        expected = marginal(probs, 2, 3)[members].mean(0)
        for member in members:
            np.testing.assert_allclose(expected, shared[member], rtol=1e-5)
    # what a photo says of the mask, given gender and age, is its own
    given = averaged.reshape(-1, 3, 2, 2) / marginal(averaged, 2, 3)[:, None]
    before = probs.reshape(-1, 3, 2, 2) / marginal(probs, 2, 3)[:, None]
    np.testing.assert_allclose(before, given, rtol=1e-4)
    np.testing.assert_allclose(probs[5], averaged[5], rtol=1e-5)


def test_all_labels_averaged_are_the_mean_of_the_photos_in_any_order():
    probs = photos()
    mean = group_mean_of(list(SIZES), SIZES)
    averaged = mean.over(GROUPS, probs)
    np.testing.assert_allclose(probs[[0, 2, 3]].mean(0), averaged[0], rtol=1e-5)
    order = np.random.default_rng(1).permutation(6)
    again = mean.over([GROUPS[i] for i in order], probs[order])
    np.testing.assert_array_equal(averaged[order], again)
    assert group_mean_of([], SIZES) is None


def test_a_class_that_one_photo_forbids_is_not_forbidden_to_its_group():
    probs = np.zeros((2, 12), np.float32)
    probs[0, 0] = 1.0  # mask 0, gender 0, age 0 and nothing else
    probs[1, 3] = 1.0  # mask 0, gender 1, age 1
    averaged = group_mean_of(["gender"], SIZES).over(["p", "p"], probs)
    np.testing.assert_allclose([[0.5, 0.5]] * 2, marginal(averaged, 2), atol=1e-6)
    np.testing.assert_allclose(1.0, averaged.sum(1), rtol=1e-6)
    np.testing.assert_allclose([1, 0, 0], marginal(averaged, 1)[0], atol=1e-6)


def test_every_training_is_averaged_for_itself_and_answers_over_other_classes_stay():
    names = [f"s{i}" for i in range(6)]
    rows, expected = [], {}
    mean = group_mean_of(["gender"], SIZES)
    for trial, seed in (("t0", 0), ("t1", 1)):
        probs = photos(seed=seed)
        expected[trial] = mean.over(GROUPS, probs)
        for name, row in zip(names, probs, strict=True):
            rows.append({"trial_id": trial, "setting": "a", "seed": seed, "fold": 0, "sample_id": name,
                         "split": "oof", "target": 1, "pred": int(row.argmax()), "probs": row.tolist()})  # fmt: skip
    other = {**rows[0], "trial_id": "t2", "probs": [0.25, 0.75], "pred": 1}
    table = tables.from_rows([*rows, other], tables.PREDICTIONS)
    groups = dict(zip(names, GROUPS, strict=True))
    averaged = with_group_means(table, mean, groups)
    assert table.schema == averaged.schema
    assert table.drop(["pred", "probs"]) == averaged.drop(["pred", "probs"])
    arm = by_setting(averaged.slice(0, 12), 12, groups)["a"]
    np.testing.assert_allclose([expected["t0"], expected["t1"]], arm.probs, rtol=1e-6)
    np.testing.assert_array_equal(arm.probs.argmax(2), arm.preds)
    assert [0.25, 0.75] == averaged["probs"].to_pylist()[-1]
