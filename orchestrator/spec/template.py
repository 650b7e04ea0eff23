"""A starter spec for somebody's own photos."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from orchestrator.base.errors import SpecError

_PHOTO = re.compile(r".*\.(jpe?g|png|webp)$", re.IGNORECASE)
_MAX_CLASSES = 20
_BINS = 3

_TAIL = """\
prep:
  steps:
    - keep_aspect
    - {{name: resize, size: 128}}
train:
  model: {{backbone: tf_efficientnet_lite0, pretrained: true, head: single}}   # on a GPU: efficientnet_b4
  loss: focal
  optimizer: {{name: adam, lr: 1.0e-3}}
  augment: {{policy: basic}}
  duration: 5 epochs
variants:
  single: {{}}
{second}confirm: {{finalists: {n}, seeds: [0], folds: 3}}
select: {{policy: robust, members: {n}}}
"""


def starter_spec(folder: Path, base: Path) -> str:
    """Return a YAML spec for a folder of photos; its root is written relative to `base`.

    Raises:
        SpecError: the folder fits none of the layouts.
    """
    images = folder / "images"
    if not images.is_dir():
        raise SpecError(
            f"{folder}: photos below {images} were required, found no such folder; move them there"
        )
    root = os.path.relpath(folder.resolve(), base.resolve())
    tables = sorted(path for path in folder.iterdir() if path.suffix == ".csv")
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-") or "experiment"
    head = _from_table(tables[0], root) if tables else _from_folders(images, root)
    n_labels = head.count("from:")
    second = (
        "  shallow: {train.model.head: shallow}\n"
        if n_labels > 1
        else "  cutmix: {train.augment.cutmix: half}\n"
    )
    top = f"# Question: what can be read from these photos?\n# Command:  python -m orchestrator submit THIS_FILE\nname: {name}\nseed: 42\n"
    return top + head + _TAIL.format(second=second, n=2)


def _from_folders(images: Path, root: str) -> str:
    classes = sorted(
        path.name
        for path in images.iterdir()
        if path.is_dir() and any(map(_is_photo, path.iterdir()))
    )
    if len(classes) < 2:
        raise SpecError(
            f"{images}: one folder of photos per class was required (or a .csv table beside images/), found "
            f"{len(classes)} folder(s) with photos; sort the photos into folders or add a table"
        )
    quoted = ", ".join(_quote(name) for name in classes)
    return (
        f"data:\n  source: {{layout: class_folders, root: {_quote(root)}}}\n  test: {{hold_out: 0.15}}\n  labels:\n"
        f"    class: {{from: column, column: folder, classes: [{quoted}]}}\n"
        f"  group: sample_id   # better: a column that names the person or object; nobody may be on both sides\n"
        f"  split: {{strategy: balanced_profile, val: 0.2, seed: 0}}\n"
    )


def _from_table(table: Path, root: str) -> str:
    with table.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    if not rows:
        raise SpecError(f"{table}: rows were required, found none")
    columns = list(rows[0])
    path = next(
        (name for name in ("path", "file", "filename", "image", "ImageID") if name in columns),
        columns[0],
    )
    images = table.parent / "images"
    profiles = (images / (rows[0][path] or "?")).is_dir()
    layout = "profile_folders" if profiles else "table"
    group = next(
        (name for name in ("id", "group", "person", "person_id", "subject") if name in columns),
        None,
    )
    labels = [line for name in columns if name not in {path, group} if (line := _label(name, rows))]
    if profiles:
        stems = sorted(
            {
                photo.stem
                for row in rows[:5]
                for photo in (images / row[path]).iterdir()
                if _is_photo(photo)
            }
        )
        alike: dict[str, list[str]] = {}
        for stem in stems:
            alike.setdefault(stem.rstrip("0123456789") or stem, []).append(stem)
        patterns = ", ".join(
            f"{_identifier(name)}: {_quote(name + '*' if len(found) > 1 else found[0])}"
            for name, found in alike.items()
        )
        if len(alike) > 1:
            labels.insert(
                0,
                f"    photo: {{from: stem, classes: {{{patterns}}}}}   # check which stems mean the same",
            )
    if not labels:
        raise SpecError(
            f"{table}: a column with 2 to {_MAX_CLASSES} values or with numbers was required, found {', '.join(columns)}"
        )
    where = "" if profiles else f", path: {path}"
    own = group or "sample_id"
    return (
        f"data:\n  source: {{layout: {layout}, root: {_quote(root)}, table: {_quote(table.name)}{where}}}\n"
        f"  test: {{hold_out: 0.15}}\n  labels:\n" + "\n".join(labels) + "\n"
        f"  group: {own}   # who must never be on both sides\n"
        f"  split: {{strategy: balanced_profile, val: 0.2, seed: 0}}\n"
    )


def _label(name: str, rows: list[dict[str, str]]) -> str | None:
    values = sorted({row[name] for row in rows if row[name]})
    if not len(values) >= 2:
        return None
    try:
        numbers = sorted(float(row[name]) for row in rows if row[name])
    except ValueError:
        if len(values) > _MAX_CLASSES:
            return None
        listed = ", ".join(_quote(value) for value in values)
        return f"    {_identifier(name)}: {{from: column, column: {_quote(name)}, classes: [{listed}]}}"
    cuts = sorted(
        {numbers[len(numbers) * part // _BINS] for part in range(1, _BINS)} - {numbers[0]}
    )
    bins = ", ".join(f"{cut:g}" for cut in cuts)
    return (
        f"    {_identifier(name)}: {{from: column, column: {_quote(name)}, bins: [{bins}]}}"
        if bins
        else None
    )


def _is_photo(path: Path) -> bool:
    return bool(_PHOTO.match(path.name))


def _identifier(text: str) -> str:
    plain = re.sub(r"\W", "_", text)
    return plain if plain.isidentifier() else f"c_{plain}"


def _quote(text: str) -> str:
    """Quote what YAML would not read as this very text."""
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in {
        "true",
        "false",
        "null",
        "yes",
        "no",
    }:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
