"""Inject faults into real runs, and print and write what held.

    python -m tests.campaign.faults [--scale 1.0] [--only WORD ...] [--out FOLDER]   # part of `make campaign`
    python -m tests.campaign.faults --table --out FOLDER                             # what was injected there so far
    python -m tests.campaign.faults --inputs 10                                      # fuzz for ten minutes

Each fault is injected at random moments of a small but real submit: catalog, preparation with a
face detector, search, confirm, vote, report on a local Ray cluster. About twenty injections hit one
run; where its driver ends, the spec is submitted again. At the end its tables must equal, by
content, those of a run that nobody disturbed; nothing finished may be done again, and no process
may be left. What each run showed is appended to FOLDER/runs.jsonl, and the table counts all of that
file: several calls, with a seed each, add up. Exits 1 if something does not hold.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults import inputs, processes, surroundings
from tests.faults.rig import Rig, git_hash, ray_folder

NUMBERS = {
    "driver, kill -9": 30,
    "driver, SIGTERM": 8,
    "driver, Ctrl-C": 8,
    "driver, Ctrl-C twice": 6,
    "raylet, kill -9": 6,
    "GCS, kill -9": 6,
    "preparation worker, kill -9": 10,
    "trial worker, kill -9": 12,
    "child of a trial worker, kill -9": 12,
    "segmentation fault in a trial": 6,
    "os._exit in a trial": 4,
    "a trial dies and leaves a process": 4,
    "trial worker, SIGSTOP, then SIGCONT": 2,
    "vote task, kill -9": 6,
    "dashboard, kill -9": 3,
    "tracking process, kill -9": 3,
    "fork server, kill -9": 3,
    "disk full in prepare": 2,
    "disk full in search": 2,
    "disk full in confirm": 2,
    "disk full in vote": 1,
    "disk full in report": 1,
    "memory limit of a preparation worker": 2,
    "memory limit of a trial": 2,
    "memory limit of the vote": 1,
    "too many open files of a trial": 2,
    "too many open files of the driver": 1,
}
"""How often each is injected in the long form."""


def markdown(rows, facts):
    lines = ["| fault | injected | expected | held | lost |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.fault} | {row.injected} | {row.expected} | {row.held} | {row.lost} |")
    totals = [sum(getattr(row, name) for row in rows) for name in ("injected", "held", "lost")]
    lines.append(f"| all | {totals[0]} | | {totals[1]} | {totals[2]} |")
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in facts.items())])


class Notes:
    """What all runs of a folder showed: a line per run in `runs.jsonl`."""

    def __init__(self, out, seed):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.seed, self.commit = out / "runs.jsonl", seed, git_hash()
        self.began = time.monotonic()

    def append(self, rows):
        took = round(time.monotonic() - self.began)
        self.began += took
        facts = {"seed": self.seed, "commit": self.commit, "wall_s": took}
        with self.path.open("a") as file:
            file.write(json.dumps({**facts, "rows": processes.to_json(rows)}) + "\n")

    def table(self):
        """Return the rows of all runs, and facts of them."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        runs = [json.loads(line) for line in lines]
        total = processes.new_rows([*processes.faults(), *surroundings.faults()])
        for run in runs:
            processes.add(total, [processes.Row(**row) for row in run["rows"]])
        facts = {
            "runs": len(runs),
            "seeds": sorted({run["seed"] for run in runs}),
            "commits": sorted({run["commit"] for run in runs}),
            "wall_s": sum(run["wall_s"] for run in runs),
        }
        return list(total.values()), facts


def fuzz(minutes, seed):
    """Fuzz every reader in turns until the time is over; the first turn has this seed."""
    began, n_inputs = time.monotonic(), {}
    while time.monotonic() - began < 60 * minutes:
        for reader in inputs.readers():
            inputs.fuzz(reader, 500, seed=seed)
            n_inputs[reader.name] = n_inputs.get(reader.name, 0) + 500
        seed += 1
        print(f"{time.monotonic() - began:.0f} s: {n_inputs}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of injections")
    parser.add_argument("--only", nargs="*", default=[], help="faults whose names contain a word")
    parser.add_argument("--per-run", type=int, default=16, help="injections into one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause-s", type=float, default=60.0, help="of SIGSTOP")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="inject nothing later")
    parser.add_argument(
        "--surroundings", action="store_true", help="disk, memory and descriptors, not processes"
    )
    parser.add_argument("--table", action="store_true", help="inject nothing, print the table")
    parser.add_argument("--inputs", type=float, help="minutes; fuzz the readers instead")
    parser.add_argument("--out", type=Path, default=Path("build/faults"))
    args = parser.parse_args()
    if args.inputs:
        fuzz(args.inputs, args.seed)
        return
    began = time.monotonic()
    notes = Notes(args.out, args.seed)
    if not args.table:
        inject(args, notes, began)
    rows, facts = notes.table()
    print(markdown(rows, facts))
    for row in rows:
        for note in row.notes:
            print(f"{row.fault}: {note}")
    sys.exit(0 if all(row.held == row.injected and not row.lost for row in rows) else 1)


@contextmanager
def large_store(root):
    """Yield a rig whose store is an ordinary folder."""
    yield Rig(root)


def inject(args, notes, began):
    """Inject faults into fresh runs until all that are wanted were injected, or the time is over."""
    wanted = []
    kinds = surroundings.faults() if args.surroundings else processes.faults(args.pause_s)
    for fault in kinds:
        if not args.only or any(word in fault.name for word in args.only):
            wanted.append((fault, max(1, round(NUMBERS[fault.name] * args.scale))))
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    make = surroundings.small_store if args.surroundings else large_store
    say = partial(print, flush=True)
    with make(place / "rig") as rig:
        try:
            calm = processes.undisturbed(rig)
            say(f"undisturbed: {time.monotonic() - began:.0f} s")
            processes.inject_all(
                rig,
                calm,
                wanted,
                random.Random(args.seed),
                per_run=args.per_run,
                until=began + args.limit_s,
                say=say,
                save=notes.append,
            )
        finally:
            shutil.rmtree(ray_folder(rig), ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
