"""Reading all photos of a data set once, resumably, and finding those that show one picture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.catalog.listing import Listing, images_of
from data_prep.catalog.near_duplicates import candidates, compare_chunk, sets_of
from data_prep.catalog.photo_inspection import Facts, inspect_chunk
from data_prep.config import Data, TestTable
from data_prep.files import write_text

CHUNK = 64
"""Photos per task: 0.2 s of decoding at 384 x 512, so the fixed cost of a task is small beside it.
"""
MAX_COMPARED = 20_000
"""Pairs whose pixels are compared, the closest hashes first.

They take 2 minutes of one core. Real sets have a few hundred.
"""
_PAIRS = 128  # per task

MapChunks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Progress = Callable[[int, str], None]
Place = tuple[str, str]  # `images/` folder, path below it
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Photos:
    """The photos of both sides, the source's first, before they are named and sorted."""

    data: Data
    base: Path
    source: Listing
    test: Listing

    def places(self) -> list[Place]:
        """Return (`images/` folder, path below it) of each."""
        folder = images_of(self.data.source, self.base)
        places = [(folder, name) for name in self.source.relatives]
        if isinstance(self.data.test, TestTable):
            folder = images_of(self.data.test, self.base)
        return places + [(folder, name) for name in self.test.relatives]


def inspect_all(
    photos: Photos, *, map_chunks: MapChunks, progress: Progress | None, work: Path | None
) -> list[Facts]:
    """Read every photo that may be opened; results that are in `work` are not computed again.

    Returns:
        Facts in the order of the photos.
    """
    refusals = [*photos.source.refusals, *photos.test.refusals]
    facts = [Facts(None, None, None, str(problem)) for problem in refusals]
    places = photos.places()
    readable = [index for index, problem in enumerate(refusals) if problem is None]
    readable.sort(key=places.__getitem__)
    chunks = _chunks([places[index] for index in readable], CHUNK)
    n_done = 0
    for chunk in _resumable(chunks, map_chunks, work):
        for photo in chunk:
            facts[readable[n_done]] = photo
            n_done += 1
        if progress:
            progress(n_done, f"of {len(readable)} photos")
    return facts


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _resumable(
    chunks: list[list[Place]], map_chunks: MapChunks, work: Path | None
) -> Iterator[Iterable[Facts]]:
    """Inspect chunks in order. Each result gets a file of its own, which a second call reads."""
    if work is None:
        yield from map_chunks(inspect_chunk, chunks)
        return
    files = []
    missing = []
    for chunk in chunks:
        name = hashlib.sha256(json.dumps(chunk).encode()).hexdigest()[:32]
        files.append(work / f"{name}.json")
    stored = {path.name for path in work.iterdir()}
    for chunk, file in zip(chunks, files, strict=True):
        if file.name not in stored:
            missing.append(chunk)
    results = iter(map_chunks(inspect_chunk, missing))
    for file in files:
        if file.name in stored:
            yield [Facts(*row) for row in json.loads(file.read_text(encoding="utf-8"))]
            continue
        facts = list(next(results))
        write_text(file, json.dumps([dataclasses.astuple(photo) for photo in facts]))
        yield facts


@dataclasses.dataclass(frozen=True)
class NearSets:
    """Photos of different groups or sides that show one picture, as sets of positions.

    `n_left_out` counts pairs that look alike and were not compared, because there are more than
    `MAX_COMPARED`.
    """

    sets: list[list[int]]
    n_left_out: int


def near_sets(
    photos: Photos,
    facts: list[Facts],
    groups: Sequence[str | None],
    *,
    map_chunks: MapChunks,
    progress: Progress | None,
) -> NearSets:
    """Find the photos of different groups or sides that show one picture."""
    n_source = len(photos.source.relatives)
    places = photos.places()
    # the result must not depend on a table's order
    order = sorted(range(len(places)), key=places.__getitem__)
    pairs, _ = candidates([facts[index].phash for index in order])
    equal = []
    alike = []
    for a, b in pairs.tolist():
        first = order[a]
        second = order[b]
        is_one_side = (first < n_source) == (second < n_source)
        if groups[first] == groups[second] and is_one_side:
            continue
        if facts[first].sha256 == facts[second].sha256:
            equal.append((first, second))
        else:
            alike.append((first, second))
    compared = sorted(alike[:MAX_COMPARED])
    same = []
    n_done = 0
    parts = _chunks(compared, _PAIRS)
    jobs = [_paths(part, places) for part in parts]
    for part, answers in zip(parts, map_chunks(compare_chunk, jobs), strict=True):
        for pair, is_same in zip(part, answers, strict=True):
            if is_same:
                same.append(pair)
        n_done += len(part)
        if progress:
            note = f"photos; {n_done} of {len(compared)} pairs that look alike compared"
            progress(len(facts), note)
    return NearSets(list(sets_of([*equal, *same])), len(alike) - len(compared))


def _paths(pairs: list[Pair], places: list[Place]) -> list[tuple[str, str]]:
    return [("/".join(places[first]), "/".join(places[second])) for first, second in pairs]


def joined(groups: Sequence[str], facts: list[Facts], near: list[list[int]]) -> list[str]:
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
