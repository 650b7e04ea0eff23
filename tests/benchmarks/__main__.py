"""`make bench`: each benchmark against what a user would do instead, as a ratio, in one run.

A benchmark is a function that returns (unit, ours, baseline, n, note); it is named by the dict below.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import (
    augmentation,
    board,
    catalog,
    ledger,
    preparation,
    quickstart,
    search,
    training,
    verdicts,
    voting,
)

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 7


def seconds(command):
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def check_latency():
    """Time `schema` (reads the whole of the spec's models) beside an interpreter that imports click and pydantic.

    Fair, because the command line cannot be faster than its two libraries; the ratio is what our own imports add.
    """
    ours, baseline = [], []
    for _ in range(REPEATS):  # interleaved, so that a slow moment hits both
        ours.append(seconds([sys.executable, "-m", "orchestrator", "schema"]))
        baseline.append(seconds([sys.executable, "-c", "import click, pydantic, ruamel.yaml"]))
    return (
        "s",
        statistics.median(ours),
        statistics.median(baseline),
        REPEATS,
        "a fresh process each",
    )


BENCHMARKS = {
    "check_latency": check_latency,
    "quickstart": quickstart.quickstart,
    "loop_vs_bare": training.loop_vs_bare,
    "loop_vs_timm": training.loop_vs_timm,
    "reader_vs_imagefolder_original": training.reader_vs_imagefolder_original,
    "reader_vs_imagefolder_prepared": training.reader_vs_imagefolder_prepared,
    "reader_vs_albumentations": training.reader_vs_albumentations,
    "rows_vs_copy": training.rows_vs_copy,
    "rows_memory": training.rows_memory,
    "kept_memory": training.kept_memory,
    "bank_vs_backbone": training.bank_vs_backbone,
    "augment_contest": augmentation.augment_contest,
    "augment_basic": augmentation.augment_basic,
    "augment_strong": augmentation.augment_strong,
    "named_policies": augmentation.named_policies,
    "loop_beside_augmentation": augmentation.loop_beside_augmentation,
    "prepare_vs_loop": preparation.prepare_vs_loop,
    "prepare_vs_bare": preparation.prepare_vs_bare,
    "prepare_two_workers": preparation.prepare_two_workers,
    "shards_read": preparation.shards_read,
    "vote_million": voting.vote_million,
    "verdict_speed": verdicts.verdict_speed,
    "correction_speed": verdicts.correction_speed,
    "catalog_100k": catalog.catalog_100k,
    "trial_fixed_cost": search.trial_fixed_cost,
    "trial_wall_vs_bare": search.trial_wall_vs_bare,
    "board": board.board_50k,
    "tune_1s": search.tune_1s,
    "driver_10k": search.driver_10k,
    "ledger_100k": ledger.ledger_100k,
    "search_vs_stock": search.search_vs_stock,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench.json")
    args = parser.parse_args()
    rows = []
    for name, benchmark in BENCHMARKS.items():
        if args.only in (None, name):
            unit, ours, baseline, n, note = benchmark()
            rows.append(
                {
                    "name": name,
                    "unit": unit,
                    "ours": ours,
                    "baseline": baseline,
                    "ratio": ours / baseline,
                    "n": n,
                    "note": note,
                }
            )
            print(
                f"{name:<28} {ours:10.4g} {baseline:10.4g} {unit:<6} ratio {ours / baseline:8.3f}  n {n}  {note}"
            )
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
