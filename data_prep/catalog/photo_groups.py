"""The group of every photo: a column of the table, or a part of its name or folder."""

from __future__ import annotations

import re
from typing import Any

from data_prep.catalog.listing import Listing
from data_prep.catalog.photo_paths import composed
from data_prep.config import Data, FolderGroup, NameGroup
from data_prep.errors import DataError, nearest, some

WHERE = "data.group"


def read_groups(data: Data, source: Listing) -> list[str]:
    """Return the group of every photo. With `sample_id` every photo is its own group.

    Blanks around a group's name are no part of it, and its two Unicode forms (NFC and NFD) are one:
    else photos of one group would stand on both sides of a split.

    Raises:
        DataError: there is no such column, or a photo has no group.
    """
    rule = data.group
    if rule == "sample_id":
        return list(source.relatives)
    if isinstance(rule, str):
        values = _cells(rule, source)
        required = f"a value of {rule}"
    else:
        values = [group_of(rule, relative) for relative in source.relatives]
        required = f"a part of the {rule.source} that fits the rule ({data.group_text})"
    groups = []
    empty = []
    rows = zip(source.relatives, values, source.refusals, strict=True)
    for relative, value, refused in rows:
        group = group_name(value)
        if not group and refused and not isinstance(rule, str):
            group = relative  # a file that is no photo need not follow the rule
        groups.append(group)
        if not group:
            empty.append(relative)
    if empty:
        raise DataError(
            WHERE,
            f"{required} was required for every photo, {len(empty)} have none: {some(empty)}",
        )
    return groups


def group_name(value: Any) -> str:
    """Return the name of the group that a cell means, "" for an empty one."""
    return "" if value is None else composed(str(value).strip())


def group_of(rule: NameGroup | FolderGroup, relative: str) -> str | None:
    """Return the group of a photo by its path below the photos' folder, None if there is none."""
    folder, _, name = relative.rpartition("/")
    if isinstance(rule, FolderGroup):
        last = folder.rpartition("/")[2]
        if rule.part is None:
            return last or None
        parts = last.split(rule.separator)
        return parts[rule.part] if rule.part < len(parts) else None
    stem = name.rpartition(".")[0] or name
    is_of_path = "/" in rule.pattern
    text = f"{folder}/{stem}" if is_of_path and folder else stem
    match = re.search(composed(rule.pattern), composed(text))
    return match["group"] if match else None


def _cells(column: str, source: Listing) -> list[Any]:
    if column not in source.columns:
        raise DataError(
            WHERE,
            f"a column of the source was required, found {column!r}; "
            f"columns are {', '.join(source.columns)} (sample_id: every photo is its own group)"
            f"{nearest(column, source.columns)}",
        )
    return source.columns[column]
