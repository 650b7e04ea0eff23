"""The mirror of a run: a background process that reads the ledger and writes to other trackers.

These are the Optuna journal, TensorBoard and W&B. The mirror cannot block the run or make it fail:
the driver starts it, waits a short time for it at the end, and continues without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from orchestrator.spec.search_space import Choice, Search
from orchestrator.store.events import RunEnded, TrialEnded, TrialReopened, objective
from orchestrator.store.ledger import State, Tail, TrialRecord, apply

_POLL_S = 0.5
_DONE = "tracked.json"


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
        return f"failed, study.log or W&B may lack trials; {details}"


def start(run: Path) -> Tracker:
    """Start the mirror of a run; it reads resolved.yaml itself."""
    with (run / "track.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.run.tracking", str(run)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Tracker(process, run)


def main(run: Path, parent: int) -> int:
    """Mirror a run until it ends or its driver is gone; return 1 if a part of the mirror failed."""
    spec = YAML(typ="safe", pure=True).load((run / "resolved.yaml").read_text(encoding="utf-8"))
    track = spec.get("track") or {}
    search = Search(trials=1)
    if spec.get("search"):
        search = Search.model_validate_json(json.dumps(spec["search"]))
    sinks: list[Callable[[TrialRecord], None]] = [Journal(run, search)]
    if track.get("tensorboard"):
        sinks.append(lambda trial: _tensorboard(run, trial))
    lines: list[tuple[list[Callable[[TrialRecord], None]], Path | None]] = [(sinks, None)]
    wandb = track.get("wandb")
    if wandb and wandb["mode"] != "disabled":
        # its own thread, so that a slow service holds up nothing else
        lines.append(([lambda trial: _wandb(run, wandb, trial)], run / _DONE))
    broken: list[Exception] = []

    def follow(sinks: list[Callable[[TrialRecord], None]], memory: Path | None) -> None:
        try:
            _follow(run, sinks, parent, memory)
        except Exception as error:  # noqa: BLE001 - such as a full disk; report it to main
            traceback.print_exc()
            broken.append(error)

    threads = [threading.Thread(target=follow, args=line) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return int(bool(broken))


def _follow(
    run: Path, sinks: list[Callable[[TrialRecord], None]], parent: int, memory: Path | None
) -> None:
    """Hand each ended trial to the sinks once; the file `memory` keeps their names."""
    seen: set[str] = set(json.loads(memory.read_text()) if memory and memory.exists() else [])
    began = time.time()
    state = State()
    reader = Tail(run / "events.jsonl")
    while True:
        orphan = os.getppid() != parent
        events = reader.read()
        for event in events:
            apply(state, event)
            if isinstance(event, TrialReopened):
                seen.discard(event.trial_id)
            if isinstance(event, TrialEnded) and event.trial_id not in seen:
                for sink in sinks:
                    sink(state.trials[event.trial_id])
                seen.add(event.trial_id)
                if memory:
                    memory.write_text(json.dumps(sorted(seen)))
        last = events[-1] if events else None
        if orphan or (isinstance(last, RunEnded) and last.time > began - 1):
            return
        time.sleep(_POLL_S)


class Journal:
    """study.log: an Optuna journal with one study per variant.

    Every driver writes it anew. Nothing reads it back.
    """

    def __init__(self, run: Path, search: Search) -> None:
        import optuna  # noqa: PLC0415
        from optuna.storages import JournalStorage  # noqa: PLC0415
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        (run / "study.log").unlink(missing_ok=True)
        self.run = run
        self.search = search
        self.storage = JournalStorage(JournalFileBackend(str(run / "study.log")))
        self.studies: dict[str, Any] = {}

    def __call__(self, trial: TrialRecord) -> None:
        import optuna  # noqa: PLC0415
        from optuna.trial import TrialState as State  # noqa: PLC0415

        if trial.phase != "search":
            return
        variant = trial.variant
        if variant not in self.studies:
            self.studies[variant] = optuna.create_study(
                storage=self.storage, study_name=f"{self.run.name}/{variant}", direction="maximize"
            )
        space = self.search.space_of(variant)
        params = {}
        distributions = {}
        for path, value in trial.params.items():
            if path in space:
                params[path], distributions[path] = _stored(space[path], value)
        scores = {epoch: objective(metrics) for epoch, metrics in trial.reports.items()}
        state = {"COMPLETE": State.COMPLETE, "PRUNED": State.PRUNED}.get(
            str(trial.status), State.FAIL
        )
        self.studies[variant].add_trial(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions=distributions,
                intermediate_values=scores,
                value=max(scores.values())
                if state in {State.COMPLETE, State.PRUNED} and scores
                else None,
                user_attrs={"trial_id": trial.trial_id},
            )
        )


def _stored(entry: Any, value: Any) -> tuple[Any, Any]:
    """Return a value and its distribution as Optuna stores them; lists and maps go as JSON."""
    from optuna import distributions as d  # noqa: PLC0415

    if isinstance(entry, Choice):
        return _plain(value), d.CategoricalDistribution([_plain(item) for item in entry.choice])
    if hasattr(entry, "int_"):
        return value, d.IntDistribution(*entry.int_, log=entry.log, step=entry.step or 1)
    return value, d.FloatDistribution(*entry.float_, log=entry.log, step=entry.step)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _tensorboard(run: Path, trial: TrialRecord) -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

    folder = run / "tensorboard" / trial.trial_id
    shutil.rmtree(folder, ignore_errors=True)  # a resumed run writes all of its trials again
    writer = EventFileWriter(str(folder))
    for epoch, metrics in sorted(trial.reports.items()):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        writer.add_event(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))
    writer.close()


def _wandb(run: Path, settings: dict[str, Any], trial: TrialRecord) -> None:
    """Write one W&B run. Nothing of the command line or the environment is sent."""
    import wandb  # noqa: PLC0415

    name = hashlib.sha256(f"{run.name}/{trial.trial_id}".encode()).hexdigest()[:16]
    config = {
        key: getattr(trial.started, key)
        for key in ("variant", "phase", "setting", "seed", "fold", "params", "train")
    }
    quiet = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        init_timeout=10,
    )
    try:
        record = wandb.init(
            project=settings["project"],
            mode=settings["mode"],
            id=name,
            name=trial.trial_id,
            group=run.name,
            config=config,
            dir=str(run),
            settings=quiet,
            reinit="finish_previous",
            resume="allow" if settings["mode"] == "online" else None,
        )
    except Exception as error:  # noqa: BLE001 - the service must not stop the mirror
        sys.stderr.write(
            f"W&B: {type(error).__name__}; going on offline, later: wandb sync {run / 'wandb'}\n"
        )
        settings["mode"] = "offline"
        _wandb(run, settings, trial)
        return
    for epoch, metrics in sorted(trial.reports.items()):
        record.log(metrics, step=epoch)
    record.summary["status"] = trial.status
    record.finish(exit_code=0 if trial.status != "FAILED" else 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), os.getppid()))
