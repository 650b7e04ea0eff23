"""The group of every photo: a column of the table, or a part of its name or folder."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from data_prep.catalog.photo_listing import Listing
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


class GroupWords(NamedTuple):
    """What sentences call a group, and several of them."""

    one: str
    many: str

    @property
    def Many(self) -> str:  # noqa: N802 - the same at the start of a sentence
        """The plural at the start of a sentence."""
        return self.many[0].upper() + self.many[1:]


GROUP = GroupWords("group", "groups")
_IRREGULAR = {"person": "people", "child": "children", "man": "men", "woman": "women"}
_NO_SUBJECT = {
    "",
    "part",
    "group",
    "sample",
    "index",
    "image",
    "photo",
    "file",
    "filename",
    "row",
    "key",
}
_ENDINGS = {"id", "ids", "no", "nr", "num", "number", "name", "code", "key", "uid", "uuid"}


def group_words(group: str) -> GroupWords:
    """Return the words for a group, by the column it is read from: `plant_id` gives plants.

    A word before the group in a pattern counts like a column: `plant-(?P<group>[0-9]+)` gives
    plants. A rule, or a column whose name says nothing, such as `id`, gives groups.
    """
    group = group.removesuffix(" in the name of the photo")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_. -]*", group) or " of the photo" in group:
        return GROUP
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", group)
    parts = [part for part in re.split(r"[^a-z]+", words.lower()) if part]
    while parts and parts[-1] in _ENDINGS:
        parts.pop()
    one = " ".join(parts)
    if one in _NO_SUBJECT:
        return GROUP
    first, _, last = one.rpartition(" ")
    if last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return GroupWords(one, f"{first} {many}".strip())
