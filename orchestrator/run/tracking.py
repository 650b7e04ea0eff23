"""The mirror of a run: a background process that reads the ledger and writes to other trackers.

These are the Optuna journal, TensorBoard, W&B, MLflow and a webhook. The mirror cannot block the run
or make it fail: the driver starts it, waits a short time for it at the end, and continues without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from orchestrator.base.errors import UserError
from orchestrator.run.trackers import mlflow_runs, wandb_runs
from orchestrator.run.trackers.mlflow_runs import MlflowRuns
from orchestrator.run.trackers.optuna_journal import Journal
from orchestrator.run.trackers.sink import Sink
from orchestrator.run.trackers.tensorboard_files import TensorBoard
from orchestrator.run.trackers.wandb_runs import WandbRuns
from orchestrator.run.trackers.webhook import Webhook
from orchestrator.spec.search_space import Search
from orchestrator.spec.tracking import Track
from orchestrator.store.event_types import RunEnded, TrialEnded, TrialReopened
from orchestrator.store.ledger import State, Tail, apply

_POLL_S = 0.5


@dataclass
class Tracker:
    """The background process, as the driver sees it."""

    process: subprocess.Popen[bytes] | None
    run: Path

    def finish(self, timeout_s: float) -> str | None:
        """Wait until everything is mirrored; return what is missing, or None."""
        if self.process is None:
            return None
        details = f"details in {self.run / 'track.log'}"
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"stopped after {timeout_s:.0f} s before everything was mirrored; {details}"
        if code == 0:
            return None
        return f"failed, study.log, W&B or MLflow may lack trials; {details}"


def start(run: Path) -> Tracker:
    """Start the mirror of a run; it reads resolved.yaml itself."""
    with (run / "track.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run.tracking", str(run), str(os.getpid())],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Tracker(process, run)


def require(track: Track) -> None:
    """Refuse a tracker whose package is missing, before anything runs.

    Raises:
        UserError: it cannot be imported.
    """
    if track.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "track.mlflow: the package mlflow-skinny was required, found none; "
            "pip install 'robust-vote[mlflow]', or remove track.mlflow"
        )


def next_steps(run: Path, track: Track) -> list[str]:
    """Return the commands that show what the mirror has left in the folder of a run."""
    steps = []
    if track.wandb is not None and track.wandb.mode == "offline":
        steps.append(f"W&B: {wandb_runs.sync_command(run)}")
    if track.mlflow is not None and track.mlflow.uri is None:
        uri = mlflow_runs.tracking_uri(run, track.mlflow)
        steps.append(f"MLflow: mlflow ui --backend-store-uri {uri}")
    return steps


@dataclass(frozen=True)
class _Line:
    """Trackers that are served one after the other, by a thread of their own."""

    sinks: Callable[[], list[Sink]]
    memory: Path | None = None  # file with the names of the trials that they have; None: begin anew


def _lines(run: Path, spec: Mapping[str, Any]) -> list[_Line]:
    """Return the trackers that a spec asks for; a slow service holds up nothing else."""
    track = Track.model_validate_json(json.dumps(spec.get("track") or {}))
    search = Search(trials=1)
    if spec.get("search"):
        search = Search.model_validate_json(json.dumps(spec["search"]))

    def local() -> list[Sink]:
        board: list[Sink] = [TensorBoard(run)] if track.tensorboard else []
        return [Journal(run, search), *board]

    lines = [_Line(local)]
    wandb = track.wandb
    if wandb is not None and wandb.mode != "disabled":
        lines.append(_Line(lambda: [WandbRuns(run, wandb)], run / "tracked.json"))
    mlflow = track.mlflow
    if mlflow is not None:
        lines.append(_Line(lambda: [MlflowRuns(run, mlflow)], run / "tracked_mlflow.json"))
    if track.notify is not None:
        lines.append(_Line(lambda: [Webhook(run)]))
    return lines


def main(run: Path, parent: int) -> int:
    """Mirror a run until it ends or its driver is gone; return 1 if a part of the mirror failed."""
    spec = YAML(typ="safe", pure=True).load((run / "resolved.yaml").read_text(encoding="utf-8"))
    broken: list[Exception] = []

    def follow(line: _Line) -> None:
        try:
            _follow(run, line, parent)
        except Exception as error:  # noqa: BLE001 - such as a full disk; report it to main
            traceback.print_exc()
            broken.append(error)

    threads = [threading.Thread(target=follow, args=(line,)) for line in _lines(run, spec)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return int(bool(broken))


def _follow(run: Path, line: _Line, parent: int) -> None:
    """Hand each ended trial to the trackers once, then how the driver ended."""
    memory = line.memory
    seen: set[str] = set(json.loads(memory.read_text()) if memory and memory.exists() else [])
    began = time.time()
    state = State()
    reader = Tail(run / "events.jsonl")
    sinks = line.sinks()
    while True:
        orphan = os.getppid() != parent
        events = reader.read()
        for event in events:
            apply(state, event)
            if isinstance(event, TrialReopened):
                seen.discard(event.trial_id)
            if isinstance(event, TrialEnded) and event.trial_id not in seen:
                for sink in sinks:
                    sink.take(state.trials[event.trial_id])
                seen.add(event.trial_id)
                if memory:
                    memory.write_text(json.dumps(sorted(seen)))
        last = events[-1] if events else None
        has_ended = isinstance(last, RunEnded) and last.time > began - 1
        if has_ended or orphan:
            if not has_ended:
                state.state = "INTERRUPTED"  # its driver was killed
            for sink in sinks:
                sink.end(state)
            return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    # told by the driver, which may have ended before the imports above had
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
