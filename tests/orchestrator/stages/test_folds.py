"""Folds: the same on every disk, and five of them train in one process on the same labels."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from data_prep.catalog import photo_listing
from data_prep.catalog.builder import build_catalog, content_hash
from data_prep.catalog.label_schema import Schema
from data_prep.errors import DataError
from data_prep.files import file_sha256
from data_prep.split import assign
from orchestrator.planning.stage_keys import split_key
from orchestrator.search.subset_files import subset_file
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.stages import split
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from tests.data_prep.conftest import contest  # noqa: F401 - a fixture
from tests.orchestrator.stages.planted import open_env, plant_catalog, plant_split
from trainers.config import Train


@pytest.mark.parametrize("strategy", ["random", "profile", "balanced_profile"])
def test_another_directory_order_and_another_disk_give_the_same_split_file(
    contest,  # noqa: F811
    tmp_path,
    monkeypatch,
    strategy,
):
    data, hashes = contest.data(split={"strategy": strategy, "val": 0.25, "seed": 4}), []
    other = tmp_path / "elsewhere"
    shutil.copytree(contest.base / "train", other / "train")
    shutil.copytree(contest.base / "eval", other / "eval")
    real = os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    for base, backwards in ((contest.base, False), (other, True)):
        if backwards:
            monkeypatch.setattr(
                photo_listing.os, "scandir", lambda folder: Reversed(reversed(list(real(folder))))
            )
            lines = (base / "train/train.csv").read_text().splitlines(keepends=True)
            (base / "train/train.csv").write_text("".join([lines[0], *reversed(lines[1:])]))
        catalog = build_catalog(data, base)
        tables.write(
            assign(catalog, Schema.of(data.labels), data.split, [], 3), base / "folds.parquet"
        )
        hashes.append((content_hash(catalog), file_sha256(base / "folds.parquet")))
    assert hashes[0] == hashes[1]


def test_five_folds_train_in_one_process_on_identical_label_tables(contest, tmp_path):  # noqa: F811
    """The team's label lists lived on the class and grew from fold to fold."""
    data = contest.data()
    catalog, schema = build_catalog(data, contest.base), Schema.of(data.labels)
    store = Store(tmp_path / "store")
    folds = plant_split(store, {"base": assign(catalog, schema, data.split, [], 5)})
    labelled = catalog.filter(pc.is_valid(catalog["label"]))
    samples = labelled["sample_id"].to_pylist()
    columns = [f"label_{name}" for name in schema.names]
    truth = dict(
        zip(
            samples,
            zip(*(labelled[name].to_pylist() for name in columns), strict=True),
            strict=True,
        )
    )
    rows = tmp_path / "rows"
    rows.mkdir()
    np.save(
        rows / "rows.npy",
        np.random.default_rng(0).integers(0, 255, (len(samples), 32, 32, 3), dtype=np.uint8),
    )
    (rows / "rows.json").write_text(json.dumps(samples))
    model = {"backbone": "test_efficientnet", "pretrained": False}
    train = Train.model_validate(
        {"model": model, "duration": "1 epochs", "batch_size": 16}
    ).model_dump(by_alias=True)
    sizes, held = dict(zip(schema.names, schema.sizes, strict=True)), []
    for fold in range(5):
        parts = subset_file(tmp_path / "parts", folds.artifacts["base"], data, catalog, 0, fold)
        table = tables.read(parts).to_pylist()
        assert truth == {row["sample_id"]: tuple(row[name] for name in columns) for row in table}
        place = (str(store.root), str(rows), str(parts))
        spec = TrialSpec(
            f"c{fold}", "s", "base", "confirm", 0, fold, {}, train, f"trial{fold}", *place, sizes
        )
        made = run_trial(spec, lambda epoch, metrics: None)
        held += tables.read(made.file("predictions.parquet")).to_pylist()
    assert sorted(row["sample_id"] for row in held) == samples
    assert all(row["target"] == schema.encode(truth[row["sample_id"]]) for row in held)


@pytest.mark.parametrize("cached", [False, True])
def test_a_class_that_only_one_fold_shows_is_refused_before_anything_is_trained(
    contest,  # noqa: F811
    tmp_path,
    cached,
):
    for person in contest.people:
        person["age"] = min(person["age"], 59)
    contest.people[5]["age"] = 60  # the only one, and in role train
    contest.save()
    data = contest.data(split={"strategy": "profile", "val": 0.25, "seed": 4})
    catalog, schema, store = (
        build_catalog(data, contest.base),
        Schema.of(data.labels),
        Store(tmp_path / "store"),
    )
    env = open_env(tmp_path, store=store)
    arm = env.experiment.arms["plain"].model_copy(update={"data": data})
    experiment = replace(env.experiment, arms={"a": arm})
    env = replace(env, experiment=experiment)
    confirm = experiment.spec.confirm
    if cached:  # by a release that did not look
        key = split_key(experiment, arm, "content")
        with store.draft("split", key, params={}, inputs={}) as draft:
            folds = assign(catalog, schema, data.split, [], confirm.folds, confirm.seeds)
            tables.write(folds, draft.path / "folds.parquet")
    with pytest.raises(
        DataError,
        match=r"every class of age was required in the training part of fold \d of confirm, found none of >=60",
    ):
        split.run(env, plant_catalog(store, catalog))
