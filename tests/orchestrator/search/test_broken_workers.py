"""Workers that die or cannot train at all, under real Tune."""

import os
import signal
from pathlib import Path

import pytest

from orchestrator.base.errors import UserError
from orchestrator.cluster.connection import connect, prepare_environment
from orchestrator.report.command_text.state_reasons import why
from orchestrator.search.controller import TrialController
from orchestrator.search.trial_process import Watch
from orchestrator.store.event_types import TrialEnded, WorkerDied
from orchestrator.store.ledger import Ledger, read
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.search import toy

prepare_environment(None, insecure=False)  # before anything in this process imports Ray


@pytest.fixture(scope="module")
def cluster():
    with connect(None, num_cpus=2, dashboard=False):
        from ray._private.worker import _global_node

        session = Path(_global_node.get_session_dir_path())
        yield
        assert (session / "artifacts").is_dir(), "Tune has written a folder per trial"
    assert (session / "logs").is_dir()
    assert not (session / "artifacts").exists()


def run_all(folder, names, body, told, **options):
    from orchestrator.search.ray_tune import run

    make = toy.spec_maker(folder)
    specs = [make(name, name, {"what": name}) for name in names]
    watch = Watch(logs=str(folder / "logs"))
    with Ledger(folder) as ledger:
        controller = TrialController(
            ledger,
            "search",
            iter([(spec, spec.trial_id) for spec in specs]),
            tell=lambda asked, *_: told.append(asked),
        )
        run(
            controller,
            folder / "tune/search",
            cpu=1,
            max_concurrent=2,
            body=body,
            watch=watch,
            **options,
        )
    return controller


def events_of(folder, kind):
    return [event for event in read(folder / "events.jsonl") if isinstance(event, kind)]


def good(spec, report):
    report(1, {"val_macro_f1": 0.5})


@pytest.mark.ray
@pytest.mark.slow
def test_workers_without_a_module_end_the_phase_and_fail_no_trial(cluster, tmp_path):
    told = []
    with pytest.raises(UserError, match=r"cannot import no_such_module: ModuleNotFoundError: No"):
        run_all(tmp_path, ["a", "b", "c", "d"], good, told, modules=("json", "no_such_module"))
    assert not told
    assert not events_of(tmp_path, TrialEnded)
    deaths = events_of(tmp_path, WorkerDied)
    assert 3 <= len(deaths) <= 4
    assert {("worker", False)} == {(event.cause, event.counts) for event in deaths}
    trial = deaths[0].trial_id
    assert "will be tried again: " in "\n".join(why(RunPaths(tmp_path), trial))
    assert "No module named 'no_such_module'" in (tmp_path / f"logs/{trial}.log").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_costs_an_attempt_and_not_the_trial(cluster, tmp_path):
    def kills_its_worker_once(spec, report):
        mark = tmp_path / f"{spec.trial_id}.killed"
        if spec.params["what"] == "victim" and not mark.exists():
            mark.touch()
            os.kill(os.getppid(), signal.SIGKILL)
        report(1, {"val_macro_f1": 0.5})

    told = []
    controller = run_all(tmp_path, ["a", "victim"], kills_its_worker_once, told, modules=())
    assert {"COMPLETE": 2} == controller.counts
    (death,) = events_of(tmp_path, WorkerDied)
    assert ("s-victim", "killed", True) == (death.trial_id, death.cause, death.counts)
    assert "its worker died" in death.error


def test_after_three_broken_workers_no_trial_is_handed_out(tmp_path):
    from orchestrator.search.controller import Finished, Proposal, Waiting

    make = toy.spec_maker(tmp_path)
    specs = [make(name, name, {"what": name}) for name in "abcde"]
    told = []
    with Ledger(tmp_path) as ledger:
        controller = TrialController(
            ledger,
            "search",
            iter([(spec, spec.trial_id) for spec in specs]),
            tell=lambda *answer: told.append(answer),
        )
        first, second = controller.next(), controller.next()
        for number in range(1, 4):
            assert not controller.has_broken_workers
            controller.on_broken_worker(first.spec.trial_id, "node7 cannot import torch")
            if number < 3:
                first = controller.next()
                assert isinstance(first, Proposal)
                assert number == first.attempt
        assert controller.has_broken_workers
        assert isinstance(controller.next(), Waiting)  # the second trial is on a good worker
        controller.on_report(second.spec.trial_id, 1, {"val_macro_f1": 0.5})
        controller.on_end(second.spec.trial_id, "COMPLETE")
        assert isinstance(controller.next(), Finished)
    assert [second.spec.trial_id] == [asked for asked, *_ in told]
