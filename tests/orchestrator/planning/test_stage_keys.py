"""What keys tell apart: a setting that decides a result and is in no key would bring the wrong one out of the store."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

from data_prep.catalog.label_schema import Schema
from data_prep.weights.cache import CACHE_VARIABLE
from data_prep.weights.registry import describe
from orchestrator.base.stage_versions import QUICK_BACKBONE, STAGE_NAMES, VERSIONS
from orchestrator.evaluation.selection import finalists
from orchestrator.planning import stage_keys
from orchestrator.planning.run_environment import Scope
from orchestrator.run import driver
from orchestrator.spec.load import read
from orchestrator.stages import STAGES, trial_phase
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from tests.conftest import ROOT
from tests.orchestrator.stages.planted import (
    open_env,
    plant_catalog,
    plant_prepared,
    plant_split,
)

SCHEMA = Schema({"mask": ["a", "b"], "gender": ["a", "b"], "age": ["a", "b"]})
SPEC = Path(__file__).resolve().parents[3] / "experiments/quickstart.yaml"


def experiment_of(*changes):
    return read(SPEC, list(changes), check_roots=False)


def prepared(experiment):
    return stage_keys.prepare_keys(experiment, "photos")


def search_key(experiment):
    return stage_keys.search_key(experiment, "content", prepared(experiment))


def run_key(experiment):
    return stage_keys.run_key(Scope(experiment, "files", Store(Path())))


def confirm_key(finalists, *changes):
    experiment = experiment_of(*changes)
    return stage_keys.confirm_key(experiment, "content", prepared(experiment), finalists)


def test_borders_of_training_alone_are_another_study():
    plain, moved = experiment_of(), experiment_of("data.labels.age.train_bins=[25, 50]")
    catalogs = {stage_keys.catalog_key(Scope(e, "files", Store(Path()))) for e in (plain, moved)}
    assert 1 == len(catalogs), "they change no row of the catalog"
    families = [stage_keys.study_families(e, "content", prepared(e)) for e in (plain, moved)]
    assert not families[0].items() & families[1].items()
    assert search_key(plain) != search_key(moved)


def test_a_frozen_head_is_confirmed_again_where_another_setting_of_its_source_is_best():
    frozen = (
        "variants={plain: {}, on_it: {train.model.head: {name: frozen_deep, from: plain}}}",
        "search.space={train.optimizer.lr: {float: [5.0e-4, 3.0e-3], log: true}}",
        "hypotheses=[]",
    )
    ranked, other = (
        finalists(
            [("a", "plain", a), ("b", "plain", b), ("f", "on_it", 0.1)], 3, ["plain", "on_it"]
        )
        for a, b in ((0.5, 0.4), (0.4, 0.5))
    )
    assert sorted(ranked) == sorted(other)
    assert confirm_key(ranked, *frozen) != confirm_key(other, *frozen)
    assert confirm_key(ranked) == confirm_key(other), "without one the order decides nothing"


def test_an_audit_that_lacked_the_quick_model_is_made_again_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    without = stage_keys.audit_key(experiment_of(), "c", probe=True)
    assert without == stage_keys.audit_key(experiment_of(), "c", probe=True)
    for name in describe(QUICK_BACKBONE).files:
        (tmp_path / name).touch()
    assert without != stage_keys.audit_key(experiment_of(), "c", probe=True)


def test_where_test_labels_stand_and_who_sees_them_names_no_other_setting():
    """A name that told would choose other finalists among equal ones, and lose the scores of a search that is reused."""
    plain = experiment_of()
    for change in ("data.test.label=null", "data.test.public=0.5"):
        other = experiment_of(change)
        assert run_key(plain) != run_key(other)
        assert search_key(plain) == search_key(other)
        assert plain.setting("plain", {})[0] == other.setting("plain", {})[0]


def test_a_precision_that_was_probed_is_part_of_what_a_trial_is(tmp_path, monkeypatch):
    env = open_env(tmp_path, "train.precision=auto")
    subset = tmp_path / "subset"
    subset.write_bytes(b"")
    monkeypatch.setattr(trial_phase, "subset_file", lambda *given: subset)
    table = pa.table({"group": ["p"]})
    folds = dict.fromkeys(env.experiment.arms, table)
    trainings = trial_phase.Trainings(
        env,
        plant_catalog(env.store, table),
        plant_split(env.store, folds),
        plant_prepared(env.store, {name: [] for name in folds}),
    )
    keys = set()
    for chosen in ("fp32", "bf16"):
        monkeypatch.setattr(trial_phase, "choose_precision", lambda *given, chosen=chosen: chosen)
        spec = trainings.describe("s-plain-0000", "search", "plain", {}, seed=0)
        assert chosen == spec.train["precision"]
        keys.add(spec.key)
    assert 2 == len(keys)


def test_a_trial_gets_the_groups_and_the_code_that_its_spec_names(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    shutil.copytree(ROOT / "experiments/own_parts", folder)
    experiment = read(folder / "spec.yaml", ["train.group_photos=1"], check_roots=False)
    env = open_env(tmp_path, experiment=experiment)
    plan = SimpleNamespace(run_id="r", run_key="k", to_json=dict)
    driver._begin(experiment, plan, env.paths, env.ledger)
    subset = tmp_path / "subset"
    subset.write_bytes(b"")
    monkeypatch.setattr(trial_phase, "subset_file", lambda *given: subset)
    table = pa.table({"sample_id": ["train/a", "train/b"], "group": ["p", "q"]})
    trainings = trial_phase.Trainings(
        env,
        plant_catalog(env.store, table),
        plant_split(env.store, {"base": table}),
        plant_prepared(env.store, {"base": []}),
    )
    spec = trainings.describe("c-base-0000", "confirm", "base", {}, seed=0, fold=0)
    (code,) = spec.code
    assert (folder / "my_parts.py").read_bytes() == Path(code).read_bytes()
    assert env.paths.root in Path(code).parents
    assert [0, 1] == tables.read(Path(spec.facts))["group"].to_pylist()
    assert spec.inputs["facts"]
    assert {"facts", "code"} <= spec.to_json().keys()
    resumed = read(env.paths.resolved, check_roots=False, allow_code=True)
    assert Path(code) == resumed.code["my_parts.py"]
    driver._begin(resumed, plan, env.paths, env.ledger)
    assert (folder / "my_parts.py").read_bytes() == Path(code).read_bytes()


def test_every_stage_reads_earlier_stages_only():
    assert STAGE_NAMES == tuple(stage.name for stage in STAGES)
    earlier = set()
    for stage in STAGES:
        assert earlier >= {*stage.reads, *stage.find_reads}, stage.name
        assert stage.version == VERSIONS[stage.name]
        earlier.add(stage.name)


def test_keys_that_were_added_change_no_key_at_their_default():
    plain = experiment_of()
    facts = plain.identity()
    assert "subgroups" not in facts
    assert "calibrate" not in facts["vote"]
    assert "race" not in facts["confirm"]
    stated = experiment_of(
        "subgroups=[]",
        "vote.calibrate=false",
        "vote.group_mean=[]",
        "confirm.race=false",
        "data.not_copies=[]",
        "train.group_photos=null",
        "train.augment.erasing=null",
        "train.model.views=null",
    )
    assert run_key(stated) == run_key(plain)
    changed = experiment_of(
        "subgroups=[id]", "vote.calibrate=true", "confirm.race=true", "confirm.seeds=[0,1]"
    )
    assert run_key(changed) != run_key(plain)


def test_a_race_is_another_confirmation_and_depends_on_what_it_protects():
    race = ("confirm.race=true", "confirm.seeds=[0,1]")
    assert confirm_key(["a", "b"]) == confirm_key(["b", "a"])
    keys = {
        confirm_key(["a", "b"], race[1]),
        confirm_key(["a", "b"], *race),
        confirm_key(["b", "a"], *race),
        confirm_key(["a", "b"], *race, "select.members=1"),
        confirm_key(["a", "b"], *race, "hypotheses=[]"),
    }
    assert len(keys) == 5


def test_another_score_is_another_search_and_another_confirmation():
    """The best epoch of a training is chosen by it."""
    plain = experiment_of()
    other = experiment_of("score=mean of labels")
    assert search_key(plain) == search_key(experiment_of("score=macro_f1"))
    assert search_key(plain) != search_key(other)
    assert confirm_key(["a"]) != confirm_key(["a"], "score=mean of labels")
    families = [stage_keys.study_families(e, "content", prepared(e)) for e in (plain, other)]
    assert not families[0].items() & families[1].items()
    assert trial_phase.trained_for(plain.spec, SCHEMA) is None
    wanted = {"metric": "macro_f1", "labels": ["mask", "gender", "age"]}
    assert trial_phase.trained_for(other.spec, SCHEMA) == wanted
