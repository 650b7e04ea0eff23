"""Share a store and a cluster: real submits on a disk and on a bucket, and runs of several users in the queue.

    python -m tests.campaign.sharing [--only WORD ...]   # part of `make campaign`, about ten minutes

- places: one spec trained in a folder and on a bucket; keys and tables are equal. Then either store is
  copied to the other kind of place by boto3, and a run of another name trains nothing there.
- shells: one spec submitted twice at once, in a folder and on a bucket, there with one cache and with two.
- priorities: five runs of two users on one cluster that runs one at a time, one of them urgent, one
  cancelled while it waits. Printed: in which order they trained, and what is left afterwards.

Exits 1 if something does not hold.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import psutil

from orchestrator.store.event_types import EpochReported, RunStarted, TrialStarted
from orchestrator.store.ledger import read
from tests.faults.rig import ROOT, Rig, is_alive, marked, ray_folder, tables
from tests.s3_server import S3Server, free_port

_END_S = 600.0
_RAY = Path(sys.executable).with_name("ray")


class Shop:
    """A spec, its photos, and a server of buckets."""

    def __init__(self, root):
        self.rig = Rig(root / "rig")
        self.s3 = S3Server()
        self._objects = boto3.client(
            "s3",
            endpoint_url=self.s3.direct,
            region_name="us-east-1",
            aws_access_key_id=self.s3.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.s3.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def submit(self, store, *words, cache="cache", environment=()):
        """Start a submit; its output goes to `submit.log`."""
        with (self.rig.root / "submit.log").open("ab") as log:
            return psutil.Popen(
                [
                    *(sys.executable, "-m", "orchestrator", "submit", str(self.rig.spec)),
                    *("--store", str(store), *words),
                ],
                cwd=self.rig.root,
                env=self.environment(cache) | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def environment(self, cache="cache"):
        return {
            **os.environ,
            **self.s3.environment,
            "PYTHONPATH": str(ROOT),
            "ORCHESTRATOR_CACHE": str(self.rig.root / cache),
            "RAY_TMPDIR": ray_folder(self.rig),
            "FAULTS_MARK": self.rig.mark,
        }

    def new_bucket(self):
        return f"s3://{self.s3.new_bucket()}/store"

    def _names(self, url):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = self._objects.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for each in page.get("Contents", ()):
                yield bucket, each["Key"], each["Key"].removeprefix(f"{prefix}/")

    def copy(self, url, folder):
        """Copy a bucket's objects to a folder."""
        for bucket, key, name in self._names(url):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._objects.download_file(bucket, key, str(folder / name))

    def send(self, folder, url):
        """Copy the files of a folder to a bucket."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        for path in folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self._objects.upload_file(str(path), bucket, f"{prefix}/{name}")

    def leases(self, url):
        """Return the leases on a bucket."""
        return [name for _, _, name in self._names(url) if name.endswith(".lease")]

    def close(self):
        for process in marked(self.rig.mark):
            process.kill()
        self.s3.close()


def end(process):
    try:
        return process.wait(_END_S)
    except psutil.TimeoutExpired:
        process.kill()
        return None


def artifacts(folder):
    """Return the artifacts of a store as kind/key."""
    found = folder.glob("*/*/manifest.json")
    return sorted(path.parent.relative_to(folder).as_posix() for path in found)


def runs(folder):
    return sorted(path.parent for path in (folder / "runs").glob("*/events.jsonl"))


def n_trained(folder, since=0.0):
    """Return how many trainings of a store have ended since a time; the ledger repeats those it reuses."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("trial/*/manifest.json")]
    return sum(manifest["finished"] >= since for manifest in manifests)


# -- a disk and a bucket --------------------------------------------------------------------------
def places(shop):
    root = shop.rig.root
    disk, url = root / "disk", shop.new_bucket()
    codes = [end(shop.submit(disk)), end(shop.submit(url))]
    wrong = [f"exit codes {codes}"] if codes != [0, 0] else []
    copied = root / "copied"
    shop.copy(url, copied)
    keys = artifacts(disk), artifacts(copied)
    if keys[0] != keys[1]:
        wrong.append(f"keys differ: {set(keys[0]) ^ set(keys[1])}")
    (on_disk,), (on_bucket,) = runs(disk), runs(copied)
    first, second = tables(on_disk), tables(on_bucket)
    differing = sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
    if differing:
        wrong.append(f"tables differ: {differing}")
    print(
        f"  {len(keys[0])} artifacts on each side, {len(first)} tables; trained "
        f"{n_trained(disk)} on disk, {n_trained(copied)} on the bucket"
    )
    other = shop.new_bucket()
    shop.send(disk, other)
    for place, name in ((copied, "again_on_disk"), (other, "again_on_bucket")):
        began = time.time()
        code = end(shop.submit(place, "--set", f"name={name}", cache="cache-of-another-machine"))
        seen = copied if place is copied else root / "seen"
        if place is other:
            shop.copy(other, seen)
        n = n_trained(seen, began)
        print(f"  copied, {name}: exit code {code}, {n} trainings")
        if code != 0 or n:
            wrong.append(f"{name}: exit code {code}, {n} trainings")
    return wrong


# -- two shells -----------------------------------------------------------------------------------
def shells(shop):
    wrong = []
    root = shop.rig.root
    for what, place, caches in (
        ("a folder", root / "two", ("cache", "cache")),
        ("a bucket", shop.new_bucket(), ("one", "one")),
        ("a bucket, from two machines", shop.new_bucket(), ("left", "right")),
    ):
        submits = [shop.submit(place, cache=cache) for cache in caches]
        codes = [end(submit) for submit in submits]
        folder = place
        if what != "a folder":
            folder = root / what.replace(" ", "-")
            shop.copy(place, folder)
        there = runs(folder)
        events = [list(read(run / "events.jsonl")) for run in there]
        starts = [sum(isinstance(event, RunStarted) for event in each) for each in events]
        reports = [
            (e.trial_id, e.epoch) for each in events for e in each if isinstance(e, EpochReported)
        ]
        n_twice = len(reports) - len(set(reports))
        print(f"  {what}: exit codes {codes}, begun {starts}, epochs twice {n_twice}")
        if codes != [0, 0] or starts != [1] or n_twice:
            wrong.append(what)
    return wrong


# -- priorities -----------------------------------------------------------------------------------
RUNS = (  # name, user, priority, trials; in the order in which they are submitted
    ("first", "ann", 0, 40),  # so that it still trains when the others have come
    ("second", "ann", 0, 3),
    ("given_up", "ann", 0, 3),
    ("other", "bob", 0, 3),
    ("urgent", "bob", 5, 3),
)
EXPECTED = ["first", "urgent", "first", "other", "second"]


def start_head(shop):
    """Start a cluster of one CPU; return its address and the environment of its clients."""
    token = shop.rig.root / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port = free_port()
    words = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    words += ["--object-store-memory=100000000", "--disable-usage-stats"]
    subprocess.run(
        [_RAY, "start", *words, "--include-dashboard=false"],
        env=shop.environment() | environment,
        check=True,
        capture_output=True,
    )
    return f"127.0.0.1:{port}", environment


def order_of_training(run_folders):
    """Return the names of runs in the order in which they started trials, each turn once."""
    started = sorted(
        (event.time, run.name.rpartition("-")[0])
        for run in run_folders
        for event in read(run / "events.jsonl")
        if isinstance(event, TrialStarted)
    )
    turns = []
    for _, name in started:
        if not turns or turns[-1] != name:
            turns.append(name)
    return turns


def ask(shop, environment, *words):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=shop.rig.root,
        env=shop.environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


_LEFT = """\
import json, sys
import ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], namespace="robust_vote", log_to_driver=False, logging_level="error")
groups = [each["state"] for each in placement_group_table().values() if each["state"] != "REMOVED"]
from ray._private.state import actors
alive = [each["ActorClassName"] for each in actors().values() if each["State"] != "DEAD"]
print(json.dumps({"actors": alive, "placement groups": groups}))
"""


def left(shop, address, environment):
    """Return what is alive on the cluster, asked by a client of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFT, address],
        env=shop.environment() | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def priorities(shop):
    store = shop.new_bucket()
    folder = shop.rig.root / "shared"
    address, environment = start_head(shop)
    submits = {}
    try:
        for seed, (name, user, priority, n_trials) in enumerate(RUNS):
            submits[name] = shop.submit(
                store,
                *("--address", address, "--max-runs", "1", "--set", f"name={name}"),
                *("--set", f"seed={seed}", "--set", f"resources.priority={priority}"),
                *("--set", f"search.trials={n_trials}"),
                environment=environment | {"ORCHESTRATOR_USER": user},
            )
            wait_for_start(shop, name, "trial" if name == "first" else "queue")
        code, text = ask(shop, environment, "runs", "--store", store)
        print("\n".join(f"  {line[:110]}" for line in text.splitlines()))
        (given_up,) = [run.name for run in cached_runs(shop) if run.name.startswith("given_up")]
        code, text = ask(shop, environment, "cancel", given_up, "--store", store)
        print(f"  cancel: exit code {code}, {text.strip().splitlines()[-1]}")
        codes = {name: end(submit) for name, submit in submits.items()}
        print(f"  exit codes: {codes}")
        shop.copy(store, folder)
        turns = order_of_training(runs(folder))
        print(f"  order of training: {turns}")
        remains = left(shop, address, environment)
        names = ("ray::TrialWorker", "ray::PrepWorker", "ray::_QueueActor", "-m orchestrator")
        remains["processes"] = processes_left(shop, names)
        remains["leases"] = shop.leases(store)
        print(f"  left: {remains}")
    finally:
        for process in marked(shop.rig.mark):
            process.kill()
    wrong = [f"left: {remains}"] if any(remains.values()) else []
    if turns != EXPECTED:
        wrong.append(f"order {turns}, expected {EXPECTED}")
    ended = {name: code for name, code in codes.items() if name != "given_up"}
    if set(ended.values()) != {0} or codes["given_up"] == 0:
        wrong.append(f"exit codes {codes}")
    return wrong


def cached_runs(shop):
    return [path.parent for path in shop.rig.root.glob("cache/buckets/*/runs/*/events.jsonl")]


def wait_for_start(shop, name, what):
    """Wait until a run has started a trial, or is in the queue."""
    until = time.monotonic() + _END_S
    while time.monotonic() < until:
        for run in cached_runs(shop):
            if run.name.startswith(f"{name}-"):
                events = read(run / "events.jsonl")
                if what == "trial" and any(isinstance(event, TrialStarted) for event in events):
                    return
                if what == "queue" and list(run.rglob("*pending*")):
                    return
        time.sleep(0.2)
    raise TimeoutError(f"{name} did not reach {what}")


def processes_left(shop, names):
    """Return the command lines of this cluster's processes that work for a run, some seconds later."""
    until = time.monotonic() + 30
    while True:
        lines = []
        for process in marked(shop.rig.mark):
            if is_alive(process):
                line = " ".join(process.cmdline())
                lines += [line[:80]] if any(name in line for name in names) else []
        if not lines or time.monotonic() > until:
            return lines
        time.sleep(0.5)


CASES = {"places": places, "shells": shells, "priorities": priorities}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain a word")
    args = parser.parse_args()
    failures = 0
    for name, case in CASES.items():
        if args.only and not any(word in name for word in args.only):
            continue
        place = Path(tempfile.mkdtemp(prefix="sharing-"))
        shop = Shop(place)
        began = time.monotonic()
        try:
            wrong = case(shop)
        finally:
            shop.close()
            shutil.rmtree(ray_folder(shop.rig), ignore_errors=True)
        failures += bool(wrong)
        print(f"{name}: {wrong or 'holds'}, {time.monotonic() - began:.0f} s", flush=True)
        if wrong:
            print(f"  {place} is kept")
        else:
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
