"""The mirror of a run is a process of its own, and says when it could not go on."""

import json
import resource
import subprocess
import sys
import time

import psutil
import pytest

from orchestrator.run import tracking as track

N_TRIALS = 40


@pytest.fixture
def run(tmp_path):
    """A run of forty trials that has ended."""
    (tmp_path / "resolved.yaml").write_text(
        "search: {trials: 40, space: {train.lr: {float: [0.1, 1]}}}\ntrack: {}\n"
    )
    events = []
    for at in range(N_TRIALS):
        facts = {
            "trial_id": f"s-{at}",
            "phase": "search",
            "variant": "a",
            "setting": "s",
            "key": "k",
            "params": {"train.lr": 0.5},
        }
        events.append({"event": "trial_started", **facts})
        events.append(
            {"event": "report", "trial_id": f"s-{at}", "epoch": 1, "metrics": {"val_macro_f1": 0.5}}
        )
        events.append({"event": "trial_ended", "trial_id": f"s-{at}", "status": "COMPLETE"})
    events.append({"event": "run_ended", "state": "SUCCEEDED"})
    lines = [json.dumps({"time": time.time() + 60, **event}) + "\n" for event in events]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    return tmp_path


def test_a_disk_that_is_full_is_told_and_is_no_success(run):
    tracker = track.start(run)
    resource.prlimit(
        tracker.process.pid, resource.RLIMIT_FSIZE, (12_000, 12_000)
    )  # bytes that a file may have
    said = tracker.finish(60)
    assert said is not None
    assert "study.log, W&B or MLflow may lack trials; details in" in said
    assert "OSError" in (run / "track.log").read_text()


def test_a_whole_mirror_has_nothing_to_say(run):
    assert track.start(run).finish(60) is None
    text = (run / "study.log").read_text()
    assert [f"s-{at}" for at in range(N_TRIALS) if f'"s-{at}"' not in text] == []


def test_a_resumed_run_leaves_one_file_of_points_per_trial(run):
    text = (run / "resolved.yaml").read_text().replace("track: {}", "track: {tensorboard: true}")
    (run / "resolved.yaml").write_text(text)
    for _ in range(2):
        assert track.start(run).finish(60) is None
    folders = list((run / "tensorboard").iterdir())
    assert [1] * N_TRIALS == [len(list(folder.iterdir())) for folder in folders]


def test_a_mirror_whose_driver_has_ended_before_it_was_ready_ends_too(run):
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(lines[:-1]))  # a killed driver writes no end
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.run import tracking\n"
        "print(tracking.start(Path(sys.argv[1])).process.pid, flush=True)\n"
        "os._exit(9)\n"  # in the moment in which the mirror imports
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False
    )
    mirror = psutil.Process(int(done.stdout))
    mirror.wait(30)
