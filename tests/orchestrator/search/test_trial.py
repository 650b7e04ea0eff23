"""One trial as a worker runs it, without a cluster: what it takes in, leaves behind, and refuses."""

import dataclasses
import json
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.files import file_sha256
from orchestrator.base.errors import UserError
from orchestrator.search.trial import TrialSpec, run_trial
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from trainers import own_parts, training_loop
from trainers.config import Train
from trainers.inference import load, predict
from trainers.settings.own_parts import pin

SIZES = {"color": 2, "light": 2}
N = 48


@pytest.fixture
def place(tmp_path):
    """Rows of 48 photos of 24 people, and the parts of two folds."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, (N, 2))
    images = rng.integers(0, 40, (N, 32, 32, 3), dtype=np.uint8)
    images[np.arange(N), :, :, codes[:, 0]] += 150
    ids = [f"train/p{at // 2}/{at % 2}.jpg" for at in range(N)]
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows/rows.npy", images)
    (tmp_path / "rows/rows.json").write_text(json.dumps(ids))
    for fold in (0, 1):
        part = [
            "holdout" if at // 2 % 3 == fold else "val" if at // 2 % 3 == 2 else "train"
            for at in range(N)
        ]
        columns = {
            "sample_id": ids,
            "part": part,
            "label_color": codes[:, 0],
            "label_light": codes[:, 1],
        }
        tables.write(tables.pa.table(columns), tmp_path / f"parts{fold}.parquet")
    mixable = {
        "sample_id": ids,
        "fits": codes[:, 1] == 0,
        "within": codes[:, 0],
        "group": np.arange(N) // 2,
    }
    tables.write(tables.pa.table(mixable), tmp_path / "mixable.parquet")
    return tmp_path


def spec(place, key, head="single", *, fold=0, seed=0, augment=None, train=None, **settings):
    train = Train.model_validate(
        {
            "model": {"backbone": "test_efficientnet", "pretrained": False, "head": head},
            "augment": augment or {"policy": "none"},
            "duration": "1 epochs",
            "batch_size": 8,
            **(train or {}),
        }
    )
    return TrialSpec(
        f"c-{key}",
        "setting",
        "variant",
        "confirm",
        seed,
        fold,
        {},
        train.model_dump(mode="json", by_alias=True),
        key,
        str(place / "store"),
        str(place / "rows"),
        str(place / f"parts{fold}.parquet"),
        SIZES,
        inputs={"prepare": "photos", "parts": f"sha of parts {fold}"} | settings.pop("inputs", {}),
        **settings,
    )


A_C = {"name": "frozen_deep", "from": "A", "projection": 8, "hidden": 8}


def quiet(epoch, metrics):
    """Hear nothing."""


def test_a_plus_c_stands_on_the_a_of_its_own_fold_and_its_features_are_kept_in_the_store(place):
    run_trial(spec(place, "a0"), quiet)
    for key, hidden in (("ac0", 8), ("ac1", 4)):
        run_trial(
            spec(place, key, A_C | {"hidden": hidden}, source="a0", inputs={"source": "a0"}), quiet
        )
    store = Store(place / "store")
    assert "a0" == store.get("trial", "ac0").manifest["inputs"]["source"]
    assert 1 == len(list(store.all("features")))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            {"fold": 1},
            "fold 1 was required, found 0; parts sha of parts 1 was required, found sha of parts 0",
        ),
        ({"seed": 5}, "seed 5 was required, found 0"),
        ({"inputs": {"prepare": "other crops"}}, "prepare other crops was required, found photos"),
    ],
)
def test_a_feature_map_that_was_trained_on_anything_else_is_refused(place, broken, told):
    """The A of another fold was trained on photos that this fold holds out."""
    run_trial(spec(place, "a0"), quiet)
    with pytest.raises(UserError, match=told):
        run_trial(spec(place, "ac", A_C, source="a0", **broken), quiet)


@pytest.mark.parametrize("source", [None, "never-ended"])
def test_a_plus_c_without_a_finished_a_says_so(place, source):
    with pytest.raises(UserError, match="a finished trial of A was required, found none"):
        run_trial(spec(place, "ac", A_C, source=source), quiet)


def test_extra_samples_of_offline_mixup_are_rows_with_both_parents_all_of_the_training_part(place):
    augment = {"policy": "none", "mixup": {"name": "offline", "within": ["color"]}}
    made = run_trial(
        spec(place, "m", augment=augment, mixable=str(place / "mixable.parquet")), quiet
    )
    rows = pq.read_table(made.path / "mixed.parquet").to_pylist()
    parts = {row["sample_id"]: row for row in pq.read_table(place / "parts0.parquet").to_pylist()}
    assert len(rows) > 2
    for row in rows:
        a, b = parts[row["parent_a"]], parts[row["parent_b"]]
        assert ("train", "train", 0, 0) == (
            a["part"],
            b["part"],
            a["label_light"],
            b["label_light"],
        )
        assert a["label_color"] == b["label_color"]
        assert row["parent_a"].split("/")[1] != row["parent_b"].split("/")[1]


def test_a_worker_with_less_memory_says_what_micro_batch_it_used(place):
    made = run_trial(spec(place, "small", micro_batch=4), quiet)
    assert 4 == made.result["micro_batch"]
    assert 4 == made.result["history"][0]["train_micro_batch"]


def test_gc_reads_what_a_frozen_backbone_left_behind(place):
    from orchestrator.planning.garbage import find_garbage
    from orchestrator.stages import STAGES

    run_trial(spec(place, "a0"), quiet)
    run_trial(spec(place, "ac", A_C, source="a0"), quiet)
    store = Store(place / "store")
    with store.draft("features", "the-audits-own", params={}, inputs={}) as draft:
        (draft.path / "features.npy").write_bytes(b"")
    found = {item.kind for item in find_garbage(store, STAGES).items}
    assert {"trial", "features"} == found  # no run needs any of them


def test_two_runs_that_want_the_same_trial_at_once_train_it_once(place, monkeypatch):
    trained, waits, real = [], [], training_loop.train

    def train(*given, **settings):
        trained.append(1)
        while not waits:
            time.sleep(0.01)
        return real(*given, **settings)

    monkeypatch.setattr(training_loop, "train", train)
    heard, answers = [], []

    def one(name):
        def report(epoch, metrics):
            heard.append((name, epoch, metrics["is_last"]))

        report.wait = lambda: waits.append(name)
        own = dataclasses.replace(spec(place, "same"), trial_id=name)
        answers.append(run_trial(own, report).manifest)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("c-one", "c-two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([1], 2) == (trained, len(answers))
    assert answers[0] == answers[1]
    assert [("c-one", 1, 1.0), ("c-two", 1, 1.0)] == sorted(heard)
    assert 1 == len(set(waits))


def test_a_trial_reads_groups_and_draws_one_photo_of_each(place, monkeypatch):
    ids = json.loads((place / "rows/rows.json").read_text())
    groups = {"sample_id": ids[::-1], "group": np.arange(N)[::-1] // 2}
    tables.write(tables.pa.table(groups), place / "facts.parquet")
    drawn = []
    original = training_loop.epoch_order

    def spy(task, **settings):
        drawn.append((task.groups, original(task, **settings)))
        return drawn[-1][1]

    monkeypatch.setattr(training_loop, "epoch_order", spy)
    described = spec(place, "g", train={"group_photos": 1}, facts=str(place / "facts.parquet"))
    run_trial(described, quiet)
    ((of_rows, order),) = drawn
    np.testing.assert_array_equal(np.arange(N) // 2, of_rows)
    assert len(order) == len(set(of_rows[order])) == 8
    without = spec(place, "h").to_json()
    assert not {"facts", "code"} & without.keys()


def test_a_trial_runs_code_of_the_folder_that_it_was_given_and_of_no_other(place, monkeypatch):
    monkeypatch.setattr(own_parts, "_allowed", {})
    code = place / "code"
    code.mkdir()
    (code / "mine.py").write_text(
        "from torch import nn\n"
        "def part(n_features, n_classes, *, bias):\n"
        "    return nn.Linear(n_features, n_classes, bias=bias)\n"
        "def broken(n_features, n_classes):\n"
        "    return n_features // 0\n"
    )
    head = pin({"train": [{"use": "mine.py:part", "bias": False}]}, [code]).data["train"][0]
    with pytest.raises(own_parts.CodeNotAllowed, match="give --allow-code"):
        run_trial(spec(place, "a", head), quiet)
    made = run_trial(spec(place, "b", head, code=[str(code / "mine.py")]), quiet)
    assert head == made.manifest["params"]["train"]["model"]["head"]
    assert head == json.loads((made.path / "model.json").read_text())["model"]["head"]
    broken = {"use": "mine.py:broken", "sha256": head["sha256"]}
    with pytest.raises(own_parts.OwnPartFailed, match=r"mine\.py, line 5, in broken: ZeroDiv"):
        run_trial(spec(place, "c", broken, code=[str(code / "mine.py")]), quiet)


def test_own_weights_and_averages_leave_one_model_that_predicts_as_it_was_scored(place, tmp_path):
    source = run_trial(spec(place, "first"), lambda *_: None)
    file = source.path / "weights.safetensors"
    plain = spec(place, "second", fold=0)
    train = Train.model_validate(
        {
            **plain.train,
            "model": {
                "backbone": "test_efficientnet",
                "weights": str(file),
                "weights_sha256": file_sha256(file),
            },
            "duration": "3 epochs",
            "ema": {"decay": 0.5},
            "soup": {"epochs": 2},
        }
    )
    tuned = dataclasses.replace(plain, train=train.model_dump(mode="json", by_alias=True))
    artifact = run_trial(tuned, lambda *_: None)
    assert 1 <= len(artifact.result["soup"]) <= 2
    assert "weights.safetensors" not in (artifact.path / "model.json").read_text()
    stored = tables.read(artifact.path / "predictions.parquet")
    rows = [
        int(name[7:].split("/")[0]) * 2 + int(name[-5]) for name in stored["sample_id"].to_pylist()
    ]
    probs = predict(load(artifact.path), np.load(place / "rows/rows.npy"), np.array(rows))
    np.testing.assert_array_equal(probs, np.array(stored["probs"].to_pylist(), np.float32))
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"train\.model\.weights: .* the file was changed after"):
        run_trial(dataclasses.replace(tuned, key="third"), lambda *_: None)
