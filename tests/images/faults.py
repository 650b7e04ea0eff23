"""Inject faults into a cluster of containers and write down what held: a line of JSON for each.

    python -m tests.images.faults [--only WORD ...] [--times 3] [--folder build/images] [--out FILE]
    python -m tests.images.faults --table --out FILE           # the table of what was injected so far

The cluster is that of `tests.images.check`: the image of docker/Dockerfile, a head, two workers, a client,
a token, photos and store on an S3 server. Each injection has a fresh store. While a run is at a stage, the
fault strikes; nodes that have ended are started again, as an operator of clusters does, and where the
client's command fails, it is given again. At the end the tables must equal, by content, those of a run that
nobody disturbed, no finished training or shard may have been made again, and no process may be left.
A call goes on where an earlier one ended: what stands in FILE is not injected again.
Exits 1 if something does not hold.
"""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from orchestrator.store.event_types import (
    EpochReported,
    ShardWritten,
    TrialEnded,
    TrialReopened,
)
from orchestrator.store.ledger import read
from tests.faults.rig import SPEC as WORK
from tests.faults.rig import differences, git_hash, tables
from tests.images.check import PHOTOS, make_photos, on_bucket
from tests.images.cluster import BUCKET, Cluster, servers
from tests.images.containers import Network
from tests.images.fault_kinds import KINDS
from tests.images.image import PROGRAMS, Storage, require_programs

_SPEC = "/home/runner/mine/faults.yaml"
_END_S = 1200.0  # of one submit
_MOST_SUBMITS = 6
_LEAVE_S = 40.0
_POLL_S = 0.1


class Bench:
    """The servers, and one cluster at a time."""

    def __init__(self, image, network, folder, s3, redis):
        self.image, self.network, self.folder = image, network, folder
        self.s3, self.redis = s3, redis
        self._cluster = None

    def cluster(self, *, needs_redis):
        """Return a cluster with or without fault tolerance whose nodes are all alive."""
        redis = self.redis if needs_redis else None
        if self._cluster is not None and self._cluster.redis is not redis:
            self.close()
        if self._cluster is None:
            place = self.folder / "nodes"
            self._cluster = Cluster(self.image, self.network, place, self.s3, redis=redis)
        self._cluster.look_after()
        self._cluster.wait_for_nodes()
        return self._cluster

    def close(self):
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def submit(cluster, store):
    """Start the client's command, with a spec in its own home."""
    words = ["submit", _SPEC, "--address", cluster.url, "--store", f"s3://{BUCKET}/{store}"]
    return cluster.client(*words, *on_bucket(), files={_SPEC: WORK})


def run(cluster, store, kind=None, moment=None):
    """Submit until the run has succeeded, with one fault on the way; return what was seen."""
    codes = []
    said = []
    hit = None
    struck_at = None
    began = time.monotonic()
    while len(codes) < _MOST_SUBMITS and (not codes or codes[-1] != 0):
        client = submit(cluster, store)
        until = time.monotonic() + _END_S
        while not client.has_ended and time.monotonic() < until:
            if kind is not None and hit is None:
                hit = kind.strike(cluster, moment)
                struck_at = time.monotonic() if hit else None
            if hit is not None:
                cluster.look_after()
            time.sleep(_POLL_S)
        code = client.wait(0.1)
        text = client.printed().strip()
        client.kill()
        codes.append(code)
        if code != 0:
            said.append(text.splitlines()[-1] if text else "")
            cluster.look_after()
            cluster.wait_for_nodes()
    return {
        "hit": hit,
        "exit_codes": codes,
        "said": said,
        "wall_s": round(time.monotonic() - began),
        "after_s": round(time.monotonic() - struck_at) if struck_at else None,
    }


def bring(s3, store, place):
    """Bring the one run of a store into a folder and return that."""
    shutil.rmtree(place, ignore_errors=True)
    s3.download(f"{store}/runs", place)
    (there,) = [path.parent for path in place.glob("*/summary.json")]
    return there


def made_again(run_folder):
    """Return what the ledger has twice: trainings that ended twice, shards, and epochs that were lost."""
    ends = Counter()
    shards = Counter()
    epochs = Counter()
    n_reopened = 0
    for event in read(run_folder / "events.jsonl"):
        if isinstance(event, TrialEnded):
            ends[event.trial_id] += 1
        elif isinstance(event, TrialReopened):
            ends[event.trial_id] -= 1
            n_reopened += 1
        elif isinstance(event, EpochReported):
            epochs[event.trial_id, event.epoch] += 1
        elif isinstance(event, ShardWritten):
            shards[event.key] += 1
    return {
        "trainings": len(ends),
        "trainings_again": sum(n - 1 for n in ends.values() if n > 1),
        "shards_again": sum(n - 1 for n in shards.values() if n > 1),
        "trials_reopened": n_reopened,
        "epochs_again": sum(n - 1 for n in epochs.values() if n > 1),
    }


def versions_of(s3, store):
    """Return artifact -> content of its manifest, which holds when it was made."""
    there = {}
    for name in s3.names(f"{store}/"):
        if name.endswith("/manifest.json"):
            there[name.removeprefix(f"{store}/")] = s3.get(name)
    return there


def left_behind(cluster):
    """Return the titles of the run's processes that are still there some seconds after its end."""
    words = ("ray::TrialWorker", "ray::PrepWorker", "ray::_QueueActor", "-m orchestrator", "trial ")
    until = time.monotonic() + _LEAVE_S
    while True:
        titles = []
        for node, process in cluster.find(*words):
            with contextlib.suppress(Exception):
                titles.append(f"{node.name}: {' '.join(process.cmdline())[:100]}")
        if not titles or time.monotonic() > until:
            return titles
        time.sleep(0.5)


def inject(bench, kind, number, calm, place):
    """Do one injection and return its row."""
    moment = kind.moments[(number - 1) % len(kind.moments)]
    cluster = bench.cluster(needs_redis=kind.needs_redis)
    store = f"{place.name}-{number}-{int(time.time())}"
    seen = run(cluster, store, kind, moment)
    row = {"kind": kind.name, "number": number, "moment": moment, **seen, "commit": git_hash()}
    row["tables_differ"] = None
    if seen["exit_codes"][-1] == 0:
        folder = bring(bench.s3, store, place / "run")
        row |= made_again(folder)
        row["tables_differ"] = differences(calm, folder)
        row["artifacts"] = len(versions_of(bench.s3, store))
    row["left"] = left_behind(cluster)
    row["held"] = (
        row["hit"] is not None
        and row["tables_differ"] == []
        and not row["trainings_again"]
        and not row["shards_again"]
        and not row["left"]
    )
    return row


def calm_tables(bench, folder):
    """Return the tables of a run that nobody disturbed."""
    cluster = bench.cluster(needs_redis=False)
    store = f"calm-{int(time.time())}"
    seen = run(cluster, store)
    if seen["exit_codes"] != [0]:
        raise SystemExit(f"a run that nobody disturbed failed: {seen}")
    print(f"undisturbed: {seen['wall_s']} s", flush=True)
    place = bring(bench.s3, store, folder / "calm")
    found = made_again(place)
    print(f"undisturbed: {found}", flush=True)
    return tables(place)


def rows_of(out):
    lines = out.read_text().splitlines() if out.exists() else []
    return [json.loads(line) for line in lines]


def markdown(rows):
    """Return the table of all injections, a line for each kind."""
    lines = [
        "| fault | injected | by itself | submitted again | epochs again | done twice | tables equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind.name]
        if not mine:
            continue
        alone = sum(row["exit_codes"] == [0] for row in mine)
        again = sum(len(row["exit_codes"]) > 1 and row["exit_codes"][-1] == 0 for row in mine)
        epochs = sum(row.get("epochs_again", 0) for row in mine)
        twice = sum(row.get("trainings_again", 0) + row.get("shards_again", 0) for row in mine)
        equal = sum(row["tables_differ"] == [] for row in mine)
        lines.append(
            f"| {kind.name} | {len(mine)} | {alone} | {again} | {epochs} | {twice} | {equal} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="faults whose names contain a word")
    parser.add_argument(
        "--times", type=int, default=3, help="injections of each kind, all together"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    parser.add_argument("--out", type=Path, default=Path("build/images/faults.jsonl"))
    parser.add_argument("--table", action="store_true", help="inject nothing, print the table")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its blocks end, and what they started
    if not args.table:
        inject_all(args)
    rows = rows_of(args.out)
    print(markdown(rows))
    for row in rows:
        if not row["held"]:
            print(json.dumps(row))
    sys.exit(0 if rows and all(row["held"] for row in rows) else 1)


def inject_all(args):
    """Inject what is missing in the file."""
    require_programs({**PROGRAMS, "ip": "iproute2", "redis-server": "redis-server"})
    folder = args.folder.resolve()
    image = Storage(folder).lay_out("cpu")
    photos = make_photos(folder)
    n_done = Counter(row["kind"] for row in rows_of(args.out))
    network = Network()
    try:
        with servers(folder / "servers", needs_redis=True) as (s3, redis):
            s3.upload(photos, PHOTOS)
            bench = Bench(image, network, folder, s3, redis)
            try:
                calm = calm_tables(bench, folder)
                for kind in KINDS:
                    if args.only and not any(word in kind.name for word in args.only):
                        continue
                    for number in range(n_done[kind.name] + 1, args.times + 1):
                        row = inject(bench, kind, number, calm, folder / "disturbed")
                        with args.out.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                        print(json.dumps(row), flush=True)
            finally:
                bench.close()
    finally:
        network.close()


if __name__ == "__main__":
    main()
