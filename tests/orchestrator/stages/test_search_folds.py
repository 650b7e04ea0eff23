"""A search that trains folds, and the confirmation after it: real stages and trainings, without a cluster."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from orchestrator.base.errors import UserError
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.planning import plan, stage_keys
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.search.controller import Proposal
from orchestrator.search.trial import run_trial
from orchestrator.spec.load import read
from orchestrator.stages import confirm, search, split, trial_phase
from orchestrator.stages.prepare import Prepared
from orchestrator.store import tables
from orchestrator.store.event_types import FOLD_SCORE, N_PARAMS
from orchestrator.store.ledger import Ledger
from tests.conftest import ROOT
from tests.orchestrator.stages.planted import open_env, plant_catalog

SMOKE = ROOT / "experiments/smoke.yaml"
CHANGES = (
    "data.labels={color: {from: column, column: color, classes: [red, blue]}}",
    "data.split={strategy: profile, val: 0.4, seed: 0}",
    "data.test=null",
    "variants={base: {}}",
    "hypotheses=[]",
    "search={trials: 2, folds: 3, sampler: random, space: {train.optimizer.lr: {float: [1.0e-4, 1.0e-2]}}}",
    "confirm={finalists: 1, seeds: [5, 6], folds: 3}",
    "select.members=1",
)
N_PEOPLE = 30


def plant(root, *changes, store=None):
    """Return Env and the outputs of the stages before search, over two photos each of 30 people."""
    experiment = read(SMOKE, [*CHANGES, *changes], check_roots=False)
    env = open_env(root, experiment=experiment, store=store)
    n = 2 * N_PEOPLE
    people = np.arange(n) // 2
    codes = people % 2
    ids = [f"train/p{person}/{photo % 2}.jpg" for photo, person in enumerate(people)]
    table = pa.table(
        {
            "sample_id": ids,
            "group": [f"p{person}" for person in people],
            "label": pa.array(codes, pa.int64()),
            "label_color": pa.array(codes, pa.int64()),
            "status": ["ok"] * n,
        }
    )
    catalog = plant_catalog(env.store, table)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (n, 32, 32, 3), dtype=np.uint8)
    images[np.arange(n), :, :, codes * 2] += 100
    with env.store.draft("rows", "9" * 16, params={}, inputs={}) as draft:
        np.save(draft.path / "rows.npy", images)
        (draft.path / "rows.json").write_text(json.dumps(ids))
    rows = env.store.get("rows", "9" * 16)
    prepared = Prepared(SUCCEEDED, "", {"base": rows}, {"base": rows})
    return env, catalog, split.run(env, catalog), prepared


@pytest.fixture
def trained(monkeypatch):
    """Train in this process instead of a cluster; return the ids of the trials that were trained."""
    names = []

    def train_all(env, controller, phase, n_trials):
        (env.paths.tune / phase).mkdir(parents=True, exist_ok=True)
        while isinstance(step := controller.next(), Proposal):
            name = step.spec.trial_id

            def report(epoch, metrics, name=name):
                scores = {key: value for key, value in metrics.items() if key.startswith("val_")}
                controller.on_report(name, epoch, scores)

            if step.replay is not None:
                for epoch, metrics in step.replay.reports:
                    report(epoch, metrics)
            else:
                names.append(name)
                run_trial(step.spec, report)
            controller.on_end(name, "COMPLETE")

    monkeypatch.setattr(trial_phase, "train_all", train_all)
    return names


def test_folds_of_the_search_are_those_of_confirm_and_role_val_alone_scores_them(tmp_path, trained):
    env, catalog, dealt, prepared = plant(tmp_path)
    searched = search.run(env, catalog, dealt, prepared)
    assert [f"s-base-{n:04}-s5-f{fold}" for n in (0, 1) for fold in range(3)] == trained
    roles = dealt.folds["base"]
    in_val = set(roles.filter(pc.equal(roles["role"], "val"))["sample_id"].to_pylist())
    for trial in searched.trials:
        rows = pq.read_table(env.store.get("trial", trial.key).path / "predictions.parquet")
        assert {"oof"} == set(rows["split"].to_pylist())
        kept = [row for row in rows.to_pylist() if row["sample_id"] in in_val]
        assert 0 < len(kept) < len(rows)
        targets = np.array([row["target"] for row in kept])
        preds = np.array([row["pred"] for row in kept])
        assert macro_f1(targets, preds, 2) == pytest.approx(trial.metrics[FOLD_SCORE])
    assert 2 == len(searched.ranking)
    for setting, _, score in searched.ranking:
        of_setting = [t.metrics[FOLD_SCORE] for t in searched.trials if t.setting == setting]
        assert np.mean(of_setting) == pytest.approx(score)

    trained.clear()
    confirmed = confirm.run(env, catalog, dealt, prepared, searched)
    best = max(searched.ranking, key=lambda row: (row.score, row.setting)).setting
    (finalist,) = confirmed.checkpoints
    assert {row.score for row in searched.ranking if row.setting == finalist} == {
        max(row.score for row in searched.ranking)
    }, best
    assert [f"c-{finalist}-s6-f{fold}" for fold in range(3)] == trained, "seed 5 is the search's"
    assert [True] * 3 + [False] * 3 == [trial.is_cached for trial in confirmed.trials]

    written = confirmed.predictions.to_pylist()
    out_of_fold = [row for row in written if row["split"] == "oof"]
    assert 2 * 2 * N_PEOPLE == len(out_of_fold), "each photo once per seed"
    assert in_val == {row["sample_id"] for row in written if row["split"] == "val"}
    chosen = confirm.held_out_predictions(env, catalog, dealt, confirmed)[finalist]
    assert in_val.isdisjoint(chosen.sample_ids), "whose labels chose the settings"

    table = tables.read(env.paths.trials).to_pylist()
    scored = [row["trial_id"] for row in table if row[FOLD_SCORE] is not None]
    assert [trial.trial_id for trial in searched.trials] == scored

    trained.clear()
    (tmp_path / "again").mkdir()
    with Ledger(tmp_path / "again") as ledger:
        second = search.run(replace(env, ledger=ledger), catalog, dealt, prepared)
    assert ("CACHED", searched.ranking) == (second.outcome, second.ranking)
    wider = plant(tmp_path / "wider", "name=wider", "search.folds=4", store=env.store)
    search.run(*wider)
    other = [name for name in ("s-base-0000-s6-f0", "s-base-0001-s6-f0") if name in trained]
    assert other == trained, "the fourth fold, which the finalist's confirmation has trained"
    assert 1 == len(trained)


def test_a_training_that_a_kept_search_lost_is_trained_again_and_no_other(tmp_path, trained):
    env, catalog, dealt, prepared = plant(tmp_path)
    searched = search.run(env, catalog, dealt, prepared)
    lost = searched.trials[1]
    env.store.remove("trial", lost.key)
    trained.clear()
    (tmp_path / "again").mkdir()
    with Ledger(tmp_path / "again") as ledger:
        second = search.run(replace(env, ledger=ledger), catalog, dealt, prepared)
    assert [lost.trial_id] == trained
    assert (SUCCEEDED, searched.ranking) == (second.outcome, second.ranking)
    assert env.store.has("trial", lost.key)


def test_a_fold_without_people_of_role_val_is_refused_before_anything_is_trained(tmp_path, trained):
    env, catalog, dealt, prepared = plant(tmp_path, "data.split.val=0.07")
    with pytest.raises(UserError, match=r"search.folds: photos of role val were required in fold"):
        search.run(env, catalog, dealt, prepared)
    assert not trained


def test_a_fold_that_few_people_score_is_named_before_anything_is_trained(
    tmp_path, trained, monkeypatch
):
    env, *made = plant(tmp_path)
    said = []
    monkeypatch.setattr(env.console, "say", lambda text: said.append((text, list(trained))))
    search.run(env, *made)
    text, before = said[0]
    assert "search.folds: a fold is scored by as few as" in text
    assert "groups of role val" in text
    assert [] == before


def test_keys_change_where_folds_are_used_and_nowhere_else():
    def keys(*changes):
        experiment = read(SMOKE, [*CHANGES, *changes], check_roots=False)
        prepared = stage_keys.prepare_keys(experiment, "photos")
        families = stage_keys.study_families(experiment, "content", prepared)
        return stage_keys.search_key(experiment, "content", prepared), families["base"]

    plain = keys("search.folds=null")
    unused = keys("search.folds=null", "confirm.seeds=[7, 8]", "confirm.folds=4")
    assert plain == unused, "a search without folds knows nothing of confirm"
    with_folds = [
        keys(),
        keys("search.folds=4"),
        keys("confirm.seeds=[7, 8]"),
        keys("confirm.folds=4"),
    ]
    for place in (0, 1):
        assert 5 == len({plain[place], *(pair[place] for pair in with_folds)})
    without = read(SMOKE, [*CHANGES, "search.folds=null"], check_roots=False)
    assert "folds" not in without.identity()["search"]


def test_a_search_for_few_parameters_knows_those_of_each_model(tmp_path, trained, monkeypatch):
    space = "{train.model.head: {choice: [single, deep]}}"
    env, catalog, dealt, prepared = plant(
        tmp_path,
        f"search={{trials: 2, sampler: grid, objectives: [score, parameters], space: {space}}}",
        "confirm.finalists=2",
    )
    searched = search.run(env, catalog, dealt, prepared)
    for trial in searched.trials:
        model = json.loads((env.store.get("trial", trial.key).path / "model.json").read_text())
        assert model["n_params"] == trial.metrics[N_PARAMS] == searched.sizes[trial.setting]
    assert 2 == len(set(searched.sizes.values()))
    key = stage_keys.search_key(env.experiment, catalog.content, prepared.keys)
    artifact = env.store.get("search", key)
    assert searched.sizes == artifact.result["sizes"]
    wanted = env.experiment.spec.confirm
    points = confirm.choose_points(searched, wanted, ["base"])
    monkeypatch.setattr(confirm, "prepare_keys", lambda *_: prepared.keys)
    found = confirm.find(env, catalog)
    assert found.key == stage_keys.confirm_key(
        env.experiment, catalog.content, prepared.keys, list(points)
    )
    rows = tables.read(env.paths.trials).to_pylist()
    assert searched.sizes == {row["setting"]: row[N_PARAMS] for row in rows}


def test_a_plan_counts_every_fold_and_says_what_confirm_need_not_train():
    experiment = read(SMOKE, list(CHANGES), check_roots=False)
    assert {"search": 6, "confirm": 6} == plan.n_trials(experiment)
    assert 3 == plan._n_shared(experiment)
    (shared,) = [note for note in plan._notes(experiment) if "search.folds" in note]
    assert "3 of the trainings of each finalist in confirm are those of the search" in shared
    one_seed = read(SMOKE, [*CHANGES, "confirm.seeds=[5]"], check_roots=False)
    assert any("no seed of confirm is left" in note for note in plan._notes(one_seed))
