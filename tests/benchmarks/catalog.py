"""catalog_100k: 100,000 photos of 14,286 people to a catalog, near-duplicates and a split, without reading a photo."""

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
N_PEOPLE, STEMS = 14_286, ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
REPEATS = 3
SEARCHED, N_SEARCHES = (10_000, 30_000, 100_000), 5


def catalog_100k():
    """Time catalog and split of 100,000 rows beside what a user writes: os.walk, pandas, StratifiedGroupKFold.

    Fair, because both list the same files, label them by the same rules and deal the same groups to five folds balanced
    by gender and age; ours also searches near-duplicates and writes the whole schema. Reading the photos costs both
    the same and is left out: their hashes are drawn, one in a hundred a near-duplicate.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        took = {"ours": [], "baseline": []}
        for _ in range(REPEATS):
            for side, runs in took.items():  # interleaved, so that a slow moment hits both
                command = [sys.executable, "-m", "tests.benchmarks.catalog", side, folder]
                done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout))
    peak = max(one["peak_mib"] for one in took["ours"])
    searched = {
        n: statistics.median(s for one in took["ours"] for s in one["searched"][str(n)])
        for n in SEARCHED
    }
    rates = {n: s / (n * math.log2(n)) for n, s in searched.items()}
    growth = ", ".join(f"{n} hashes {s:.3f} s" for n, s in searched.items()) + "".join(
        f", {rates[SEARCHED[-1]] / rates[n]:.2f} times n log n from {n}" for n in SEARCHED[:-1]
    )
    seconds = {side: statistics.median(one["s"] for one in runs) for side, runs in took.items()}
    return (
        "s",
        seconds["ours"],
        seconds["baseline"],
        REPEATS,
        f"peak {peak:.0f} MiB; near-duplicate search, processor time: {growth}",
    )


def draw(folder):
    """Write the table and empty files, 7 per person."""
    rng = np.random.default_rng(0)
    lines = ["id,gender,race,age,path"]
    for number in range(N_PEOPLE):
        gender, age = ("male", "female")[int(rng.integers(2))], int(rng.integers(18, 61))
        name = f"{number:06d}_{gender}_x_{age}"
        lines.append(f"{number:06d},{gender},x,{age},{name}")
        place = folder / "train/images" / name
        place.mkdir(parents=True)
        for stem in STEMS:
            (place / f"{stem}.jpg").touch()
    (folder / "train/train.csv").write_text("\n".join(lines) + "\n")


def hashes(n, seed=0):
    """Draw n hashes whose bits are as skewed as those of portraits, every hundredth a near-duplicate of another."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (40, 64), dtype=np.uint8)[
        rng.integers(0, 40, n)
    ]  # 40 kinds of scene
    raw = base ^ np.packbits(rng.random((n, 512)) < 0.3, axis=1)
    copies = np.arange(0, n - 1, 100)
    raw[copies] = raw[copies + 1] ^ np.packbits(rng.random((len(copies), 512)) < 0.05, axis=1)
    return [row.tobytes().hex() for row in raw]


def ours(folder):
    from data_prep.catalog.builder import build_catalog
    from data_prep.catalog.label_schema import Schema
    from data_prep.catalog.near_duplicates import candidates
    from data_prep.catalog.photo_inspection import OK, Facts, inspect_chunk
    from data_prep.config import Data, Split
    from data_prep.split import assign

    data = Data.model_validate(
        {
            "source": {"layout": "profile_folders", "root": "train"},
            "labels": {
                "mask": {
                    "from": "stem",
                    "classes": {
                        "wear": "mask*",
                        "incorrect": "incorrect_mask",
                        "not_wear": "normal",
                    },
                },
                "gender": {"from": "column", "column": "gender", "classes": ["male", "female"]},
                "age": {"from": "column", "column": "age", "bins": [30, 60]},
            },
            "group": "id",
        }
    )
    drawn = iter(hashes(N_PEOPLE * len(STEMS)))

    def stub(function, chunks):
        for chunk in chunks:
            if function is inspect_chunk:
                yield [Facts(f"{hash(name):064x}", 384, 512, OK, next(drawn)) for name in chunk]
            else:
                yield [False] * len(chunk)

    began = time.perf_counter()
    table, schema = build_catalog(data, folder, map_chunks=stub), Schema.of(data.labels)
    folds = assign(table, schema, Split(), [{"age": [57, 59]}], 5)
    took = time.perf_counter() - began
    assert len(folds) == N_PEOPLE * len(STEMS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    texts, searched = {n: hashes(n, 1) for n in SEARCHED}, {n: [] for n in SEARCHED}
    for _ in range(N_SEARCHES):
        for n in SEARCHED:
            began = time.process_time()
            candidates(texts[n])
            searched[n].append(time.process_time() - began)
    return {"s": took, "peak_mib": peak, "searched": searched}


def baseline(folder):
    import os

    import pandas as pd
    from sklearn.model_selection import StratifiedGroupKFold

    began = time.perf_counter()
    people = pd.read_csv(folder / "train/train.csv").set_index("path")
    rows = [
        {
            "path": f"{place}/{name}",
            "person": place.rpartition("/")[2],
            "stem": name.rpartition(".")[0],
        }
        for place, _, names in os.walk(folder / "train/images")
        for name in names
    ]
    table = pd.DataFrame(rows).join(people, on="person")
    table["mask"] = table["stem"].map(
        lambda stem: 0 if stem.startswith("mask") else 1 if stem == "incorrect_mask" else 2
    )
    table["group_class"] = (
        (table["gender"] == "female") * 3 + (table["age"] >= 30) * 1 + (table["age"] >= 60) * 1
    )
    table["label"] = table["mask"] * 6 + table["group_class"]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for at, (_, held) in enumerate(folds.split(table, table["group_class"], table["person"])):
        table.loc[held, "fold"] = at
    return {
        "s": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "baseline": baseline}[sys.argv[1]](Path(sys.argv[2]))))
