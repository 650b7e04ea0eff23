"""What lies in a folder that somebody wants a spec for: its tables, its photos, what columns mean.

Imports nothing heavy.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.catalog.photo_groups import group_of
from data_prep.catalog.photo_paths import EXTENSIONS, resolve
from data_prep.catalog.user_tables import SUFFIXES, open_table
from data_prep.config import NameGroup
from data_prep.errors import DataError
from data_prep.photo_files import is_passed_over
from orchestrator.base.errors import SpecError

MAX_CLASSES = 100
_MAX_LABELS = 3
_MAX_JOINT = 100
_N_BINS = 3
_SHORT_WORD = 2  # letters: found inside other words
_PROBED = 200  # names of a table that are looked for
_MISSING = frozenset({"", "nan", "NaN"})
_SUBMISSION = re.compile(r"submission|submit", re.IGNORECASE)
_TEST = re.compile(r"test|eval|holdout", re.IGNORECASE)
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation")
_TESTS = ("test", "testing")
_LABEL_NAME = re.compile(r"(^|_)(label|class|target|category|y)(_?(id|name|code))?$", re.IGNORECASE)
_ID_NAME = re.compile(
    r"(^|_)(id|idx|index|uid|uuid|key|hash|url|file|filename|path|time|timestamp|date)$|^unnamed",
    re.IGNORECASE,
)
_SUBJECTS = (
    "group person people patient subject plant product animal individual specimen object user "
    "customer client session site camera device lot batch case tree family owner"
)
_GROUP_NAME = re.compile(
    rf"^({'|'.join(_SUBJECTS.split())})s?(_?(id|no|nr|number|name|code))?$|^id$|_id$", re.IGNORECASE
)
_AMOUNT_NAME = re.compile(
    r"age|year|price|weight|height|width|length|score|count|number", re.IGNORECASE
)
_WHOLE = re.compile(r"-?[0-9]+(\.0+)?")
_PARTS = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]+")


@dataclass(frozen=True)
class Column:
    """A column of a table without the cells that mean nothing."""

    name: str
    cells: list[str]  # "" where a cell is missing

    @property
    def values(self) -> list[str]:
        """The cells that are there."""
        return [cell for cell in self.cells if cell]

    @property
    def n_missing(self) -> int:
        """Number of missing cells."""
        return len(self.cells) - len(self.values)


@dataclass(frozen=True)
class FoundTable:
    """A table of the folder, and the photos that one of its columns names."""

    path: Path
    columns: dict[str, Column]
    photo_column: str = ""
    images: str = ""
    share: float = 0.0  # of its names that are photos or folders of photos
    are_folders: bool = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())).cells)


@dataclass(frozen=True)
class Labels:
    """A proposed label of a column: classes or bins, and what they leave out."""

    column: str
    classes: list[str] = field(default_factory=list)
    bins: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # classes of one group
    n_missing: int = 0


def read_tables(folder: Path) -> list[FoundTable]:
    """Read the tables of a folder and find the photos that they name.

    Raises:
        SpecError: there are tables and none can be read.
    """
    tables = []
    faults = []
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")
        if not path.is_file() or is_hidden or path.suffix.lower() not in SUFFIXES:
            continue
        if path.suffix.lower() == ".txt":
            continue  # a note more often than a table
        try:
            read = open_table(path, "init").columns
        except DataError as error:
            faults.append(error.text)
            continue
        columns = {name: Column(name, _texts(cells)) for name, cells in read.items()}
        tables.append(_with_photos(FoundTable(path, columns), folder))
    if faults and not tables:
        raise SpecError("; ".join(faults))
    return tables


def _texts(cells: Iterable[object]) -> list[str]:
    texts = []
    for cell in cells:
        text = "" if cell is None else str(cell)
        if isinstance(cell, bool):
            text = text.lower()
        texts.append("" if text.strip() in _MISSING else text)
    return texts


def photo_folders(folder: Path) -> list[str]:
    """Return the folders below a root, itself included, that may hold its photos, likely ones first."""
    names = [".", *sorted(path.name for path in folder.iterdir() if _is_folder(path))]
    first = ("images", "train", "training", "photos", "data")
    return sorted(names, key=lambda name: (name not in first, name))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not is_passed_over(path.name, is_folder=True)


def _with_photos(table: FoundTable, folder: Path) -> FoundTable:
    """Find the column and the folder that fit best."""
    best = table
    for images in photo_folders(folder):
        for name, column in table.columns.items():
            names = list(dict.fromkeys(column.values))[:_PROBED]
            if len(names) < min(2, table.n_rows):
                continue
            # a number is a name only where a file is called like it
            resolved = resolve(str(folder / images), names)
            known = [text for text in resolved.paths if (folder / images / text).exists()]
            share = len(known) / len(names) if names else 0.0
            if share > best.share:
                are_folders = bool(known) and (folder / images / known[0]).is_dir()
                best = FoundTable(table.path, table.columns, name, images, share, are_folders)
        if best.share == 1.0:
            break
    return best


def choose_train(tables: Sequence[FoundTable]) -> FoundTable | None:
    """Return the table of the labelled photos: no submission, no test table, most photos."""
    named = [table for table in tables if table.share and not _SUBMISSION.search(table.path.stem)]
    with_labels = [table for table in named if len(table.columns) > 1]

    def rank(table: FoundTable) -> tuple[bool, float, int]:
        return not _TEST.search(table.path.stem), table.share, table.n_rows

    return max(with_labels, key=rank, default=None)


def choose_submission(tables: Sequence[FoundTable], train: FoundTable) -> FoundTable | None:
    """Return the sample of a contest's submission, if its photos are there."""
    for table in tables:
        if table is not train and _SUBMISSION.search(table.path.stem) and table.share == 1.0:
            return table
    return None


@dataclass(frozen=True)
class ClassTree:
    """Folders of photos, one per class, and the photos' names in each."""

    images: str
    photos: dict[str, list[str]]
    test: str | None = None  # a folder of test photos beside it
    test_has_classes: bool = False
    has_others: bool = False  # photos in folders that are no class


def read_classes(folder: Path) -> ClassTree | None:
    """Find one folder of photos per class: below images/, below train/, or in the root itself.

    Photos of a class may lie in folders of their own, such as one per plant.
    """
    for is_deep in (False, True):
        for images in ("images", *_TRAIN, "."):
            place = folder / images
            if place.is_dir() and len(_class_photos(place, images, is_deep=is_deep)) > 1:
                return _class_tree(folder, images)
    return None


def _class_tree(folder: Path, images: str) -> ClassTree:
    photos = _class_photos(folder / images, images, is_deep=True)
    has_others = len(_photos_by_folder(folder / images, is_deep=True)) > len(photos)
    for name in (*_TESTS, *_VAL):
        beside = folder / name
        if images != "images" and beside.is_dir():
            classes = _photos_by_folder(beside, is_deep=True)
            has_classes = bool(classes) and set(classes) <= set(photos)
            if has_classes or _has_photos(beside):
                return ClassTree(images, photos, name, has_classes, has_others)
    return ClassTree(images, photos, has_others=has_others)


def _class_photos(place: Path, images: str, *, is_deep: bool) -> dict[str, list[str]]:
    photos = _photos_by_folder(place, is_deep=is_deep)
    if images == ".":
        for name in (*_VAL, *_TESTS, "images"):
            photos.pop(name, None)
    return photos


def _photos_by_folder(place: Path, *, is_deep: bool) -> dict[str, list[str]]:
    """Return the photos' paths below each folder: those in it, or also those in folders there."""
    photos = {}
    for path in sorted(place.iterdir()):
        if _is_folder(path):
            names = [entry.name for entry in path.iterdir() if is_photo(entry.name)]
            if is_deep:
                names = list(_photos_below(path, ""))
            if names:
                photos[path.name] = sorted(names)
    return photos


def _photos_below(folder: Path, prefix: str) -> Iterator[str]:
    for path in folder.iterdir():
        if _is_folder(path) and not path.is_symlink():
            yield from _photos_below(path, f"{prefix}{path.name}/")
        elif is_photo(path.name):
            yield f"{prefix}{path.name}"


def _has_photos(place: Path) -> bool:
    return any(is_photo(path.name) for path in place.iterdir())


def is_photo(name: str) -> bool:
    """Return True if a name is that of a photo."""
    is_file = not is_passed_over(name, is_folder=False)
    return is_file and name.lower().endswith(EXTENSIONS)


def count_photos(folder: Path) -> int:
    """Return the number of photos below a folder."""
    n_photos = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_passed_over(name, is_folder=True)]
        n_photos += sum(map(is_photo, files))
    return n_photos


# labels


def propose_labels(table: FoundTable, group: str | None) -> list[Labels]:
    """Return the columns that may be labels, the likeliest first; never an id."""
    proposals = []
    for name, column in table.columns.items():
        if name in {table.photo_column, group}:
            continue
        label = _label_of(column)
        if label is not None:
            proposals.append(label)

    def rank(label: Labels) -> tuple[bool, bool]:
        return not _LABEL_NAME.search(label.column), bool(label.bins)

    kept: list[Labels] = []
    n_joint = 1
    for label in sorted(proposals, key=rank):
        size = len(label.classes) or len(label.bins) + 1
        if len(kept) < _MAX_LABELS and n_joint * size <= _MAX_JOINT:
            kept.append(label)
            n_joint *= size
    order = [label.column for label in proposals]
    return sorted(kept, key=lambda label: order.index(label.column))


def is_doubtful(
    label: Labels, labels: Sequence[Labels], table: FoundTable, groups: Sequence[str]
) -> bool:
    """Return True if an amount is more likely a fact beside the labels, such as a price.

    Its column is not named like a label, there is a label of classes, and photos of one group
    differ in it.

    Args:
        label: the proposal.
        labels: all proposals.
        table: the table they are of.
        groups: of each row; empty where every photo is its own.
    """
    has_classes = any(other.classes for other in labels)
    if not label.bins or _LABEL_NAME.search(label.column) or not has_classes or not groups:
        return False
    amounts_of: dict[str, set[str]] = defaultdict(set)
    for group, cell in zip(groups, table.columns[label.column].cells, strict=True):
        if cell:
            amounts_of[group.strip()].add(cell)
    return any(len(amounts) > 1 for amounts in amounts_of.values())


def _label_of(column: Column) -> Labels | None:
    values = column.values
    distinct = set(values)
    if len(distinct) < 2 or (_is_id(column.name) and not _LABEL_NAME.search(column.name)):
        return None
    numbers = _numbers(values)
    if numbers is None:
        is_repeated = len(distinct) < len(values) and len(distinct) <= MAX_CLASSES
        if not is_repeated or 2 * len(distinct) > len(values) > 20:
            return None
        return Labels(column.name, classes=sorted(distinct), n_missing=column.n_missing)
    if all(_WHOLE.fullmatch(value) for value in distinct):
        wholes = sorted(set(map(int, numbers)))
        if wholes in (list(range(len(values))), list(range(1, len(values) + 1))):
            return None  # a number per row
        if _are_classes(column.name, wholes, len(values)):
            # 007 is a name of its own, 1.0 the number 1
            names = sorted(distinct, key=float)
            if all("." in value for value in distinct) or len(names) > len(wholes):
                names = list(map(str, wholes))
            return Labels(column.name, classes=names, n_missing=column.n_missing)
    numbers.sort()
    cuts = {numbers[len(numbers) * part // _N_BINS] for part in range(1, _N_BINS)}
    cuts.discard(numbers[0])
    return Labels(column.name, bins=sorted(cuts), n_missing=column.n_missing) if cuts else None


def _are_classes(name: str, wholes: list[int], n_values: int) -> bool:
    """Return True if whole numbers are ids of classes and no amounts."""
    n = len(wholes)
    if n > MAX_CLASSES or 2 * n > n_values:
        return False
    if n == 2 or _LABEL_NAME.search(name):
        return True
    is_row = wholes[0] in {-1, 0, 1} and wholes[-1] - wholes[0] == n - 1
    return is_row and not _AMOUNT_NAME.search(name)


def _is_id(name: str) -> bool:
    return bool(_ID_NAME.search(name) or _GROUP_NAME.match(name))


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    return numbers


# groups


@dataclass(frozen=True)
class GroupProposal:
    """A rule that gives photos their group."""

    spec: str  # as it stands in the spec
    groups: list[str]  # of each photo


def propose_group_column(table: FoundTable) -> str | None:
    """Return the column of the subjects: named like one, repeated, and no label."""
    for name, column in table.columns.items():
        if name == table.photo_column or not _GROUP_NAME.match(name) or _LABEL_NAME.search(name):
            continue
        if column.n_missing:
            continue
        n_groups = len({value.strip() for value in column.values})
        if table.are_folders or 2 <= n_groups < len(column.cells):
            return name
    return None


_FOLDERS = ("^[^/]+/(?P<group>[^/]+)/", "^(?P<group>[^/]+/[^/]+)/")
"""The folder in a class folder, and both where their names repeat."""


def propose_group_of_names(paths: Sequence[str], labels: Sequence[str]) -> GroupProposal | None:
    """Return the part of file names that repeats over photos of one label set, if there is one.

    Args:
        paths: of the photos below their folder.
        labels: what each photo shows, as text; a subject shows one thing.
    """
    best: GroupProposal | None = None
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
    of_folders = _FOLDERS if all(path.count("/") > 1 for path in paths) else ()
    for pattern in (*of_folders, *_patterns(stems)):
        rule = NameGroup.model_validate({"from": "name", "pattern": pattern})
        groups = []
        for path in paths:
            group = group_of(rule, path)
            if group is None:
                break
            groups.append(group)
        if len(groups) < len(paths) or not _is_subject(groups, labels):
            continue
        if best is None or len(set(groups)) < len(set(best.groups)):
            quoted = pattern.replace("\\", "\\\\").replace('"', '\\"')
            best = GroupProposal(f'{{from: name, pattern: "{quoted}"}}', groups)
    return best


def _patterns(names: Sequence[str]) -> Iterator[str]:
    """Yield patterns that may find the subject in names: a word and its number, or a first part."""
    words: Counter[str] = Counter()
    for name in names:
        words.update(_numbered_words(name))
    common = []
    for word, n in words.items():
        if n == len(names):
            common.append(re.escape(word).replace("\\-", "-").replace("\\ ", " "))
    long = [word for word in common if len(word) > _SHORT_WORD]
    for word in long:
        yield f"{word}(?P<group>[0-9]+)"
    for mark in "_-. ":
        if all(mark in name for name in names):
            yield f"^(?P<group>[^{mark}]+)[{mark}]"
            yield f"^(?P<group>.+)[{mark}][^{mark}]+$"
    for word in common:
        if word not in long:
            yield f"(?<![A-Za-z]){word}(?P<group>[0-9]+)"
    for word in common:  # where each folder counts from 1 anew
        yield f"^(?P<group>.*/.*{word}[0-9]+)"


def _numbered_words(name: str) -> set[str]:
    """Return the words in a name that a number follows, with one mark between at most."""
    parts = _PARTS.findall(name)
    words = set()
    for word, mark, number in zip(parts, [*parts[1:], ""], [*parts[2:], "", ""], strict=False):
        if not word.isalpha():
            continue
        if mark.isdigit():
            words.add(word)
        elif number.isdigit() and len(mark) == 1:
            words.add(word + mark)
    return words


def _is_subject(groups: Sequence[str], labels: Sequence[str]) -> bool:
    """Return True if groups repeat, are many, and nearly all show one thing."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        labels_of[group].add(label)
    n_classes = len(set(labels))
    is_repeated = len(groups) >= 1.5 * len(labels_of)
    n_mixed = sum(len(shown) > 1 for shown in labels_of.values())
    is_many = len(labels_of) >= max(4, 2 * n_classes)
    return is_repeated and is_many and n_mixed <= 0.05 * len(labels_of)
