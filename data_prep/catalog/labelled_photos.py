"""All that tables and names say of the photos, read and checked before any photo is opened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data_prep.catalog.label_schema import MISSING, Schema
from data_prep.catalog.photo_groups import group_name, group_of, read_groups
from data_prep.catalog.photo_listing import Listing, list_source, list_test
from data_prep.config import Data, TestHoldOut, TestTable
from data_prep.errors import LEAVE_OUT, LEFT_OUT, DataError, some
from data_prep.label_codes import read_codes, unlabelled


@dataclass(frozen=True)
class Rows:
    """The photos of both sides with groups and labels, in the order of their listings."""

    source: Listing
    test: Listing
    groups: list[str]  # of the source
    test_groups: list[str | None]
    readable: list[int]  # positions in the source of photos that may be opened
    codes: list[list[int]]  # per label, of the readable photos; MISSING where one is not known

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the tables were read."""
        return list(dict.fromkeys([*self.source.notes, *self.test.notes]))

    def complete(self) -> Rows:
        """Return the rows with those photos alone readable that have all labels."""
        kept = []
        for place, codes in enumerate(zip(*self.codes, strict=True)):
            if MISSING not in codes:
                kept.append(place)
        return replace(
            self,
            readable=[self.readable[place] for place in kept],
            codes=[[codes[place] for place in kept] for codes in self.codes],
        )


def read_rows(data: Data, base: Path) -> Rows:
    """List the photos, and read their groups and labels.

    Args:
        data: the spec's section.
        base: the folder that roots are relative to.

    Raises:
        DataError: a table, column, photo, group or label is not as the spec says.
    """
    source = list_source(data.source, base)
    groups = read_groups(data, source)
    may_lack = data.unlabelled == "keep"
    if data.unlabelled != "refuse":
        source = _without_unlabelled(data, source, wholly=may_lack)
    readable = [index for index, problem in enumerate(source.refusals) if problem is None]
    if not readable:
        raise DataError(
            "data.source",
            f"training photos were required, found none that may be opened: "
            f"{some(_reasons(source))}",
        )
    kept = source.where(set(readable).__contains__)
    codes = read_codes(data.labels, kept.relatives, kept.columns, may_lack=may_lack)
    test = Listing([], [], {})
    test_groups: list[str | None] = []
    if isinstance(data.test, TestTable):
        test = list_test(data.test, base)
        test_groups = _test_groups(data, data.test, test)
    return Rows(source, test, groups, test_groups, readable, codes)


def require_classes(data: Data, rows: Rows) -> None:
    """Raise if a class has no photo, or too few groups for the parts that need it.

    Photos that lack a label do not count: they are never scored.

    Raises:
        DataError: the text names the class and what can be done.
    """
    rows = rows.complete()
    if not rows.readable:
        raise DataError(
            "data.labels",
            "photos that have all labels were required, because scores count these alone; found "
            "none. Correct the data, or take a label out",
        )
    names = Schema.of(data.labels).classes
    for (label, classes), codes in zip(names.items(), rows.codes, strict=True):
        counts = Counter(codes)
        missing = [name for code, name in enumerate(classes) if not counts[code]]
        if missing:
            present = [f"{name} {counts[code]}" for code, name in enumerate(classes)]
            if len(missing) == len(classes) - 1:
                only = next(name for name in classes if name not in missing)
                raise DataError(
                    f"data.labels.{label}",
                    f"photos of two classes or more were required, found {counts.total()}, all of "
                    f"class {only}; add photos of another class, or choose another label",
                )
            raise DataError(
                f"data.labels.{label}",
                f"a photo of every class was required, found none of {some(missing)} "
                f"({', '.join(present)}). Add photos, or take the class out of the rule",
            )
    n_groups = len({rows.groups[index] for index in rows.readable})
    if n_groups < 2:
        only = rows.groups[rows.readable[0]]
        raise DataError(
            "data.group",
            f"at least 2 groups were required for training and validation, found 1 ({only!r}); "
            "name a column that tells the subjects apart, or group: sample_id where every photo is "
            "its own",
        )


class RareClass(NamedTuple):
    """A class that one group alone has: no split by groups can serve it."""

    label: str
    name: str
    n_photos: int

    @property
    def sentence(self) -> str:
        """What is wrong, and what helps."""
        return (
            f"class {self.name} has {self.n_photos} photo(s) of one group, so it cannot be in "
            f"training and validation both; {LEAVE_OUT}"
        )


def rare_classes(data: Data, rows: Rows) -> list[RareClass]:
    """Return the classes that one group alone has, of the photos that have all labels."""
    rows = rows.complete()
    rare = []
    names = Schema.of(data.labels).classes
    for (label, classes), codes in zip(names.items(), rows.codes, strict=True):
        groups_of: dict[int, set[str]] = defaultdict(set)
        for index, code in zip(rows.readable, codes, strict=True):
            groups_of[code].add(rows.groups[index])
        for code, groups in sorted(groups_of.items()):
            if len(groups) == 1:
                rare.append(RareClass(label, classes[code], codes.count(code)))
    return rare


def summary(data: Data, rows: Rows) -> list[str]:
    """Return lines that say how many photos, groups and classes there are."""
    groups = [rows.groups[index] for index in rows.readable]
    lines = [f"{len(groups)} photos in {group_sizes(groups)} (data.group: {data.group_text})"]
    n_refused = len(rows.source.relatives) - len(groups)
    if n_refused:
        reasons = Counter(problem for problem in rows.source.refusals if problem)
        first = next(iter(reasons))
        left_out = "1 file is left out" if n_refused == 1 else f"{n_refused} files are left out"
        lines.append(f"{left_out}, such as: {first.removeprefix(LEFT_OUT)}")
    names = Schema.of(data.labels).classes
    for (label, classes), codes in zip(names.items(), rows.codes, strict=True):
        counts = Counter(codes)
        text = ", ".join(f"{name} {counts[code]}" for code, name in enumerate(classes))
        lines.append(f"{label}: {text}")
    if text := lacking_text(data, rows):
        lines.append(text)
    if isinstance(data.test, TestTable):
        lines.append(f"{len(rows.test.relatives)} test photos")
    elif isinstance(data.test, TestHoldOut):
        lines.append(f"{data.test.hold_out:.0%} of the groups become the test set")
    return lines


def lacking_text(data: Data, rows: Rows) -> str:
    """Say how many photos lack a label, and of which; "" where none does."""
    n_complete = len(rows.complete().readable)
    n_lacking = len(rows.readable) - n_complete
    if not n_lacking:
        return ""
    parts = []
    for name, codes in zip(data.labels, rows.codes, strict=True):
        if n := codes.count(MISSING):
            parts.append(f"{name} {n}")
    but = ""
    if isinstance(data.test, TestHoldOut):
        but = ", except those whose group is in the test set, which are left out"
    return (
        f"photos that lack a label: {n_lacking} ({', '.join(parts)}). They train the labels they "
        f"have{but}; scores count the other {n_complete}"
    )


def group_sizes(groups: Sequence[str]) -> str:
    """Say how many groups of what size there are."""
    sizes = sorted(Counter(groups).values())
    if not sizes:
        return "0 groups"
    smallest = sizes[0]
    largest = sizes[-1]
    each = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    return f"{len(sizes)} group{'s' if len(sizes) > 1 else ''} of {each}"


def _without_unlabelled(data: Data, source: Listing, *, wholly: bool) -> Listing:
    """Refuse the photos that have no class of some label, or of any, each with its reason."""
    reasons = unlabelled(data.labels, source.relatives, source.columns, wholly=wholly)
    refusals = []
    for problem, reason in zip(source.refusals, reasons, strict=True):
        refusals.append(problem or (f"{LEFT_OUT}{reason}" if reason else None))
    return replace(source, refusals=refusals)


def _test_groups(data: Data, test: TestTable, listing: Listing) -> list[str | None]:
    if test.group is None and not isinstance(data.group, str):
        return [group_of(data.group, relative) for relative in listing.relatives]
    return [group_name(value) or None for value in listing.columns["group"]]


def _reasons(source: Listing) -> list[str]:
    reasons = []
    for relative, problem in zip(source.relatives, source.refusals, strict=True):
        if problem:
            reasons.append(f"{relative!r}: {problem}")
    return reasons
