"""A starter spec for a folder of photos."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from orchestrator.base.errors import SpecError

_PHOTO = re.compile(r".*\.(jpe?g|png|webp)$", re.IGNORECASE)
_MAX_CLASSES = 20
_N_BINS = 3
_PATH_COLUMNS = ("path", "file", "filename", "image", "ImageID")
_GROUP_COLUMNS = ("id", "group", "person", "person_id", "subject")
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no"})

_HEAD = """\
# Question: how well do these photos show their labels?
# Command:  python -m orchestrator submit THIS_FILE
name: {name}
seed: 42
"""
_FOLDERS = """\
data:
  source: {{layout: class_folders, root: {root}}}
  test: {{hold_out: 0.15}}
  labels:
    class: {{from: column, column: folder, classes: [{classes}]}}
  group: sample_id   # better: a column of persons; photos of one group stay on one side
  split: {{strategy: balanced_profile, val: 0.2, seed: 0}}
"""
_TABLE = """\
data:
  source: {{{source}}}
  test: {{hold_out: 0.15}}
  labels:
{labels}
  group: {group}   # photos of one group are never in both train and test
  split: {{strategy: balanced_profile, val: 0.2, seed: 0}}
"""

_TAIL = """\
prep:
  steps:
    - keep_aspect
    - {{name: resize, size: 128}}
train:
  model: {{backbone: tf_efficientnet_lite0, pretrained: true, head: single}}
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
        SpecError: the folder has none of the known layouts.
    """
    images = folder / "images"
    if not images.is_dir():
        raise SpecError(
            f"{folder}: photos below {images} were required, found no such folder; move them there"
        )
    root = os.path.relpath(folder.resolve(), base.resolve())
    tables = sorted(path for path in folder.iterdir() if path.suffix == ".csv")
    data = _from_table(tables[0], root) if tables else _from_folders(images, root)
    n_labels = data.count("from:")
    second = "  cutmix: {train.augment.cutmix: half}\n"
    if n_labels > 1:
        second = "  shallow: {train.model.head: shallow}\n"
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-")
    head = _HEAD.format(name=name or "experiment")
    return head + data + _TAIL.format(second=second, n=2)


def _from_folders(images: Path, root: str) -> str:
    classes = []
    for path in sorted(images.iterdir()):
        if path.is_dir() and any(map(_is_photo, path.iterdir())):
            classes.append(path.name)
    if len(classes) < 2:
        raise SpecError(
            f"{images}: one folder of photos per class was required (or a .csv table beside "
            f"images/), found {len(classes)} folder(s) with photos; "
            "sort the photos into folders or add a table"
        )
    return _FOLDERS.format(root=_quote(root), classes=_quoted_list(classes))


def _from_table(table: Path, root: str) -> str:
    with table.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    if not rows:
        raise SpecError(f"{table}: rows were required, found none")
    columns = list(rows[0])
    path_column = _first_known(_PATH_COLUMNS, columns) or columns[0]
    group_column = _first_known(_GROUP_COLUMNS, columns)
    images = table.parent / "images"
    has_profiles = (images / (rows[0][path_column] or "?")).is_dir()
    source = f"layout: table, root: {_quote(root)}, table: {_quote(table.name)}"
    labels = []
    if has_profiles:
        source = source.replace("layout: table", "layout: profile_folders", 1)
        labels += _stem_label([images / row[path_column] for row in rows[:5]])
    else:
        source += f", path: {path_column}"
    for column in columns:
        if column not in {path_column, group_column}:
            labels += _column_label(column, [row[column] for row in rows if row[column]])
    if not labels:
        raise SpecError(
            f"{table}: a column with 2 to {_MAX_CLASSES} values or with numbers was required, "
            f"found {', '.join(columns)}"
        )
    return _TABLE.format(source=source, labels="\n".join(labels), group=group_column or "sample_id")


def _first_known(known: tuple[str, ...], columns: list[str]) -> str | None:
    for name in known:
        if name in columns:
            return name
    return None


def _stem_label(profiles: list[Path]) -> list[str]:
    """Return a label of the file stems in some folders, if they differ in more than numbers."""
    stems: set[str] = set()
    for folder in profiles:
        stems |= {photo.stem for photo in folder.iterdir() if _is_photo(photo)}
    stems_by_class: dict[str, list[str]] = {}
    for stem in sorted(stems):
        stems_by_class.setdefault(stem.rstrip("0123456789") or stem, []).append(stem)
    if len(stems_by_class) < 2:
        return []
    patterns = []
    for name, members in stems_by_class.items():
        pattern = members[0] if len(members) == 1 else f"{name}*"
        patterns.append(f"{_identifier(name)}: {_quote(pattern)}")
    comment = "# check which stems mean the same"
    return [f"    photo: {{from: stem, classes: {{{', '.join(patterns)}}}}}   {comment}"]


def _column_label(column: str, values: list[str]) -> list[str]:
    """Return a label of a column: classes for few texts, bins for numbers, else nothing."""
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return []
    try:
        numbers = sorted(float(value) for value in values)
    except ValueError:
        if len(distinct) > _MAX_CLASSES:
            return []
        rule = f"classes: [{_quoted_list(distinct)}]"
    else:
        cuts = {numbers[len(numbers) * part // _N_BINS] for part in range(1, _N_BINS)}
        cuts.discard(numbers[0])
        if not cuts:
            return []
        rule = f"bins: [{', '.join(f'{cut:g}' for cut in sorted(cuts))}]"
    return [f"    {_identifier(column)}: {{from: column, column: {_quote(column)}, {rule}}}"]


def _is_photo(path: Path) -> bool:
    return bool(_PHOTO.match(path.name))


def _identifier(text: str) -> str:
    plain = re.sub(r"\W", "_", text)
    return plain if plain.isidentifier() else f"c_{plain}"


def _quoted_list(texts: list[str]) -> str:
    return ", ".join(_quote(text) for text in texts)


def _quote(text: str) -> str:
    """Quote a text that YAML would read as something else."""
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in _YAML_WORDS:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
