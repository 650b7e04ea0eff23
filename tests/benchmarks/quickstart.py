"""quickstart: where the time of the first run goes, from its ledger."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from orchestrator.store.event_types import (
    EpochReported,
    RunEnded,
    RunStarted,
    StageEnded,
    TrialStarted,
)
from orchestrator.store.ledger import read

ROOT = Path(__file__).resolve().parents[2]
N_PEOPLE = "40"  # as in the Makefile
N_CORES = 2
NETWORKS = ("remove_background", "crop_face")


def quickstart():
    """Time `submit experiments/quickstart.yaml` on a fresh store, and print a row a stage.

    Beside it stand the seconds that no first run can save: the networks of the preparation and the steps of the
    trainings. The ratio is their share of two cores' time. Fair, because the same run measures both.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sample = [sys.executable, "-m", "data_prep.sample", "--out", folder / "data/sample"]
        subprocess.run([*sample, "--people", N_PEOPLE, "--seed", "0"], cwd=ROOT, check=True)
        (folder / "experiments").mkdir()
        spec = shutil.copy(ROOT / "experiments/quickstart.yaml", folder / "experiments")
        began = time.perf_counter()
        command = [sys.executable, "-m", "orchestrator", "submit", spec, "--store"]
        subprocess.run([*command, folder / "store"], cwd=ROOT, check=True, capture_output=True)
        wall_s = time.perf_counter() - began
        (run,) = (folder / "store/runs").iterdir()
        stages = stage_seconds(read(run / "events.jsonl"), wall_s)
        useful = useful_seconds(run)
    print(f"{'stage':<16}{'wall s':>8}{'useful s':>10}{'share':>7}")
    for name, seconds in stages.items():
        share = useful[name] / N_CORES / max(seconds, 0.1)
        print(f"{name:<16}{seconds:>8.1f}{useful[name]:>10.1f}{share:>7.2f}")
    note = f"s of networks and training steps beside {N_CORES} cores x {wall_s:.0f} s"
    return "s", useful.total(), N_CORES * wall_s, 1, note


def stage_seconds(events, wall_s):
    """Return the seconds of each stage, and of what is before, between and after them."""
    began = next(event.time for event in events if isinstance(event, RunStarted))
    ended = next(event.time for event in events if isinstance(event, RunEnded))
    stages = {event.stage: event.wall_s for event in events if isinstance(event, StageEnded)}
    first = next(event for event in events if isinstance(event, StageEnded))
    cluster_s = first.time - first.wall_s - began
    rest_s = ended - began - cluster_s - sum(stages.values())
    around_s = wall_s - (ended - began)
    return {"cluster": cluster_s, **stages, "shutdown": rest_s, "before, after": around_s}


def useful_seconds(run):
    """Return the seconds of networks and training steps by stage."""
    seconds = Counter()
    for path in (run.parents[1] / "shard").glob("*/manifest.json"):
        spent = json.loads(path.read_text())["result"]["seconds"]
        seconds["prepare"] += sum(spent.get(name, 0.0) for name in NETWORKS)
    phases = {}
    for event in read(run / "events.jsonl"):
        if isinstance(event, TrialStarted):
            phases[event.trial_id] = event.phase
        elif isinstance(event, EpochReported):
            seconds[phases[event.trial_id]] += event.metrics.get("steps_s", 0.0)
    return seconds
