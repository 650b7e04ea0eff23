"""Kill the driver of a study again and again, and compare what is left with a study that nobody disturbed.

    python -m tests.campaign.kills [--kills 30] [--trials 40]       # part of `make campaign`, about ten minutes

The drivers are real processes on a real local cluster (controller, sampler, ASHA, ledger, Tune), killed with SIGKILL at
random moments; only the trainings are toys, so that forty of them take seconds. Exits 1 if something does not hold.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from orchestrator.store.event_types import Repaired, TrialEnded
from orchestrator.store.ledger import Ledger, read, replay
from tests.orchestrator.search import toy
from tests.orchestrator.search.test_controller import outcome

EPOCH_S, LONGEST_S = 0.2, 1.6


def start(folder, address, trials, concurrent):
    options = [
        "--address",
        address,
        "--trials",
        trials,
        "--concurrent",
        concurrent,
        "--epoch-s",
        EPOCH_S,
    ]
    command = [sys.executable, "-m", "tests.orchestrator.search.toy", folder, *options]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def ends(folder):
    path = folder / "events.jsonl"
    return [e.trial_id for e in read(path) if isinstance(e, TrialEnded)] if path.exists() else []


def n_events(folder):
    path = folder / "events.jsonl"
    return len(read(path)) if path.exists() else 0


def campaign(folder, address, *, kills, trials, concurrent, rng):
    """Kill a study's driver `kills` times, let it end, and return what was found."""
    n_before, torn = [], 0
    for _ in range(kills):
        seen, driver = n_events(folder), start(folder, address, trials, concurrent)
        while n_events(folder) < seen + 3:  # run_resumed, phase_started and one more: it is at work
            if driver.poll() is not None:
                raise SystemExit(
                    f"a driver ended by itself with {driver.returncode}: choose more trials or fewer kills"
                )
            time.sleep(0.01)
        time.sleep(rng.uniform(0, LONGEST_S))
        driver.kill()
        driver.wait()
        n_before.append(set(ends(folder)))
    n_kills = len(n_before)
    last = start(folder, address, trials, concurrent)
    if last.wait(600):
        raise SystemExit(f"the last driver ended with {last.returncode}")
    ended = Counter(ends(folder))
    trained = Counter((folder / "trained.log").read_text().splitlines())
    with Ledger(folder) as ledger:
        torn = sum(isinstance(event, Repaired) for event in ledger.events)
        again = toy.make_controller(ledger, toy.make_studies(folder, {"trials": trials}), folder)
    state = replay(read(folder / "events.jsonl"))
    return {
        "kills": n_kills,
        "ended before the last start": len(n_before[-1]),
        "torn records repaired": torn,
        "trials": len(state.trials),
        "ended once": sum(n == 1 for n in ended.values()),
        "without an end": sum(trial.status is None for trial in state.trials.values()),
        "epochs trained": sum(trained.values()),
        "epochs trained again": sum(n - 1 for n in trained.values()),
        "trials with such epochs": len({line.split()[0] for line, n in trained.items() if n > 1}),
        "counts": dict(again.counts),
        "rungs": again.rungs["a"].scores,
    }


def finished_again(folder, address, trials):
    """Start a driver over a finished study and count what it trains."""
    before = (folder / "trained.log").read_text()
    start(folder, address, trials, 1).wait(600)
    return len((folder / "trained.log").read_text().splitlines()) - len(before.splitlines())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from orchestrator.cluster.connection import connect

    failures = []

    def check(what, holds):
        print(f"{'holds' if holds else 'FAILS'}: {what}", flush=True)
        failures.extend([] if holds else [what])

    with tempfile.TemporaryDirectory() as place, connect(None, num_cpus=2, dashboard=False):
        import ray  # it reads the token that connect has made ready
        from ray.tune import ExperimentAnalysis

        address = ray.get_runtime_context().gcs_address
        calm = Path(place) / "calm"
        start(calm, address, args.trials, 1).wait(900)
        with Ledger(calm) as ledger:
            undisturbed = toy.make_controller(
                ledger, toy.make_studies(calm, {"trials": args.trials}), calm
            )
        print(f"undisturbed: {dict(undisturbed.counts)}", flush=True)
        for concurrent in (1, 2):
            folder, rng = Path(place) / f"killed{concurrent}", random.Random(args.seed + concurrent)
            found = campaign(
                folder,
                address,
                kills=args.kills,
                trials=args.trials,
                concurrent=concurrent,
                rng=rng,
            )
            rungs = found.pop("rungs")
            print(f"max_concurrent {concurrent}: {found}", flush=True)
            check(
                f"{args.trials} trials, each ended once",
                found["ended once"] == found["trials"] == args.trials,
            )
            check("none is left without an end", found["without an end"] == 0)
            check(
                "a driver over the finished study trains nothing",
                finished_again(folder, address, args.trials) == 0,
            )
            names = ExperimentAnalysis(str(folder / "tune/search")).dataframe()["trial_id"]
            check("Tune's folder has all trials", sorted(names) == sorted(outcome(folder)))
            if concurrent == 1:
                check(
                    "settings, results and ends equal the undisturbed ones",
                    outcome(folder) == outcome(calm),
                )
                check("rungs equal the undisturbed ones", rungs == undisturbed.rungs["a"].scores)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
