"""Sets of photos that show one picture, and the groups that they join."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from data_prep.catalog.batch_inspection import MapChunks, Photos, Place, Progress, chunks_of
from data_prep.catalog.near_duplicates import candidates, compare_chunk, sets_of
from data_prep.catalog.photo_inspection import Facts
from data_prep.catalog.photo_paths import sample_id_of
from data_prep.config import TestHoldOut
from data_prep.errors import DataError, some

MAX_COMPARED = 20_000
"""Pairs whose pixels are compared, the closest hashes first.

They take 2 minutes of one core. Real sets have a few hundred.
"""
_PAIRS = 128  # per task

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class NearSets:
    """Photos of different groups or sides that show one picture, as sets of positions.

    `n_left_out` counts pairs that look alike and were not compared, because there are more than
    `MAX_COMPARED`. `notes` says what `data.not_copies` keeps apart.
    """

    sets: list[list[int]]
    n_left_out: int
    notes: list[str]


def near_sets(
    photos: Photos,
    facts: list[Facts],
    groups: Sequence[str | None],
    *,
    map_chunks: MapChunks,
    progress: Progress | None,
) -> NearSets:
    """Find the photos of different groups or sides that show one picture.

    Raises:
        DataError: `data.not_copies` names a photo that the data set does not have.
    """
    n_source = len(photos.source.relatives)
    places = photos.places()
    # the result must not depend on a table's order
    order = sorted(range(len(places)), key=places.__getitem__)
    pairs, _ = candidates([facts[index].phash for index in order])
    told_apart = _told_apart(photos)
    equal = []
    alike = []
    n_told_apart = 0
    for a, b in pairs.tolist():
        first = order[a]
        second = order[b]
        is_one_side = (first < n_source) == (second < n_source)
        if groups[first] == groups[second] and is_one_side:
            continue
        if facts[first].sha256 == facts[second].sha256:
            equal.append((first, second))
        elif told_apart == "all" or frozenset((first, second)) in told_apart:
            n_told_apart += 1
        else:
            alike.append((first, second))
    compared = sorted(alike[:MAX_COMPARED])
    same = []
    n_done = 0
    parts = chunks_of(compared, _PAIRS)
    jobs = [_paths(part, places) for part in parts]
    for part, answers in zip(parts, map_chunks(compare_chunk, jobs), strict=True):
        for pair, is_same in zip(part, answers, strict=True):
            if is_same:
                same.append(pair)
        n_done += len(part)
        if progress:
            note = f"photos; {n_done} of {len(compared)} pairs that look alike compared"
            progress(len(facts), note)
    notes = []
    if n_told_apart:
        notes.append(f"{n_told_apart} pairs that look alike are no copies, by data.not_copies")
    return NearSets(list(sets_of([*equal, *same])), len(alike) - len(compared), notes)


def _told_apart(photos: Photos) -> Literal["all"] | set[frozenset[int]]:
    """Return the pairs of positions that `data.not_copies` names.

    Raises:
        DataError: it names a photo that the data set does not have.
    """
    lists = photos.data.not_copies
    if lists == "all":
        return "all"
    sides = ["train"]
    if isinstance(photos.data.test, TestHoldOut):  # a photo that is held out is named by that side
        sides.append("test")
    positions = {}
    for index, relative in enumerate(photos.source.relatives):
        for side in sides:
            positions[sample_id_of(side, relative)] = index
    for index, relative in enumerate(photos.test.relatives, len(photos.source.relatives)):
        positions[sample_id_of("test", relative)] = index
    unknown = {name for names in lists for name in names} - set(positions)
    if unknown:
        raise DataError(
            "data.not_copies",
            f"photos of the data set were required, found none named {some(sorted(unknown))}; "
            "write sample ids as the audit does, such as train/a.jpg",
        )
    pairs = set()
    for names in lists:
        for first, second in combinations(names, 2):
            pairs.add(frozenset((positions[first], positions[second])))
    return pairs


def _paths(pairs: list[Pair], places: list[Place]) -> list[tuple[str, str]]:
    return [("/".join(places[first]), "/".join(places[second])) for first, second in pairs]


def join_groups(groups: Sequence[str], facts: list[Facts], near: list[list[int]]) -> list[str]:
    """Give groups that share a photo or a near-duplicate one name.

    Photos of the test table join nothing.
    """
    names = sorted(set(groups))
    number = {name: index for index, name in enumerate(names)}
    links = []
    for alike in near:
        members = [number[groups[index]] for index in alike if index < len(groups)]
        links += [(members[0], member) for member in members]
    first_with: dict[str, str] = {}
    for group, photo in zip(groups, facts, strict=False):
        if photo.sha256 is not None:
            links.append((number[first_with.setdefault(photo.sha256, group)], number[group]))
    name_of = {name: name for name in names}
    for members in sets_of(links):
        joined_name = "+".join(names[index] for index in members)
        for index in members:
            name_of[names[index]] = joined_name
    return [name_of[group] for group in groups]
