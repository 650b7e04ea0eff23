"""The recipe beside the plain settings on two other kinds of data: digits and leaves of plants.

`python -m tests.campaign.other_kinds` writes both below data/ (600 of scikit-learn's digits; 120 drawn
plants), submits experiments/recipes/digits.yaml and plants.yaml, which print the test of their hypothesis.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def write_digits(out: Path, *, per_class: int = 60) -> None:
    """Write photos of scikit-learn's digits (8 x 8 pixels, 16 greys), one folder per digit.

    Args:
        out: a folder that exists is taken as complete.
        per_class: the first so many of each digit.
    """
    from sklearn.datasets import load_digits

    if out.exists():
        return
    digits = load_digits()
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for digit in range(10):
        folder = draft / "images" / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(digits.target == digit)[:per_class]:
            grey = (digits.images[number] * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC).save(
                folder / f"{number:04}.png"
            )
    draft.rename(out)


def draw_plants(out: Path) -> None:
    """Draw 120 plants of five photos; a folder that exists is taken as complete."""
    if not out.exists():
        size = ["--plants", "120", "--size", "96x96"]
        command = [sys.executable, "-m", "data_prep.sample", "--subject", "plants", *size]
        subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT)


def main() -> None:
    """Make the data and submit both specs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--store", type=Path, default=ROOT / "runs-store/other_kinds")
    asked = parser.parse_args()
    data = asked.data.resolve()
    write_digits(data / "digits")
    draw_plants(data / "plants_of_recipes")
    roots = {"digits": data / "digits", "plants": data / "plants_of_recipes"}
    for kind, root in roots.items():
        spec = ROOT / f"experiments/recipes/{kind}.yaml"
        command = [sys.executable, "-m", "orchestrator", "submit", str(spec)]
        command += ["--store", str(asked.store), "--set", f"data.source.root={root}"]
        subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
