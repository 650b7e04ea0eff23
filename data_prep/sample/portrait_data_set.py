"""Sample data drawn by code: portraits in the contest's layout, with true silhouettes and faces.

All randomness comes from (seed, person, photo name), so the same arguments give the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data_prep.sample.person import Person, make_person
from data_prep.sample.portrait import draw

PHOTOS = ("incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal")
TRUTH = "truth.parquet"
_MASK_CODES = {"incorrect_mask": 1, "normal": 2}  # every other photo has code 0
_MIN_TRAIN = 4  # people per gender x age cell
_MIN_EVAL = 2
_CELLS = [(gender, age) for gender in ("male", "female") for age in range(3)]
# share of the contest's people in each cell
_SHARES = (0.145, 0.108, 0.022, 0.194, 0.216, 0.029)


@dataclass(frozen=True)
class Truth:
    """What is known of one photo: its path below the data set, the face box, the silhouette."""

    path: str
    face_box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    silhouette: NDArray[np.bool_]  # (H, W)


class _Drawn(NamedTuple):
    """A photo that was written."""

    path: str
    face_box: tuple[float, float, float, float]
    silhouette_png: bytes
    answer: int  # mask * 6 + gender * 3 + age group


def cell_counts(n_people: int) -> list[tuple[int, int]]:
    """Return the number of (train, eval) people per gender x age cell, imbalanced like the contest.

    Raises:
        ValueError: too few people for the smallest cells.
    """
    n_required = (_MIN_TRAIN + _MIN_EVAL) * len(_CELLS)
    if n_people < n_required:
        raise ValueError(
            f"--people: at least {n_required} are required ({_MIN_TRAIN} in train and {_MIN_EVAL} "
            f"in eval per gender x age cell), found {n_people}; ask for more"
        )
    n_extra = n_people - n_required
    ideal = [share / sum(_SHARES) * n_extra for share in _SHARES]
    extra = [int(value) for value in ideal]
    by_remainder = sorted(range(len(ideal)), key=lambda cell: extra[cell] - ideal[cell])
    for cell in by_remainder[: n_extra - sum(extra)]:
        extra[cell] += 1
    counts = []
    for n_more in extra:
        n_eval = n_more // 5
        counts.append((_MIN_TRAIN + n_more - n_eval, _MIN_EVAL + n_eval))
    return counts


def people_of(n_people: int, seed: int) -> tuple[list[Person], list[Person]]:
    """Return the people of train and of eval, disjoint."""
    train: list[Person] = []
    held_out: list[Person] = []
    for (gender, age_group), counts in zip(_CELLS, cell_counts(n_people), strict=True):
        for people, count in zip((train, held_out), counts, strict=True):
            for _ in range(count):
                number = len(train) + len(held_out) + 1
                people.append(make_person(number, gender, age_group, seed))
    return train, held_out


def build(
    out: Path, n_people: int, *, seed: int = 0, size: tuple[int, int] = (192, 256), jobs: int = 1
) -> None:
    """Write a data set in the contest's layout, and truth.parquet beside it.

    Args:
        out: a new or empty folder.
        n_people: in train and eval together.
        seed: of all randomness.
        size: width and height of a photo in pixels.
        jobs: processes.

    Raises:
        ValueError: too few people, or `out` is not empty.
    """
    train, held_out = people_of(n_people, seed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: a new or empty folder was required, found something in it")
    tasks = [(person, "train") for person in train] + [(person, "eval") for person in held_out]
    photos: list[_Drawn] = []
    with ProcessPoolExecutor(jobs) as pool:
        write = partial(_write_person, out=out, seed=seed, size=size)
        for n_done, drawn in enumerate(pool.map(write, tasks, chunksize=2), 1):
            photos += drawn
            if n_done % 20 == 0 or n_done == len(tasks):
                sys.stderr.write(f"drew {n_done} of {len(tasks)} people\n")
    _write_csv(
        out / "train" / "train.csv",
        ["id", "gender", "race", "age", "path"],
        [[person.id, person.gender, "drawn", person.age, person.folder] for person in train],
    )
    answers = []
    for photo in photos:
        if photo.path.startswith("eval/"):
            answers.append([Path(photo.path).name, photo.answer])
    _write_csv(out / "eval" / "info.csv", ["ImageID", "ans"], sorted(answers))
    truth = {
        "path": [photo.path for photo in photos],
        "face_box": [list(photo.face_box) for photo in photos],
        "silhouette": [photo.silhouette_png for photo in photos],
    }
    pq.write_table(pa.table(truth), out / TRUTH)


def _write_person(
    task: tuple[Person, str], *, out: Path, seed: int, size: tuple[int, int]
) -> list[_Drawn]:
    """Draw the photos of one person of train or eval."""
    person, side = task
    drawn = []
    for photo in PHOTOS:
        portrait = draw(person, photo, seed, size)
        path = f"train/images/{person.folder}/{photo}.jpg"
        if side == "eval":  # the name must not tell the answer
            digest = hashlib.sha256(f"{seed}|{person.id}|{photo}".encode()).hexdigest()
            path = f"eval/images/{digest[:40]}.jpg"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(portrait.pixels).save(out / path, quality=92)
        buffer = io.BytesIO()
        Image.fromarray(portrait.silhouette).save(buffer, "PNG")
        answer = _MASK_CODES.get(photo, 0) * 6 + person.group
        drawn.append(_Drawn(path, portrait.face_box, buffer.getvalue(), answer))
    return drawn


def _write_csv(path: Path, head: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([head, *rows])


def read_truth(root: Path) -> list[Truth]:
    """Read what is known of every photo of a drawn data set."""
    truths = []
    for row in pq.read_table(root / TRUTH, memory_map=False).to_pylist():
        silhouette = np.asarray(Image.open(io.BytesIO(row["silhouette"])))
        truths.append(Truth(row["path"], tuple(row["face_box"]), silhouette))
    return truths
