"""A small real run that is disturbed on purpose, and what has to hold afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from orchestrator.store.event_types import (
    DriverStarted,
    EpochReported,
    ShardWritten,
    StageEnded,
    TrialEnded,
    TrialReopened,
)
from orchestrator.store.ledger import read

ROOT = Path(__file__).resolve().parents[2]
MARK = "FAULTS_MARK"  # in the environment of every process of a run
LEAVE_S = 20.0  # until no process of an ended driver is left
END_S = 600.0  # until an undisturbed submit has ended
SPEC = """\
name: faults
seed: 7
data:
  source: {layout: profile_folders, root: ../data/sample/train, table: train.csv}
  test: {root: ../data/sample/eval, table: info.csv, id: ImageID, label: ans}
  labels:
    mask: {from: stem, classes: {wear: "mask*", incorrect: "incorrect_mask", not_wear: "normal"}}
    gender: {from: column, column: gender, classes: [male, female]}
    age: {from: column, column: age, bins: [30, 60]}
  group: id
  split: {strategy: balanced_profile, val: 0.25, seed: 0}
prep: {steps: [{name: crop_face, detector: fastmtcnn}, {name: resize, size: 32}]}
train:
  model: {backbone: test_efficientnet, pretrained: false, head: single}
  optimizer: {name: adam, lr: 1.0e-3}
  duration: 3 epochs
variants: {a: {}}
search: {trials: 3, sampler: random, scheduler: none, space: {train.optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}}}
confirm: {finalists: 2, seeds: [0], folds: 2}
select: {policy: robust, members: 2}
track: {wandb: null, tensorboard: false}
"""
INSIDE = """\
import os, signal, subprocess, time

if "FAULTS_CLOCK_S" in os.environ:
    real, ahead_s = time.time, float(os.environ["FAULTS_CLOCK_S"])
    time.time = lambda: real() + ahead_s


def leave(number, frame):
    os._exit(7)


def leave_a_child(number, frame):
    subprocess.Popen(["sleep", "900"], start_new_session=True)
    os._exit(8)


signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGUSR2, leave_a_child)
"""
"""Is imported by each process of a run when it starts: two signals run code inside a training, the clock is wrong."""
_VOLATILE = {"checkpoint", "wall_s", "epochs"}  # beside columns of times; kept apart in `tables`
_KINDS = {
    "trial worker": "ray::TrialWorker",
    "preparation worker": "ray::PrepWorker",
    "vote task": "ray::vote",
}


@dataclass
class Rig:
    """A folder with data, a spec and a store, in which runs are disturbed."""

    root: Path
    n_people: int = 36
    size: tuple[int, int] = (64, 80)
    mark: str = field(default_factory=lambda: os.urandom(8).hex())
    before: tuple[str, ...] = ()  # words before the command
    environment: dict[str, str] = field(default_factory=dict)  # of the next drivers
    store_name: str = "store"

    def __post_init__(self):
        from data_prep.sample.portrait_data_set import build

        (self.root / "data").mkdir(parents=True)
        build(self.root / "data/sample", self.n_people, size=self.size, jobs=2)
        (self.root / "experiments").mkdir()
        self.spec.write_text(SPEC)
        (self.root / "inside").mkdir()
        (self.root / "inside/sitecustomize.py").write_text(INSIDE)

    @property
    def spec(self):
        return self.root / "experiments/spec.yaml"

    @property
    def store(self):
        return self.root / self.store_name

    @property
    def run(self):
        """Return the run's folder; None before there is one."""
        runs = sorted((self.store / "runs").glob("*/events.jsonl"))
        return runs[0].parent if runs else None

    def events(self, *kinds):
        path = self.run / "events.jsonl" if self.run else None
        events = read(path) if path else []
        return [event for event in events if not kinds or isinstance(event, kinds)]

    def clear(self, keep=()):
        """Remove the run and what is not kept of the store, so that a fresh run begins."""
        for folder in self.store.iterdir() if self.store.is_dir() else []:
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def command(self):
        return [*self.before, sys.executable, "-m", "orchestrator", "submit", str(self.spec)]

    def start(self):
        return Submit(self)

    def finished(self):
        """Return artifact -> identity of its manifest; an artifact that is made again differs."""
        made = {}
        for manifest in self.store.glob("*/*/manifest.json"):
            facts = manifest.stat()
            name = manifest.parent.relative_to(self.store).as_posix()
            made[name] = (facts.st_ino, facts.st_mtime_ns)
        return made


class Submit:
    """A driver in a process group of its own, and all processes that it has been seen to have."""

    def __init__(self, rig):
        self.rig = rig
        self.log = (rig.root / "driver.err").open("ab")
        self.log_begins = self.log.tell()
        self.driver = psutil.Popen(
            ["env", "--default-signal=INT", *rig.command()],
            cwd=rig.root,
            env={
                **os.environ,
                "PYTHONPATH": f"{rig.root / 'inside'}{os.pathsep}{ROOT}",
                "ORCHESTRATOR_STORE": str(rig.store),
                "RAY_TMPDIR": ray_folder(rig),
                MARK: rig.mark,
                **rig.environment,
            },
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        self.began = time.monotonic()
        self.n_drivers_before = len(rig.events(DriverStarted))
        self.seen = {}  # pid -> process

    @property
    def has_ended(self):
        return self.driver.poll() is not None

    def told(self):
        """Return what this driver wrote."""
        return (self.rig.root / "driver.err").read_bytes()[self.log_begins :]

    def stages(self):
        """Return the stages that this driver has ended, in their order."""
        n_drivers = 0
        names = []
        for event in self.rig.events(DriverStarted, StageEnded):
            if isinstance(event, DriverStarted):
                n_drivers += 1
            elif n_drivers > self.n_drivers_before:
                names.append(event.stage)
        return names

    def look(self):
        """Return kind -> processes, and remember them."""
        kinds = {}
        try:
            processes = self.driver.children(recursive=True)
        except psutil.Error:
            processes = []
        server = None
        for process in processes:
            self.seen.setdefault(process.pid, process)
            try:
                kind = kind_of(" ".join(process.cmdline()))
                parent = process.ppid()
            except psutil.Error:
                continue
            if kind == "fork server" and parent == self.driver.pid:
                server = process.pid
            kinds.setdefault(kind, []).append((process, parent))
        children = []
        for kind, found in kinds.items():
            children += [process for process, parent in found if parent == server]
            kinds[kind] = [process for process, parent in found if parent != server]
        return {**kinds, "child": children if server else []}

    def wait_for(self, kind, is_over=lambda: False, limit_s=END_S):
        """Return a process of a kind once there is one; None if the driver ends or it is over first."""
        until = time.monotonic() + limit_s
        while not self.has_ended and time.monotonic() < until and not is_over():
            if there := self.look().get(kind):
                return there[0]
            time.sleep(0.03)
        return None

    def wait_until(self, is_ready, limit_s=END_S):
        """Wait until something holds; return False if the driver ends first."""
        until = time.monotonic() + limit_s
        while not self.has_ended and time.monotonic() < until:
            if is_ready():
                return True
            self.look()
            time.sleep(0.05)
        return False

    def end(self, limit_s=END_S):
        """Wait for the driver's end and return its exit code; None if it does not end."""
        until = time.monotonic() + limit_s
        while not self.has_ended and time.monotonic() < until:
            self.look()
            time.sleep(0.1)
        self.log.flush()
        return self.driver.returncode if self.has_ended else None

    def left_behind(self, limit_s=LEAVE_S):
        """Return the processes that are still there some seconds after the driver's end."""
        until = time.monotonic() + limit_s
        while True:
            left = [process for process in self.seen.values() if is_alive(process)]
            left += [p for p in marked(self.rig.mark) if p.pid not in self.seen and is_alive(p)]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.2)

    def kill_all(self):
        """End whatever is left, so that a hang costs no later test anything."""
        for process in [self.driver, *self.seen.values(), *marked(self.rig.mark)]:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.driver.wait(20)
        self.log.close()


def ray_folder(rig):
    """Return a short path for Ray's sessions: names of sockets have at most 107 characters."""
    link = Path(f"/tmp/f{rig.mark[:6]}")
    link.mkdir(exist_ok=True)
    return str(link)


def kind_of(text):
    for kind, start in _KINDS.items():
        if text.startswith(start):
            return kind
    for word, kind in (
        ("gcs_server", "GCS"),
        ("dashboard/dashboard.py", "dashboard"),
        ("raylet/raylet ", "raylet"),
        ("orchestrator.run.tracking", "tracking process"),
        ("orchestrator.cluster.fork_server", "fork server"),
        ("fork server of", "fork server"),
    ):
        if word in text:
            return kind
    return "other"


def is_alive(process):
    """Return False for what has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(mark):
    """Return the processes whose environment has the mark of a rig."""
    wanted = f"{MARK}={mark}".encode()
    there = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if wanted in (folder / "environ").read_bytes():
                there.append(psutil.Process(int(folder.name)))
        except (OSError, psutil.Error):
            continue
    return there


def tables(run):
    """Return what a run found out, by file: all that must not depend on how often it was disturbed."""
    found = {}
    for path in sorted(run.glob("*.parquet")):
        table = pq.read_table(path)
        kept = [
            name
            for name in table.column_names
            if not name.endswith("_s") and name not in _VOLATILE | {"error"}
        ]
        rows = table.select(kept).to_pylist()
        found[path.name] = sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)
    for name in ("selection.json", "hypotheses.json"):
        found[name] = json.loads((run / name).read_text())
    found["submission.csv"] = (run / "submission.csv").read_text()
    return found


def differences(calm, run, *, numbers=True):
    """Return the names of the tables that differ from those of the undisturbed run.

    Args:
        calm: tables of the undisturbed run.
        run: the folder of the other one.
        numbers: False: of the files that have rows, only how many they have is compared.
    """
    there = tables(run)
    if not numbers:
        calm, there = _n_rows(calm), _n_rows(there)
    return sorted(name for name in calm.keys() | there.keys() if calm.get(name) != there.get(name))


def _n_rows(contents):
    counts = {name: len(rows) for name, rows in contents.items() if isinstance(rows, list)}
    return counts | {"submission.csv": contents["submission.csv"].count("\n")}


def done_twice(rig):
    """Return what the ledger has twice: ends of trials that were not opened again, epochs, shards."""
    names = Counter()
    for event in rig.events(TrialEnded, TrialReopened, EpochReported, ShardWritten):
        if isinstance(event, TrialEnded):
            names[f"end of {event.trial_id}"] += 1
        elif isinstance(event, TrialReopened):
            names[f"end of {event.trial_id}"] -= 1
        elif isinstance(event, EpochReported):
            names[f"{event.trial_id}, epoch {event.epoch}"] += 1
        else:
            names[f"shard {event.key[:8]}"] += 1
    return sorted(name for name, n in names.items() if n > 1)


def send(process, number):
    """Send a signal; return False if the process has gone."""
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def interrupt(submit):
    """Do what Ctrl-C in a terminal does: signal the whole process group."""
    os.killpg(submit.driver.pid, signal.SIGINT)


def git_hash():
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()
