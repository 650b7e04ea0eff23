"""What gc takes and what it leaves, in a store with the artifacts of two runs."""

import json
import shutil

import pytest
from click.testing import CliRunner

from data_prep.files import write_json
from orchestrator.base.errors import UserError
from orchestrator.cli import main
from orchestrator.planning.garbage import collect, find_garbage
from orchestrator.planning.plan import make_plan
from orchestrator.planning.run_environment import Scope
from orchestrator.planning.stage_keys import catalog_key, prepare_key, split_key, study_families
from orchestrator.run.driver import dump_yaml
from orchestrator.spec.load import read
from orchestrator.stages import STAGES
from orchestrator.store import store_address
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import Ledger
from tests.conftest import ROOT


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def spec(tmp_path):
    """The smoke experiment over empty photo folders: enough for a plan."""
    for side, table in (("train", "train.csv"), ("eval", "info.csv")):
        (tmp_path / "data/sample" / side / "images").mkdir(parents=True)
        (tmp_path / "data/sample" / side / table).write_text("id\n")
    (tmp_path / "experiments").mkdir()
    return shutil.copy(ROOT / "experiments/smoke.yaml", tmp_path / "experiments/spec.yaml")


def make(store, kind, key, text="x", **facts):
    with store.draft(
        kind, key, params={"train": {"model": {}}}, inputs=facts.pop("inputs", {})
    ) as draft:
        (draft.path / "file").write_text(text)
        draft.result |= {"history": [], **facts}


def begin(store, spec, *changes):
    """Write a run's folder and the artifacts of its stages, and one trial of each kind; return its plan."""
    experiment = read(spec, list(changes))
    plan = make_plan(experiment, store, STAGES)
    scope, run = Scope(experiment, plan.files, store), store.root / "runs" / plan.run_id
    run.mkdir(parents=True)
    dump_yaml(experiment.resolved(), run / "resolved.yaml")
    write_json(run / "plan.json", plan.to_json())
    if store.find("catalog", catalog_key(scope)) is None:
        make(store, "catalog", catalog_key(scope), content="content", photos="photos", n_ok=1)
    for arm in experiment.arms.values():
        for kind, key in (
            ("split", split_key(experiment, arm, "content")),
            ("prepare", prepare_key(arm, "photos")),
        ):
            if store.find(kind, key) is None:
                make(store, kind, key, f"{kind} {key}")
                make(store, "shard", f"shard-{key}", f"{kind} {key}")
                make(store, "features", f"features-{key}", inputs={"photos": key})
    with Ledger(run) as ledger:
        for status in ("COMPLETE", "PRUNED", None):
            name = f"{plan.run_id}-{status}"
            store.work_dir("trial", name)
            ledger.append(
                TrialStarted(trial_id=name, key=name, phase="search", variant="a", setting="s")
            )
            if status:
                ledger.append(TrialEnded(trial_id=name, status=status))
        make(store, "trial", f"{plan.run_id}-COMPLETE")
    return plan


def left(store, kind):
    return sorted(path.name for path in (store.root / kind).iterdir())


def test_nothing_that_a_run_needs_goes(store, spec):
    begin(store, spec)
    store.work_dir("trial", "forgotten")
    (store.root / "trial/.draft-dead").mkdir()
    make(store, "trial", "of-nobody")
    (store.root / "elsewhere").mkdir()
    found = find_garbage(store, STAGES)
    gone = {item.name: item.why for item in found.items}
    assert "no run needs this trial" == gone["of-nobody"]
    assert "was never finished" == gone[".draft-dead"]
    collect(store, found)
    assert [] == find_garbage(store, STAGES).items
    assert {"catalog": 1, "prepare": 1} == {
        kind: len(left(store, kind)) for kind in ("catalog", "prepare")
    }
    names = {name.split("-")[-1] for name in left(store, "trial")}
    assert {"COMPLETE", "None"} == names  # the artifact, and the work of the one that has not ended


def test_what_only_a_deleted_run_needed_goes(store, spec):
    first, second = (
        begin(store, spec),
        begin(store, spec, "seed=8", "prep.steps=[center_crop, {name: resize, size: 40}]"),
    )
    assert 2 == len(left(store, "prepare"))
    shutil.rmtree(store.root / "runs" / second.run_id)
    collect(store, find_garbage(store, STAGES))
    assert [1, 1, 1] == [len(left(store, kind)) for kind in ("prepare", "shard", "features")]
    assert {first.run_id} == {
        name.removeprefix(".work-").rsplit("-", 1)[0] for name in left(store, "trial")
    }


def test_a_finished_run_keeps_no_work(store, spec):
    plan = begin(store, spec)
    write_json(store.root / "runs" / plan.run_id / "summary.json", {"state": "SUCCEEDED"})
    collect(store, find_garbage(store, STAGES))
    assert [f"{plan.run_id}-COMPLETE"] == left(store, "trial")


def test_a_live_run_or_an_unreadable_one_stops_it(store, spec):
    plan = begin(store, spec)
    run = store.root / "runs" / plan.run_id
    with Ledger(run), pytest.raises(UserError, match="without live runs was required"):
        find_garbage(store, STAGES)
    audit = store.root / "audits" / plan.run_id
    audit.mkdir(parents=True)
    (store.root / "catalog/.draft-audits").mkdir()
    with (
        Ledger(audit),
        pytest.raises(UserError, match=f"without live audits was required, {plan.run_id} is live"),
    ):
        find_garbage(store, STAGES)
    assert ".draft-audits" in [item.name for item in find_garbage(store, STAGES).items]
    (run / "resolved.yaml").write_text("name: [")
    with pytest.raises(UserError, match="does not pass `check` any more"):
        find_garbage(store, STAGES)


def test_a_dry_run_says_and_deletes_nothing(store, spec):
    begin(store, spec)
    make(store, "trial", "of-nobody")
    before = left(store, "trial")
    done = CliRunner().invoke(main, ["gc", "--dry-run", "--store", str(store.root)])
    assert (0, before) == (done.exit_code, left(store, "trial"))
    assert "of-nobody" in done.stdout
    assert "would be freed" in done.stderr
    assert json.loads((store.root / "trial/of-nobody/manifest.json").read_text())


def test_every_ledger_is_read_once(store, spec, monkeypatch):
    """The search stage of each run read the ledgers of all others, to count trials to reuse."""
    from orchestrator.planning import garbage
    from orchestrator.search import reuse

    plans = [begin(store, spec), begin(store, spec, "search.trials=3")]
    for plan in plans:
        experiment = read(spec)
        scope = Scope(experiment, plan.files, store)
        prepared = {name: prepare_key(arm, "photos") for name, arm in experiment.arms.items()}
        families = study_families(scope.experiment, "content", prepared)
        reuse.write_families(store.root / "runs" / plan.run_id, families)
    paths = []
    for module in (garbage, reuse):
        monkeypatch.setattr(module, "read", lambda path: paths.append(path) or [])
    find_garbage(store, STAGES)
    assert len(paths) == len(set(paths)) == 2


def test_on_a_bucket_nothing_that_a_run_needs_goes(spec, s3_server, tmp_path, monkeypatch):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    store = store_address.open_store(f"s3://{s3_server.new_bucket()}/store")
    try:
        plan = begin(store, spec)
        make(store, "trial", "of-nobody")
        store.bucket.write("trial/dead/files-x/weights", b"1")
        unneeded = find_garbage(store, STAGES)
        gone = {item.name: item.why for item in unneeded.items}
        assert "no run needs this trial" == gone["of-nobody"]
        assert "was never finished" == gone[".draft-dead"]
        collect(store, unneeded)
        assert [] == find_garbage(store, STAGES).items
        for kind in ("prepare", "shard", "features"):
            assert 1 == len(store.bucket.folders(kind)), kind
        assert [f"{plan.run_id}-COMPLETE"] == store.bucket.folders("trial")
    finally:
        store_address._open_bucket.cache_clear()
