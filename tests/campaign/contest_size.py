"""A run of the contest's size: seconds, memory and backbone passes, stage by stage.

`python -m tests.campaign.contest_size --photos data/portraits_all/train` makes 18,900 photos of
2,700 people out of the photos of fewer (each repeated person has a new name, and photos that are
turned, cropped and lit anew), submits experiments/contest/contest_size.yaml on a new store, and
prints a table. `python -m data_prep.sample --people 300 --size 384x512 --out DIR` draws photos to
begin with.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from orchestrator.store.event_types import StageEnded
from orchestrator.store.ledger import read
from tests.campaign.process_samples import Samples, run_sampled

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "experiments/contest/contest_size.yaml"
_HEAD = ["id", "gender", "race", "age", "path"]


def grow(source: Path, out: Path, n_people: int) -> None:
    """Write a data set of more people: those of the source in turns, each time named anew.

    Args:
        source: folder with train.csv and images, one folder of photos per person.
        out: a folder of the same form; one that is complete is taken as it is.
        n_people: how many.
    """
    table = out / "train.csv"
    if table.is_file():
        return
    with (source / "train.csv").open(newline="", encoding="utf-8") as stream:
        people = list(csv.DictReader(stream))
    rows = []
    for number, person in enumerate(itertools.islice(itertools.cycle(people), n_people)):
        name = f"{number:06}"
        path = f"{name}_{person['gender']}_{person['race']}_{person['age']}"
        rows.append({**person, "id": name, "path": path, "from": person["path"]})
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(partial(_write_person, source, out), enumerate(rows), chunksize=16):
            pass
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _HEAD, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_person(source: Path, out: Path, numbered: tuple[int, dict[str, str]]) -> None:
    number, person = numbered
    folder = out / "images" / person["path"]
    folder.mkdir(parents=True, exist_ok=True)
    for place, path in enumerate(sorted((source / "images" / person["from"]).iterdir())):
        rng = np.random.default_rng([number, place])
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        width, height = photo.size
        left, top, right, bottom = rng.uniform(0, 0.08, 4)
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        turned = photo.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR)
        taken = turned.resize((width, height), Image.Resampling.BILINEAR, box)
        lit = ImageEnhance.Brightness(taken).enhance(rng.uniform(0.8, 1.2))
        lit.save(folder / f"{path.stem}.jpg", quality=int(rng.integers(80, 96)))


def main() -> None:
    """Grow the data, submit, and print what each stage took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder with train.csv")
    parser.add_argument("--people", type=int, default=2700)
    parser.add_argument("--data", type=Path, default=ROOT / "data/contest_size")
    parser.add_argument("--store", type=Path, default=ROOT / "runs-store/contest_size")
    asked = parser.parse_args()
    grow(asked.photos.resolve(), asked.data / "train", asked.people)
    store = asked.store.resolve()
    store.mkdir(parents=True, exist_ok=True)  # an interrupted run goes on
    command = [sys.executable, "-m", "orchestrator", "submit", str(SPEC), "--store", str(store)]
    root = f"data.source.root={asked.data.resolve() / 'train'}"
    command += ["--set", root]
    log = store / "submit.log"
    samples = run_sampled(command, cwd=ROOT, log=log, keep=store / "samples.jsonl")
    if samples.returncode:
        sys.exit(f"submit ended with {samples.returncode}; see {log}")
    (run,) = (store / "runs").iterdir()
    show(run, samples)


def show(run: Path, samples: Samples) -> None:
    """Print seconds, processor seconds and memory of each stage, and the backbone's passes."""
    print(f"{'stage':<12}{'wall s':>8}{'CPU s':>8}{'driver MiB':>12}{'tree MiB':>10}")
    for event in read(run / "events.jsonl"):
        if isinstance(event, StageEnded):
            seconds = event.wall_s or 0.0
            show_row(event.stage, seconds, samples, event.time - seconds, event.time)
    show_row("all", samples.wall_s, samples, 0.0, float("inf"))
    n_bytes = (run / "report/index.html").stat().st_size
    n_photos = len(np.load(next((run.parents[1] / "rows").glob("*/rows.npy")), mmap_mode="r"))
    n_passes = backbone_passes(run.parents[1])
    print(f"report {n_bytes / 1e6:.2f} MB")
    print(f"backbone: {n_passes} photos for {n_photos} photos, {n_passes / n_photos:.3f} a photo")


def show_row(name: str, wall_s: float, samples: Samples, begin: float, end: float) -> None:
    """Print one row of the table."""
    driver = samples.peak_driver_bytes(begin, end) / 2**20
    tree = samples.peak_tree_bytes(begin, end) / 2**20
    cpu_s = samples.cpu_s(begin, end)
    print(f"{name:<12}{wall_s:>8.1f}{cpu_s:>8.1f}{driver:>12.0f}{tree:>10.0f}")


def backbone_passes(store: Path) -> int:
    """Return how many photos a backbone was run over for trainings, predictions and votes.

    Features of the audit's quick models, of a backbone of their own, are not counted.
    """
    n_rows = 0
    for path in (store / "features").glob("*/features.npy"):
        params = json.loads((path.parent / "manifest.json").read_text())["params"]
        if "samples" in params:
            n_rows += len(np.load(path, mmap_mode="r"))
    return n_rows


if __name__ == "__main__":
    main()
