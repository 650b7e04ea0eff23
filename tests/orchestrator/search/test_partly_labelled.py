"""Photos that lack a label, from the table to a training: they train what they have, and no score counts them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep.audit.examination import audit
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.label_schema import Schema
from data_prep.catalog.labelled_photos import read_rows, summary
from data_prep.catalog.labels_of_test_photos import labels_of_test_photos
from data_prep.config import Data
from data_prep.errors import DataError
from data_prep.split import assign
from orchestrator.search.subset_files import subset_file
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from tests.data_prep.conftest import jpeg, write_csv
from trainers.config import Train

N_PLANTS = 14
LONELY = "plant 13"  # no photo of it has all labels


@pytest.fixture
def plants(tmp_path):
    """Three photos of each of 14 plants; state and height, some of them missing."""
    rows = []
    for number in range(3 * N_PLANTS):
        plant = number // 3
        name = f"leaf{number:02d}.jpg"
        place = tmp_path / "set/photos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(number))
        state = ("dry", "wet")[plant % 2]
        if plant == N_PLANTS - 1 or (plant % 3 == 0 and number % 3 == 0):
            state = ("", "unknown")[number % 2]
        rows.append(
            {"photo": name, "plant": f"plant {plant:02d}", "state": state, "cm": 5 * (plant % 4)}
        )
    rows[4] |= {"state": "", "cm": ""}
    write_csv(tmp_path / "set/t.csv", rows)
    return tmp_path


def data_of(**changes) -> Data:
    whole = {
        "source": {"layout": "table", "root": "set", "table": "t.csv", "path": "photo", "images": "photos"},
        "labels": {
            "state": {"from": "column", "column": "state", "classes": ["dry", "wet"]},
            "cm": {"from": "column", "column": "cm", "bins": [8], "train_bins": [4]},
        },
        "group": "plant",
        "unlabelled": "keep",
        "split": {"val": 0.25},
    }  # fmt: skip
    return Data.model_validate(whole | changes)


def split_of(base, data, folds):
    store = Store(base / "store")
    with store.draft("split", "k" * 16, params={}, inputs={}) as draft:
        tables.write(folds, draft.path / "folds.parquet")
    return store.get("split", "k" * 16)


def test_the_message_names_a_line_for_both_choices(plants):
    with pytest.raises(DataError, match=r"`unlabelled: leave_out` .*`unlabelled: keep` lets them"):
        build_catalog(data_of(unlabelled="refuse"), plants)


def test_the_catalog_keeps_what_is_known_and_the_audit_counts_it(plants):
    data = data_of()
    catalog, schema = build_catalog(data, plants), Schema.of(data.labels)
    rows = {row["sample_id"]: row for row in catalog.to_pylist()}
    lacking = rows["train/leaf00.jpg"]
    assert (None, None, 0, "ok") == tuple(
        lacking[name] for name in ("label", "label_state", "label_cm", "status")
    )
    assert rows["train/leaf04.jpg"]["status"].startswith("left out: no class of state")
    lines = summary(data, read_rows(data, plants))
    assert (
        "photos that lack a label: 8 (state 8). They train the labels they have; "
        "scores count the other 33" in lines
    )
    folds = {"base": assign(catalog, schema, data.split, [], 3)}
    facts = audit(catalog, folds, schema, labels=data.labels).to_json()
    assert {"n": 9, "n_training": 8, "missing": {"state": 8, "cm": 0}} == facts["partly_labelled"]
    assert 33 == sum(facts["classes"].values())
    without = data_of(unlabelled="leave_out")
    table = build_catalog(without, plants)
    folds = {"base": assign(table, schema, data.split, [], 3)}
    assert "partly_labelled" not in audit(table, folds, schema, labels=data.labels).to_json()


def test_roles_and_folds_are_those_without_them(plants):
    data = data_of()
    schema = Schema.of(data.labels)
    deals = []
    for unlabelled in ("keep", "leave_out"):
        catalog = build_catalog(data_of(unlabelled=unlabelled), plants)
        deals.append(assign(catalog, schema, data.split, [{"plant": "plant 02"}], 3, [0, 1]))
    kept = [row for row in deals[0].to_pylist() if row["role"] != "partial"]
    assert deals[1].to_pylist() == kept
    partial = [row for row in deals[0].to_pylist() if row["role"] == "partial"]
    assert 2 * 8 == len(partial)
    assert {(None, None)} == {(row["label"], row["fold"]) for row in partial}


@pytest.mark.parametrize("fold", [None, 0, 1, 2])
def test_they_train_where_their_group_is_not_scored(plants, fold):
    data = data_of()
    catalog, schema = build_catalog(data, plants), Schema.of(data.labels)
    split = split_of(plants, data, assign(catalog, schema, data.split, [], 3))
    parts = tables.read(subset_file(plants / "parts", split, data, catalog, 0, fold)).to_pylist()
    group_of = dict(
        zip(catalog["sample_id"].to_pylist(), catalog["group"].to_pylist(), strict=True)
    )
    lacking = [row for row in parts if row["label_state"] is None]
    scored = {group_of[row["sample_id"]] for row in parts if row["part"] != "train"}
    assert {"train"} == {row["part"] for row in lacking}
    assert scored.isdisjoint(group_of[row["sample_id"]] for row in lacking)
    assert 3 == [group_of[row["sample_id"]] for row in lacking].count(LONELY)
    expected = [
        sample
        for sample, row in zip(catalog["sample_id"].to_pylist(), catalog.to_pylist(), strict=True)
        if row["status"] == "ok" and row["label"] is None and row["group"] not in scored
    ]
    assert sorted(expected) == [row["sample_id"] for row in lacking]
    moved = {0: 0, 5: 1, 10: 1, 15: 1}  # train_bins: [4]
    cm = dict(zip(catalog["sample_id"].to_pylist(), catalog["cm"].to_pylist(), strict=True))
    assert all(row["label_cm"] == moved[cm[row["sample_id"]]] for row in lacking)


def test_with_single_photos_dealt_all_of_them_train(plants):
    data = data_of(split={"strategy": "random", "val": 0.25})
    catalog, schema = build_catalog(data, plants), Schema.of(data.labels)
    split = split_of(plants, data, assign(catalog, schema, data.split, [], 3))
    parts = tables.read(subset_file(plants / "parts", split, data, catalog, 0, 1)).to_pylist()
    assert 8 == sum(row["label_state"] is None for row in parts)


def test_a_held_out_test_set_has_all_labels_and_no_partner_in_training(plants):
    data = data_of(test={"hold_out": 0.4})
    catalog = build_catalog(data, plants)
    rows = catalog.to_pylist()
    test = {row["group"] for row in rows if row["sample_id"].startswith("test/")}
    assert test
    lacking = [row for row in rows if row["label"] is None and row["sample_id"][:5] == "train"]
    usable = {row["group"] for row in lacking if row["status"] == "ok"}
    assert usable
    assert test.isdisjoint(usable)
    left_out = [row["group"] for row in lacking if "test set" in row["status"]]
    assert set(left_out) <= test
    labels = labels_of_test_photos(data, plants, catalog)
    assert all(label is not None for label in labels["label"].to_pylist())


@pytest.mark.parametrize("head", ["single", "deep"])
def test_a_trial_trains_with_them_and_predicts_whole_labels_alone(plants, head, capfd):
    data = data_of()
    catalog, schema = build_catalog(data, plants), Schema.of(data.labels)
    split = split_of(plants, data, assign(catalog, schema, data.split, [], 3))
    parts = subset_file(plants / "parts", split, data, catalog, 0, 1)
    samples = [row["sample_id"] for row in catalog.to_pylist() if row["status"] == "ok"]
    rows = plants / "rows"
    rows.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (len(samples), 32, 32, 3), dtype=np.uint8)
    np.save(rows / "rows.npy", pixels)
    (rows / "rows.json").write_text(json.dumps(samples))
    model = {"backbone": "test_efficientnet", "pretrained": False, "head": head}
    settings = {"model": model, "duration": "1 epochs", "batch_size": 8}
    settings |= {"augment": {"cutmix": {"name": "half", "p": 1.0}}, "balance": "weighted_sampler"}
    train = Train.model_validate(settings).model_dump(by_alias=True)
    sizes = dict(zip(schema.names, schema.sizes, strict=True))
    place = (str(plants / "store"), str(rows), str(parts))
    spec = TrialSpec("c", "s", "base", "confirm", 0, 1, {}, train, "trial", *place, sizes)
    trial = run_trial(spec, lambda epoch, metrics: None)
    predictions = tables.read(trial.file("predictions.parquet")).to_pylist()
    labels = dict(zip(catalog["sample_id"].to_pylist(), catalog["label"].to_pylist(), strict=True))
    assert [labels[row["sample_id"]] for row in predictions] == [
        row["target"] for row in predictions
    ]
    assert np.isfinite(trial.result["history"][0]["train_loss"])
    assert (head == "single") == ("lack a label that head single" in capfd.readouterr().err)
