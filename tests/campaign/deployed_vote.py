"""Does the expected score of a deployed vote hold on people who trained nothing?

`python -m tests.campaign.deployed_vote --builder BUILD.PY [--draws 8] [--data data/deployed_vote]`
builds draws of the real portraits, submits experiments/verdicts/deployed_vote.yaml on each, and
prints expected and reached score. Draws and runs that are there already are used again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "experiments/verdicts/deployed_vote.yaml"
PEOPLE = ["--people", "240", "--size", "192x256"]  # 203 beside the builder's own test people


class Draw(NamedTuple):
    """What a run expected of its vote, and what the vote reached on the test people."""

    out_of_fold: float
    expected: float
    low: float
    high: float
    test: float
    is_inside: bool


def build(builder: Path, folder: Path, seed: int) -> None:
    """Build the photos of one draw, unless they are there."""
    if not (folder / "train/train.csv").is_file():
        command = [sys.executable, str(builder), "--out", str(folder), "--seed", str(seed)]
        subprocess.run([*command, *PEOPLE], check=True)


def submit(folder: Path, seed: int, store: Path) -> Path:
    """Run the spec on one draw; return the run's folder."""
    name = f"deployed_vote_{seed}"
    changes = [f"name={name}", f"data.source.root={folder / 'train'}"]
    options = [text for change in changes for text in ("--set", change)]
    command = [sys.executable, "-m", "orchestrator", "submit", str(SPEC), "--store", str(store)]
    subprocess.run([*command, *options], check=True, cwd=ROOT)
    return max((store / "runs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)


def read(run: Path) -> Draw:
    """Read the certificate of a run."""
    certificate = json.loads((run / "certificate.json").read_text())
    checkpoints = certificate["checkpoints"]
    return Draw(
        certificate["estimate"]["macro_f1"]["estimate"],
        checkpoints["estimate"],
        checkpoints["low"],
        checkpoints["high"],
        certificate["test"]["macro_f1"]["estimate"],
        certificate["gap"]["test_is_inside_the_interval"],
    )


def main() -> None:
    """Print one line per draw, then the mean error and how often the interval held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builder", type=Path, required=True, help="build.py of the portraits")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--data", type=Path, default=ROOT / "data/deployed_vote")
    parser.add_argument("--store", type=Path, default=ROOT / "runs-store")
    asked = parser.parse_args()
    draws = []
    for seed in range(asked.draws):
        folder = asked.data.resolve() / str(seed)
        build(asked.builder, folder, seed)
        draw = read(submit(folder, seed, asked.store.resolve()))
        print(
            f"draw {seed}: out of fold {draw.out_of_fold:.3f}, expected {draw.expected:.3f} "
            f"({draw.low:.3f} to {draw.high:.3f}), test {draw.test:.3f}, inside {draw.is_inside}",
            flush=True,
        )
        draws.append(draw)
    errors = np.array([draw.expected - draw.test for draw in draws])
    n_inside = sum(draw.is_inside for draw in draws)
    error = errors.std(ddof=1) / len(draws) ** 0.5
    print(
        f"inside in {n_inside} of {len(draws)}; expected minus test: mean {errors.mean():+.3f} "
        f"(standard error {error:.3f})"
    )


if __name__ == "__main__":
    main()
