"""The driver on planted stages: what a run leaves when it ends early."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pyarrow.compute as pc
import pytest

from orchestrator.base.console import Reporter
from orchestrator.cluster.queue import Yielded
from orchestrator.planning.plan import Plan
from orchestrator.run import driver, tracking
from orchestrator.run.cluster_session import ClusterSize
from orchestrator.store import tables
from tests.orchestrator.stages.planted import plant_world


@dataclass(frozen=True)
class Planted:
    """A stage whose output is known, or that raises."""

    name: str
    output: object

    reads = ()

    def run(self, env):
        if isinstance(self.output, BaseException):
            raise self.output
        return self.output


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Drive a planted run whose vote ends with an error: (exit code, paths)."""
    world = plant_world(tmp_path, "select={policy: robust, members: 2}")
    env = world.env

    @contextmanager
    def connect_run(*_, insecure):
        yield ClusterSize(1.0, 0.0)

    monkeypatch.setattr(driver, "connect_run", connect_run)
    monkeypatch.setattr(driver, "_metrics", lambda *run: nullcontext())
    monkeypatch.setattr(tracking, "start", lambda run: tracking.Tracker(None, run))

    def run(error):
        stages = (
            Planted("catalog", world.catalog),
            Planted("prepare", world.prepared),
            Planted("confirm", world.confirmed),
            Planted("select", world.select()),
            Planted("vote", error),
            Planted("report", None),
        )
        monkeypatch.setattr(driver, "STAGES", stages)
        plan = Plan(env.paths.run_id, "k", "files", (), {}, None, None, None, ())
        arguments = (env.experiment, env.store, plan, env.paths, env.ledger, driver.Options())
        return driver._drive(*arguments, Reporter(quiet=True)), env.paths

    return run


def test_a_run_that_fails_in_vote_leaves_its_selection_and_its_predictions(drive):
    code, paths = drive(RuntimeError("a worker died"))
    assert code == 1
    selection = json.loads(paths.selection.read_text())
    assert selection["members"] == ["one", "two"]
    assert selection["ensemble"]["test"] is None
    predictions = tables.read(paths.predictions)
    assert len(predictions) == 3 * 2 * 14
    assert pc.unique(predictions["split"]).to_pylist() == ["oof"]
    summary = json.loads(paths.summary.read_text())
    assert (summary["state"], summary["members"]) == ("FAILED", ["one", "two"])
    assert summary["stages"] == {
        "catalog": "SUCCEEDED",
        "prepare": "SUCCEEDED",
        "confirm": "SUCCEEDED",
        "select": "SUCCEEDED",
        "vote": "FAILED",
        "report": "BLOCKED",
    }
    assert summary["quarantined"] == 1
    assert "a worker died" in paths.error.read_text()


def test_a_run_that_is_interrupted_in_vote_leaves_them_too(drive, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        drive(KeyboardInterrupt())
    (run,) = (tmp_path / "store/runs").iterdir()
    assert json.loads((run / "selection.json").read_text())["members"] == ["one", "two"]
    assert json.loads((run / "summary.json").read_text())["state"] == "INTERRUPTED"


def test_a_stage_that_yields_waits_for_its_turn_and_is_run_again():
    said = []

    class Yielding:
        reads = ()

        def run(self, env):
            said.append("runs")
            if len(said) == 1:
                raise Yielded
            return "done"

    class Turn:
        def wait_again(self):
            said.append("waits")

    assert "done" == driver._run_stage(Yielding(), None, driver._Progress(), Turn())
    assert ["runs", "waits", "runs"] == said
