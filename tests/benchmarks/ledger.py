"""The ledger of 100,000 trials: what a driver and `status` need to read it."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_TRIALS = 100_000
N_EPOCHS = 3  # of a trial: early stopping ends most after the first ones
REPEATS = 3
_SPEC = {"backbone": "tf_efficientnet_lite0", "padding": "x" * 800}
"""As long as the settings that a real trial carries."""
_REPLAY = "import sys; from orchestrator.store.ledger import *; replay(read(Path(sys.argv[1])))"
_BARE = "import json, sys; [json.loads(line) for line in open(sys.argv[1], 'rb')]"


def ledger_100k(n=N_TRIALS):
    """Time `status` of a run of 100,000 trials with three epochs each, the start of Python in.

    The baseline decodes each line of the same file with `json`, which every reader that decodes all of it has to. The
    note has both memories, and those of the replay that a driver makes when it goes on.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        ledger = plant(store, n)
        command = [sys.executable, "-m", "orchestrator", "status", "large", "--store", str(store)]
        sides = {
            "status": command,
            "json": [sys.executable, "-c", _BARE, str(ledger)],
            "replay": [sys.executable, "-c", _REPLAY, str(ledger)],
        }
        took = {name: [] for name in sides}
        peaks_mb = {}
        for _ in range(REPEATS):  # interleaved, so that a slow moment hits all
            for name, words in sides.items():
                wall_s, peaks_mb[name] = measured(words)
                took[name].append(wall_s)
        size_mb = ledger.stat().st_size / 1e6
    middle = {name: statistics.median(walls) for name, walls in took.items()}
    note = (
        f"{n} trials x {N_EPOCHS} epochs, {size_mb:.0f} MB; status {peaks_mb['status']:.0f} MB, json "
        f"{peaks_mb['json']:.0f} MB; replay {middle['replay']:.1f} s, {peaks_mb['replay']:.0f} MB"
    )
    return "s", middle["status"], middle["json"], REPEATS, note


def measured(words):
    """Return the wall time of a process, and its largest memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - began, usage.ru_maxrss / 1e3


def plant(store, n):
    """Write the ledger of a run, and return its file."""
    from orchestrator.store.event_types import (
        EpochReported,
        RunStarted,
        StageEnded,
        TrialEnded,
        TrialStarted,
    )

    draw = random.Random(0)
    root = store / "runs/large-00000001"
    root.mkdir(parents=True)
    place = root / "events.jsonl"
    n_written = 0
    with place.open("w", encoding="utf-8") as ledger:

        def write(event):
            nonlocal n_written
            record = event.stamped(n_written, 1.79e9 + n_written).to_json()
            ledger.write(json.dumps(record, ensure_ascii=False) + "\n")
            n_written += 1

        write(RunStarted(run_id="large-00000001", labels={"mask": ["on", "off"]}))
        write(StageEnded(stage="prepare", outcome="SUCCEEDED", wall_s=1.0))
        for number in range(n):
            name = f"s-base-{number:06}"
            params = {"train.optimizer.lr": 10 ** draw.uniform(-5, -2)}
            facts = {"setting": f"{number:08x}", "variant": "base", "phase": "search"}
            write(
                TrialStarted(
                    trial_id=name, params=params, train=_SPEC, key="k" * 64, number=number, **facts
                )
            )
            top = draw.random() / 2
            for epoch in range(1, N_EPOCHS + 1):
                metrics = {"val_macro_f1": top + 0.03 * epoch, "val_loss": 1 / epoch, "lr": 1e-3}
                write(EpochReported(trial_id=name, epoch=epoch, metrics=metrics))
            status = "COMPLETE" if number % 3 else "PRUNED"
            write(
                TrialEnded(
                    trial_id=name, status=status, epochs=N_EPOCHS, wall_s=12.0, metrics=metrics
                )
            )
    return place
