"""What the columns of a table and the names of photos may mean: labels, and groups.

Imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_prep.catalog.photo_groups import group_of
from data_prep.config import NameGroup
from orchestrator.spec.folder_survey import Column, FoundTable

MAX_CLASSES = 100
_MAX_LABELS = 3
_MAX_JOINT = 100
_N_BINS = 3
_SHORT_WORD = 2  # letters: found inside other words
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
class Labels:
    """A proposed label of a column: classes or bins, and what they leave out."""

    column: str
    classes: list[str] = field(default_factory=list)
    bins: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # classes of one group
    n_missing: int = 0


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
