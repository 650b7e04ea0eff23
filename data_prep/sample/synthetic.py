"""Sample data drawn by code: portraits in the contest's layout, with known silhouettes and face boxes.

    python -m data_prep.sample.synthetic --out DIR --people N [--seed 0] [--size 192x256] [--jobs 2]

All randomness comes from (seed, person, photo name), so the same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data_prep.sample.portrait import Person, draw, make_person

PHOTOS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
TRUTH = "truth.parquet"
_MIN_TRAIN, _MIN_EVAL = 4, 2  # people per gender x age cell
_CELLS = [(gender, age) for gender in ("male", "female") for age in range(3)]
_SHARES = (
    0.145,
    0.108,
    0.022,
    0.194,
    0.216,
    0.029,
)  # of people in the contest, by gender x age group


@dataclass(frozen=True)
class Truth:
    """What is known of one photo: its path below the data set, the face box in pixels, and the silhouette."""

    path: str
    face_box: tuple[float, float, float, float]  # x0, y0, x1, y1
    silhouette: NDArray[np.bool_]  # (H, W)


def cell_counts(n_people: int) -> list[tuple[int, int]]:
    """Return (train, eval) people per gender x age cell, imbalanced like the contest.

    Raises:
        ValueError: too few people for the smallest cells.
    """
    least = (_MIN_TRAIN + _MIN_EVAL) * len(_CELLS)
    if n_people < least:
        raise ValueError(
            f"--people: at least {least} are required ({_MIN_TRAIN} in train and {_MIN_EVAL} in eval per gender x age "
            f"cell), found {n_people}; ask for more"
        )
    extra = n_people - least
    ideal = [share / sum(_SHARES) * extra for share in _SHARES]
    counts = [int(value) for value in ideal]
    for at in sorted(range(len(ideal)), key=lambda at: counts[at] - ideal[at])[
        : extra - sum(counts)
    ]:
        counts[at] += 1
    found = []
    for count in counts:
        more_eval = count // 5
        found.append((_MIN_TRAIN + count - more_eval, _MIN_EVAL + more_eval))
    return found


def people_of(n_people: int, seed: int) -> tuple[list[Person], list[Person]]:
    """Return the people of train and of eval, disjoint."""
    sides: tuple[list[Person], list[Person]] = ([], [])
    number = 1
    for (gender, age_group), counts in zip(_CELLS, cell_counts(n_people), strict=True):
        for side, count in zip(sides, counts, strict=True):
            for _ in range(count):
                side.append(make_person(number, gender, age_group, seed))
                number += 1
    return sides


def _write_person(
    person: Person, *, side: str, out: Path, seed: int, size: tuple[int, int]
) -> list[dict[str, object]]:
    rows = []
    for photo in PHOTOS:
        pixels, shape, box = draw(person, photo, seed, size)
        hidden = hashlib.sha256(f"{seed}|{person.id}|{photo}".encode()).hexdigest()[:40]
        place = (
            f"train/images/{person.folder}/{photo}.jpg"
            if side == "train"
            else f"eval/images/{hidden}.jpg"
        )
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(out / place, quality=92)
        packed = io.BytesIO()
        Image.fromarray(shape).save(packed, "PNG")
        state = {"incorrect_mask": 1, "normal": 2}.get(photo, 0)
        rows.append(
            {
                "path": place,
                "face_box": list(box),
                "silhouette": packed.getvalue(),
                "answer": state * 6 + person.group,
            }
        )
    return rows


def build(
    out: Path, n_people: int, *, seed: int = 0, size: tuple[int, int] = (192, 256), jobs: int = 1
) -> None:
    """Write a data set in the contest's layout, and truth.parquet beside it.

    Raises:
        ValueError: too few people, or `out` is not empty.
    """
    train, held = people_of(n_people, seed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: a new or empty folder was required, found something in it")
    rows: list[dict[str, object]] = []
    tasks = [(person, "train") for person in train] + [(person, "eval") for person in held]
    with ProcessPoolExecutor(jobs) as pool:
        write = partial(_write_task, out=out, seed=seed, size=size)
        for done, found in enumerate(pool.map(write, tasks, chunksize=2), 1):
            rows += found
            if done % 20 == 0 or done == len(tasks):
                sys.stderr.write(f"drew {done} of {len(tasks)} people\n")
    _write_csv(
        out / "train" / "train.csv",
        ["id", "gender", "race", "age", "path"],
        [[p.id, p.gender, "drawn", p.age, p.folder] for p in train],
    )
    answers = sorted(
        [Path(str(row["path"])).name, row["answer"]]
        for row in rows
        if str(row["path"]).startswith("eval/")
    )
    _write_csv(out / "eval" / "info.csv", ["ImageID", "ans"], answers)
    pq.write_table(
        pa.Table.from_pylist([{k: v for k, v in row.items() if k != "answer"} for row in rows]),
        out / TRUTH,
    )


def _write_task(
    task: tuple[Person, str], *, out: Path, seed: int, size: tuple[int, int]
) -> list[dict[str, object]]:
    return _write_person(task[0], side=task[1], out=out, seed=seed, size=size)


def _write_csv(path: Path, head: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([head, *rows])


def read_truth(root: Path) -> list[Truth]:
    """Read what is known of every photo of a drawn data set."""
    rows = pq.read_table(root / TRUTH, memory_map=False).to_pylist()
    return [
        Truth(
            row["path"],
            tuple(row["face_box"]),
            np.asarray(Image.open(io.BytesIO(row["silhouette"]))),
        )
        for row in rows
    ]


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 48 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, both from 48 to 1024")
    return int(parts[0]), int(parts[1])


def main(argv: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw sample portraits in the contest's layout.")
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--people", type=int, default=96, help="train and eval together (default 96)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=_size, default=(192, 256), help="WIDTHxHEIGHT (default 192x256)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(argv)
    try:
        build(args.out, args.people, seed=args.seed, size=args.size, jobs=args.jobs)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
