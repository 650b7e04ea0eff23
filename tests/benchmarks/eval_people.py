"""Write the person of every test photo beside the built data, so that a spec can name test groups.

    python -m tests.benchmarks.eval_people DATA BUILD.PY

DATA is a folder that the build script wrote with seed 0. `eval/people.csv` is its `info.csv` with a column `person`; the
people are found by the names that the build script gives.
"""

import argparse
import csv
from pathlib import Path

from tests.benchmarks.reference import people_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("script", type=Path)
    args = parser.parse_args()
    owners = people_of(args.script)
    with (args.data / "eval" / "info.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    with (args.data / "eval" / "people.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["ImageID", "person", "ans"])
        for row in rows:
            writer.writerow([row["ImageID"], owners[row["ImageID"]], row["ans"]])
