"""Plants known problems into a copy of a data set in the contest's layout, and counts what the audit finds of them.

python -m tests.data_prep.audit.planted data/sample/train /tmp/planted      prints one line per detector
"""

from __future__ import annotations

import csv
import io
import random
import shutil
import struct
import sys
import zlib
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.audit.examination import audit
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.label_schema import Schema
from data_prep.config import Data, Split
from data_prep.split import assign

LABELS = {
    "mask": {
        "from": "stem",
        "classes": {"wear": "mask*", "incorrect": "incorrect*", "not_wear": "normal*"},
    },
    "gender": {"from": "column", "column": "gender", "classes": ["male", "female"]},
    "age": {"from": "column", "column": "age", "bins": [30, 60]},
}
ODD_NAMES = ("mask with spaces.jpg", "mask'quotes\".jpg", "mask\nnewline.jpg", "mask한국어.jpg")


def jpeg(image: Image.Image, quality: int = 70) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image: Image.Image) -> Image.Image:
    """Cut 3 % of each side."""
    w, h = image.size
    return image.crop((round(w * 0.03), round(h * 0.03), w - round(w * 0.03), h - round(h * 0.03)))


CHANGES = {
    "re-encoded": lambda image: jpeg(image, 60),
    "cropped by 3 %": lambda image: jpeg(cropped(image), 80),
    "mirrored": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 85),
}


def oversized() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def pdf() -> bytes:
    return b"%PDF-1.7"


def look_alikes(people: list[dict], rng: random.Random) -> list[tuple[dict, dict]]:
    """Choose a partner of equal labels for everybody; no two choose each other, so that no two pictures hide one pair."""
    of_class: dict[tuple, list[dict]] = {}
    for row in people:
        of_class.setdefault(
            (row["gender"], sum(float(row["age"]) >= border for border in (30, 60))), []
        ).append(row)
    pairs = [pair for found in of_class.values() for pair in permutations(found, 2)]
    rng.shuffle(pairs)
    once: dict[str, tuple] = {}
    for a, b in pairs:  # a picture with two copies would link their owners too
        if a["id"] not in once and once.get(b["id"], (None, None))[1] is not a:
            once[a["id"]] = (a, b)
    return list(once.values())


def plant(train: Path, out: Path, *, n: int = 20, seed: int = 0) -> dict:
    """Copy `train` to `out` and plant n copies of each kind, n / 2 conflicts and 15 corrupt files; return the truth."""
    shutil.copytree(train, out)
    with (out / "train.csv").open(newline="", encoding="utf-8") as handle:
        people = list(csv.DictReader(handle))
    images, later = out / "images", iter(look_alikes(people, random.Random(seed)))
    photo_of = {row["path"]: next((images / row["path"]).glob("mask1.*")) for row in people}
    truth: dict = {
        "exact": set(),
        "near": {},
        "conflicts": set(),
        "corrupt": {},
        "odd": [],
        "refused": [],
    }

    def place(row: dict, name: str, photo: bytes) -> str:
        (images / row["path"] / name).write_bytes(photo)
        return f"train/{row['path']}/{name}"

    for at in range(n):
        a, b = next(later)
        place(b, f"mask_exact{at}.jpg", photo_of[a["path"]].read_bytes())
        truth["exact"].add(frozenset((a["id"], b["id"])))
    for at in range(n):
        (a, b), (kind, change) = next(later), list(CHANGES.items())[at % len(CHANGES)]
        place(b, f"mask_near{at}.jpg", change(Image.open(photo_of[a["path"]]).convert("RGB")))
        truth["near"][frozenset((a["id"], b["id"]))] = kind
    for at in range(n // 2):
        row = people[at]
        truth["conflicts"].add(
            place(row, f"normal_conflict{at}.jpg", photo_of[row["path"]].read_bytes())
        )
    whole = jpeg(
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 48, 3), dtype=np.uint8))
    )
    kinds = {
        "truncated": whole[:-300],
        "empty file": b"",
        "not an image": b"text",
        "too large": oversized(),
        "not allowed": pdf(),
    }
    for at in range(15):
        kind = list(kinds)[at % 5]
        truth["corrupt"][place(people[at], f"mask_corrupt{at}.jpg", kinds[kind])] = kind
    for at, name in enumerate(ODD_NAMES):
        noise = np.random.default_rng(seed + 1 + at).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        truth["odd"].append(place(people[at], name, jpeg(Image.fromarray(noise))))
    outside = out.parent / f"{out.name}-outside"
    outside.mkdir()
    (outside / "mask1.jpg").write_bytes(whole)
    (images / people[0]["path"] / "mask_link.jpg").symlink_to(outside / "mask1.jpg")
    (images / "linked").symlink_to(outside)
    for name, path in (("dots", f"../../{outside.name}"), ("linked", "linked")):
        people.append({**people[0], "id": name, "path": path})
        truth["refused"].append(name)
    with (out / "train.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(people[0]))
        writer.writeheader()
        writer.writerows(people)
    return truth


def scores(found: set, truth: set) -> tuple[float, float]:
    """Return recall and precision."""
    hits = len(found & truth)
    return hits / len(truth) if truth else 1.0, hits / len(found) if found else 1.0


def detect(out: Path, truth: dict) -> dict[str, tuple[float, float]]:
    """Audit the planted set and return detector -> (recall, precision)."""
    data = Data.model_validate(
        {"source": {"layout": "profile_folders", "root": out.name}, "labels": LABELS, "group": "id"}
    )
    table, schema = build_catalog(data, out.parent), Schema.of(data.labels)
    rows = table.to_pylist()
    facts = audit(
        table, {"base": assign(table, schema, Split(), [], 3)}, schema, labels=data.labels
    ).to_json()
    linked: dict[str, set] = {"sha256": set(), "near": set()}
    for key, found in linked.items():
        sets: dict[str, set[str]] = {}
        for row in rows:
            if row["status"] == "ok" and row[key] is not None:
                sets.setdefault(row[key], set()).add(row["group"])
        found |= {
            frozenset(pair) for groups in sets.values() for pair in combinations(sorted(groups), 2)
        }
    by_kind = {
        kind: {pair for pair, one in truth["near"].items() if one == kind} for kind in CHANGES
    }
    near = linked["near"] - linked["sha256"]
    result = {"exact duplicates across people": scores(linked["sha256"], truth["exact"])}
    precision = scores(near, set(truth["near"]))[1]
    result |= {kind: (scores(near, pairs)[0], precision) for kind, pairs in by_kind.items()}
    conflicts = {
        name
        for names in facts["duplicates"]["label_conflicts"]["sets"]
        for name in names
        if "conflict" in name
    }
    others = [
        names
        for names in facts["duplicates"]["label_conflicts"]["sets"]
        if not any("conflict" in one for one in names)
    ]
    result["conflicting labels"] = scores(
        conflicts | {tuple(names) for names in others}, truth["conflicts"]
    )
    lost = {row["sample_id"]: row["status"] for row in rows if row["status"] != "ok"}
    refused = {sample for sample, status in lost.items() if status.startswith("refused")}
    corrupt = {(sample, kind) for sample, kind in truth["corrupt"].items()}
    found = {
        (sample, kind)
        for sample, status in lost.items()
        for kind in set(truth["corrupt"].values())
        if status.startswith(kind)
    }
    result["corrupt files, by kind"] = scores(found, corrupt)
    wanted = {
        row["sample_id"]
        for row in rows
        if row["group"] in truth["refused"] or "mask_link" in row["sample_id"]
    }
    result["paths and links out of the root"] = scores(refused, wanted)
    usable = {row["sample_id"] for row in rows if row["status"] == "ok"}
    result["odd names kept"] = scores(usable & set(truth["odd"]), set(truth["odd"]))
    return result


if __name__ == "__main__":
    place = Path(sys.argv[2])
    for detector, (recall, precision) in detect(place, plant(Path(sys.argv[1]), place)).items():
        print(f"{detector:<34} recall {recall:.3f}  precision {precision:.3f}")
