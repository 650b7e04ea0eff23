import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data_prep.errors import DataError
from orchestrator.base.errors import UserError
from orchestrator.evaluation.selection import choose, give_scores, rank
from orchestrator.stages import confirm, test_set
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.test_set import public_half, read_test_photos, score_input
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import TrialRecord
from tests.orchestrator.stages.planted import (
    open_env,
    plant_catalog,
    plant_prepared,
    planted_candidate,
)


def test_the_public_half_is_a_function_of_the_names_and_never_splits_a_group():
    samples = [f"test/{at:03}" for at in range(70)]
    groups = {sample: f"p{at // 7}" for at, sample in enumerate(samples)}
    public = public_half(samples, groups, 0.5)
    assert public == public_half(list(reversed(samples)), groups, 0.5)
    assert len({groups[sample] for sample in public}) == 5
    assert {groups[s] for s in public}.isdisjoint(groups[s] for s in samples if s not in public)
    assert len(public_half(samples, None, 0.3)) == 21
    assert public_half(samples, groups, None) == frozenset()


def test_one_group_cannot_be_halved():
    with pytest.raises(DataError, match=r"data\.test\.public"):
        public_half(["test/a", "test/b"], {"test/a": "p", "test/b": "p"}, 0.5)


@pytest.fixture
def run(tmp_path):
    """A run with a hold-out test set of two people: its Env and catalog."""
    env = open_env(tmp_path, "data.test={hold_out: 0.5}")
    samples = [f"test/{number}.jpg" for number in range(4)]
    table = pa.table({"sample_id": samples, "group": ["p", "p", "q", "q"]})
    return env, plant_catalog(env.store, table, quarantined={"test/3.jpg": "truncated"})


def test_a_photo_is_lost_only_where_one_of_those_that_answer_could_not_prepare_it(run):
    env, _ = run
    lost = {"plain": [], "rembg": ["test/0.jpg"], "face": ["test/1.jpg"]}
    prepared = plant_prepared(env.store, lost)
    assert read_test_photos(*run, prepared, ["plain"]).lost == {"test/3.jpg": "truncated"}
    assert read_test_photos(*run, prepared, ["plain", "face", "face"]).lost == {
        "test/1.jpg": "no face",
        "test/3.jpg": "truncated",
    }


def test_answers_on_a_test_set_keep_groups_where_they_are_known(run):
    env, _ = run
    photos = read_test_photos(*run, plant_prepared(env.store, {"plain": []}), [])
    preds = dict.fromkeys((sample for sample, _ in photos.order), 0)
    labels = dict(zip(preds, (0, 2, 1, 3), strict=True))
    answers = score_input(env, photos, "whole", preds, labels)
    assert answers.groups == ["p", "p", "q", "q"]
    assert answers.targets.tolist() == [0, 2, 1, 3]
    alone = score_input(env, replace(photos, groups=None), "whole", preds, labels)
    assert alone.groups is None
    assert np.array_equal(alone.preds, answers.preds)


def test_a_leaderboard_ranks_by_what_it_saw_and_chooses_nobody_it_has_not_seen():
    scores = {"a": 0.5, "b": None, "c": 0.7, "d": 0.5}
    rows = [planted_candidate(name, board_score=score) for name, score in scores.items()]
    assert [row.setting for row in rank(rows, "leaderboard")] == ["c", "a", "d", "b"]
    chosen = choose(rows, "leaderboard", 4)
    assert (chosen.members, chosen.weights) == (["c", "a", "d"], [1, 1, 1])
    assert chosen.short_of.startswith("3 members instead of 4")
    assert "public half" in chosen.rule
    assert "board_score" in chosen.to_json()["candidates"][0]


def test_scores_typed_in_by_hand_go_to_the_best_finalist_of_their_variant():
    rows = [
        planted_candidate("x", variant="a", search_score=0.1),
        planted_candidate("y", variant="a", search_score=0.9),
        planted_candidate("z", variant="b"),
    ]
    given = {row.setting: row.board_score for row in give_scores(rows, {"a": 0.79})}
    assert given == {"x": None, "y": 0.79, "z": None}


def test_a_diverse_choice_keeps_its_votes():
    rows = [
        planted_candidate(name, low_rounded=low)
        for name, low in (("a", 0.6), ("b", 0.5), ("c", 0.4))
    ]
    chosen = choose(rows, "diverse", 3, ["c", "a", "c"])
    assert (chosen.members, chosen.weights, chosen.short_of) == (["a", "c"], [1, 2], None)
    assert [row.reason.split(";")[0] for row in chosen.candidates] == [
        "added 1 time",
        "added 0 times",
        "added 2 times",
    ]
    assert "board_score" not in chosen.to_json()["candidates"][0]


def test_checkpoints_answer_on_the_trials_device_a_batch_of_mapped_rows_at_a_time(
    tmp_path, monkeypatch
):
    """There may be no GPU here: what is asked of the cluster and of torch is looked at."""
    from trainers import inference

    np.save(tmp_path / "rows.npy", np.zeros((4, 2, 2, 3), np.uint8))
    (tmp_path / "rows.json").write_text(json.dumps(["test/a", "test/b", "train/c", "test/d"]))
    asked = []

    def inline(function, jobs, **share):
        asked.append(share)
        return map(function, jobs)

    class Trained:
        frozen = False

        def to(self, device):
            return self

    def answer(model, images, rows, *, device, features):
        asked.append((type(images), rows.tolist(), device, features))
        return np.full((len(rows), 2), 0.5, np.float32)

    monkeypatch.setattr(test_set, "ray_map", inline)
    monkeypatch.setattr(inference, "load", lambda folder: Trained())
    monkeypatch.setattr(inference, "predict", answer)
    env = open_env(tmp_path, "resources.per_trial={cpu: 2, gpu: 0.5}")
    with env.store.draft("trial", "k", params={}, inputs={}) as draft:
        (draft.path / "weights.safetensors").write_bytes(b"")
    shards = {"base": Artifact("prepare", "p", tmp_path, {})}
    prepared = Prepared("SUCCEEDED", "", shards, {"base": Artifact("rows", "r", tmp_path, {})})
    trial = TrialRecord(
        TrialStarted(trial_id="t", phase="confirm", variant="base", setting="s", key="k")
    )
    samples = ["test/d", "test/a"]
    predicted = test_set.predict_trials(env, prepared, [trial], samples)
    share = {"name": "vote", "cpu": 2, "gpu": 0.5, "fork_server": None}
    assert [share, (np.memmap, [3, 0], "cuda", None)] == asked
    assert (2, 2) == test_set.join_members(predicted, samples)["s"][1].shape


def test_answers_on_the_test_set_are_averaged_over_groups_per_checkpoint(tmp_path):
    samples = ["test/a", "test/b", "test/c"]
    probs = np.random.default_rng(0).dirichlet(np.ones(18), 3).astype(np.float32)
    trial = TrialRecord(
        TrialStarted(trial_id="t", phase="confirm", variant="base", setting="s", key="k")
    )
    predicted = [test_set.TrialProbs(trial, probs)]
    order = [(sample, sample) for sample in samples]
    groups = {"test/a": "p", "test/b": "q", "test/c": "p"}
    photos = test_set.TestPhotos(order, groups, {}, frozenset())
    env = open_env(tmp_path, "data.test={hold_out: 0.5}")
    (plain,) = test_set.average_groups(env, photos, predicted, samples)
    assert plain.probs is probs
    env = open_env(tmp_path / "b", "data.test={hold_out: 0.5}", "vote.group_mean=[gender, age]")
    (averaged,) = test_set.average_groups(env, photos, predicted, samples)
    by_label = averaged.probs.reshape(3, 3, 2, 3).sum(1)
    np.testing.assert_allclose(by_label[0], by_label[2], rtol=1e-5)
    np.testing.assert_allclose(probs[1], averaged.probs[1], rtol=1e-5)
    with pytest.raises(UserError, match="the group of every test photo was required"):
        test_set.average_groups(env, replace(photos, groups=None), predicted, samples)


def test_held_out_answers_are_averaged_over_groups_where_they_are_collected(tmp_path):
    env = open_env(tmp_path, "data.test={hold_out: 0.5}", "vote.group_mean=[gender]")
    samples = ["train/a", "train/b", "train/c"]
    table = pa.table({"sample_id": samples, "group": ["p", "p", "q"]})
    catalog = plant_catalog(env.store, table)
    probs = np.random.default_rng(0).dirichlet(np.ones(18), 3).astype(np.float32)
    rows = []
    for sample, row in zip(samples, probs, strict=True):
        rows.append({"trial_id": "t", "setting": "s", "variant": "base", "seed": 0, "fold": 0, "sample_id": sample,
                     "split": "oof", "target": 0, "pred": int(row.argmax()), "probs": row.tolist()})  # fmt: skip
    with env.store.draft("trial", "k", params={}, inputs={}) as draft:
        tables.write(tables.from_rows(rows, tables.PREDICTIONS), draft.path / "predictions.parquet")
    started = TrialStarted(trial_id="t", phase="confirm", variant="base", setting="s", key="k")
    trial = TrialRecord(started, ended=TrialEnded(trial_id="t", status="COMPLETE"))
    collected = confirm._collect(env, catalog, [trial])
    answered = np.array(collected["probs"].to_pylist())
    by_gender = answered.reshape(3, 3, 2, 3).sum((1, 3))
    np.testing.assert_allclose(by_gender[0], by_gender[1], rtol=1e-5)
    np.testing.assert_allclose(probs[2], answered[2], rtol=1e-5)
    assert answered.argmax(1).tolist() == collected["pred"].to_pylist()
