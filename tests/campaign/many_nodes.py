"""Sleeping trials on many nodes of this machine: what the driver needs, and where it stops following.

    python -m tests.campaign.many_nodes --nodes 25 --slots 4 --trials 1250 --trial-s 20

Each node is a raylet of its own with so many CPUs; the real trial controller, ledger, Ray Tune and
workers; only the trainings are toys that sleep and report once. Printed as one line of JSON: wall over
ideal (trials x seconds / slots), the driver's processor time and memory, and what the machine's memory
lost to all of it. A node costs a raylet, two agents and a process for each slot, so memory is the limit.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from functools import partial
from pathlib import Path


def sleep_and_report(spec, report, *, seconds):
    """Sleep, then report."""
    time.sleep(seconds)
    report(1, {"val_macro_f1": 0.5})


def available_mb():
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) / 1024


class Watch:
    """Looks at the machine's memory and at the driver's processor time every five seconds."""

    def __init__(self):
        self.least_mb = available_mb()
        self.cpu_s = []  # (seconds, processor time)
        self._closed = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while not self._closed.wait(5):
            self.least_mb = min(self.least_mb, available_mb())
            self.cpu_s.append((time.monotonic(), time.process_time()))

    def busiest(self):
        """Return the largest share of a core that the driver used between two looks."""
        pairs = zip(self.cpu_s, self.cpu_s[1:], strict=False)
        return max(((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs), default=0.0)

    def close(self):
        self._closed.set()


def measure(n_nodes, n_slots, n_trials, trial_s):
    from orchestrator.cluster.connection import connect, prepare_environment

    prepare_environment(None, insecure=False)  # Ray reads it when it is imported
    from ray.cluster_utils import Cluster

    from tests.benchmarks.search import ours
    from tests.campaign import many_nodes  # a worker finds the body there, not in __main__

    before_mb = available_mb()
    watch = Watch()
    common = {"num_cpus": n_slots, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 0})
    try:
        for _ in range(n_nodes):
            cluster.add_node(wait=False, **common)
        cluster.wait_for_nodes(timeout=300)
        nodes_mb = before_mb - available_mb()
        with tempfile.TemporaryDirectory() as place, connect(cluster.address):
            cpu_s = time.process_time()
            at_once = n_nodes * n_slots
            body = partial(many_nodes.sleep_and_report, seconds=trial_s)
            folder = Path(place) / "run"
            _, wall_s = ours(folder, body, n_trials, modules=(), n_epochs=1, at_once=at_once)
            n_ended = (folder / "events.jsonl").read_bytes().count(b'"trial_ended"')
            cpu_s = time.process_time() - cpu_s
    finally:
        watch.close()
        cluster.shutdown()
    ideal_s = n_trials * trial_s / at_once
    return {
        "nodes": n_nodes,
        "slots": at_once,
        "trials": n_ended,
        "trial_s": trial_s,
        "wall_s": round(wall_s, 1),
        "over_ideal": round(wall_s / ideal_s, 3),
        "driver_cpu_s": round(cpu_s, 1),
        "driver_cpu_ms_per_trial": round(cpu_s / n_trials * 1000, 1),
        "driver_busiest": round(watch.busiest(), 2),
        "driver_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "nodes_mb": round(nodes_mb),
        "all_mb": round(before_mb - watch.least_mb),
        "load": round(os.getloadavg()[0], 1),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=25)
    parser.add_argument("--slots", type=int, default=4, help="CPUs that each node declares")
    parser.add_argument("--trials", type=int, default=1250)
    parser.add_argument("--trial-s", type=float, default=20.0)
    args = parser.parse_args()
    print(json.dumps(measure(args.nodes, args.slots, args.trials, args.trial_s)), flush=True)


if __name__ == "__main__":
    main()
