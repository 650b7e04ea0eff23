"""Asking a live run to stop, and asking any run why."""

import signal
import threading
import time

import pytest

from orchestrator.base.errors import SpecError, UserError
from orchestrator.report.command_text.run_story import printed, story
from orchestrator.report.command_text.state_reasons import why
from orchestrator.run.control import Listener, cancel, stop_trial
from orchestrator.search.trial_process import stop_file
from orchestrator.store.event_types import StageEnded, TrialEnded, TrialStarted, WorkerDied
from orchestrator.store.ledger import Ledger, replay
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.search import toy
from tests.orchestrator.search.test_controller import play


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "runs/toy-1"
    root.mkdir(parents=True)
    return RunPaths(root)


def begin(run, ledger, *names):
    for number, name in enumerate(names):
        ledger.append(
            TrialStarted(
                number=number,
                **toy.spec_maker(run.root)(name, "a", {"train.lr": 0.1}).to_json(),
            )
        )


def test_only_a_running_trial_of_a_live_run_can_be_stopped(run):
    with Ledger(run.root) as ledger:
        begin(run, ledger, "a-0000", "a-0001")
        ledger.append(TrialEnded(trial_id="s-a-0000", status="COMPLETE", epochs=1))
        assert "s-a-0001" == stop_trial(run, "s-a")
        assert stop_file(run.control, "s-a-0001").exists()
        with pytest.raises(
            UserError,
            match="s-a-0000: a running trial was required, found no such one; there are: s-a-0001",
        ):
            stop_trial(run, "s-a-0000")
    for ask in (lambda: stop_trial(run, "s-a-0001"), lambda: cancel(run, timeout_s=1)):
        with pytest.raises(UserError, match="a live run was required, it is INTERRUPTED"):
            ask()


def test_a_cancel_interrupts_the_driver_and_waits_for_its_end(run):
    interrupts = []
    before = signal.signal(signal.SIGTERM, lambda *_: interrupts.append(1))
    try:
        ledger = Ledger(run.root).__enter__()
        listener = Listener(run)
        assert not listener.cancelled
        asker = threading.Thread(target=lambda: interrupts.append(cancel(run, timeout_s=20)))
        asker.start()
        while not interrupts:
            time.sleep(0.02)
        assert listener.cancelled
        ledger.__exit__()
        asker.join()
        assert [1, True] == interrupts
        assert not Listener(run).cancelled  # the next driver is not
    finally:
        signal.signal(signal.SIGTERM, before)


def test_why_tells_of_a_pruned_trial_a_setting_and_a_stage(run):
    play(
        run.root,
        search={"trials": 9, "scheduler": {"name": "asha", "grace": "1 epochs", "reduction": 3}},
    )
    with Ledger(run.root) as ledger:
        trials = replay(ledger.events).trials.values()
        trial = next(trial for trial in trials if trial.status == "PRUNED")
        pruned, setting = trial.trial_id, trial.setting
        ledger.append(WorkerDied(trial_id=pruned, error="its process was killed by SIGKILL"))
        ledger.append(StageEnded(stage="search", outcome="FAILED", note="no disk", wall_s=1.0))
        ledger.append(
            StageEnded(stage="vote", outcome="BLOCKED", note="an earlier stage failed", wall_s=0.0)
        )
    told = "\n".join(why(run, pruned))
    assert "stopped early: asha: best" in told
    assert "will be tried again: its process was killed by SIGKILL" in told
    assert told == "\n".join(why(run, setting))
    assert "stage search: FAILED after 1.0 s\n  no disk" == "\n".join(why(run, "search"))
    assert "by search: no disk" in "\n".join(why(run, "vote"))
    assert ["stage report: has not ended"] == why(run, "report")
    with pytest.raises(
        SpecError,
        match=r"a stage, a trial or a setting was required, found several; .*stages: catalog",
    ):
        why(run, "s-a")
    lines = list(story(run))
    assert 9 == sum(" started" in line and "s-a" in line for line in lines)
    assert [] == printed(run, pruned)
    run.logs.mkdir()
    (run.logs / f"{pruned}.log").write_text("careful\n")
    assert ["careful"] == printed(run, pruned)
    assert why(run, pruned)[-1].endswith(f"/{pruned}.log")
