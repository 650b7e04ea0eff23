"""Looking at all photos of a data set, once: their facts, resumably, and which of them show one picture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.audit.duplicates import candidates, compare_chunk, sets_of
from data_prep.catalog.inspection import Facts, inspect_chunk
from data_prep.catalog.sources import Listing, images_of
from data_prep.config import Data, TestTable

CHUNK = 64
"""Photos per task: 0.2 s of decoding at 384 x 512, so that a task's fixed cost is small beside it."""
MAX_COMPARED = 20_000
"""Pairs whose pixels are compared, the closest hashes first: 2 minutes of one core. Real sets have a few hundred."""
_PAIRS = 128  # per task

MapChunks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Photos:
    """The photos of both sides, the source's first, before they are named and sorted."""

    data: Data
    base: Path
    source: Listing
    test: Listing

    def places(self) -> list[tuple[str, str]]:
        """Return (`images/` folder, path below it) of each."""
        here = images_of(self.data.source, self.base)
        there = (
            images_of(self.data.test, self.base) if isinstance(self.data.test, TestTable) else here
        )
        return [
            *((here, name) for name in self.source.relatives),
            *((there, name) for name in self.test.relatives),
        ]


def inspect_all(
    photos: Photos,
    *,
    map_chunks: MapChunks,
    progress: Callable[[int, str], None] | None,
    work: Path | None,
) -> list[Facts]:
    """Read every photo that may be opened; what stands in `work` is read from there. Facts in the photos' order."""
    refusals = [*photos.source.refusals, *photos.test.refusals]
    facts = [Facts(None, None, None, str(problem)) for problem in refusals]
    places = photos.places()
    todo = sorted(
        (at for at, problem in enumerate(refusals) if problem is None), key=places.__getitem__
    )
    chunks = [
        [places[at] for at in todo[start : start + CHUNK]] for start in range(0, len(todo), CHUNK)
    ]
    done = 0
    for chunk in _resumable(chunks, map_chunks, work):
        for fact in chunk:
            facts[todo[done]] = fact
            done += 1
        if progress:
            progress(done, f"of {len(todo)} photos")
    return facts


def _resumable(
    chunks: list[list[tuple[str, str]]], map_chunks: MapChunks, work: Path | None
) -> Iterator[Iterable[Facts]]:
    """Inspect chunks in order, each kept in a file of its own as soon as it is known; kept ones are read instead."""
    if work is None:
        yield from map_chunks(inspect_chunk, chunks)
        return
    names = [
        hashlib.sha256(json.dumps(chunk).encode()).hexdigest()[:32] + ".json" for chunk in chunks
    ]
    kept = {path.name for path in work.iterdir()}
    fresh = iter(
        map_chunks(
            inspect_chunk, [c for c, name in zip(chunks, names, strict=True) if name not in kept]
        )
    )
    for name in names:
        if name in kept:
            yield [Facts(*row) for row in json.loads((work / name).read_text(encoding="utf-8"))]
            continue
        found = list(next(fresh))
        beside = work / f".{name}"
        beside.write_text(
            json.dumps([dataclasses.astuple(fact) for fact in found]), encoding="utf-8"
        )
        beside.replace(work / name)
        yield found


def near_sets(
    photos: Photos,
    facts: list[Facts],
    groups: Sequence[str | None],
    *,
    map_chunks: MapChunks,
    progress: Callable[[int, str], None] | None,
) -> tuple[list[list[int]], int]:
    """Find the photos of different groups or sides that show one picture.

    Returns:
        Sets of positions, and how many pairs that look alike were left out because there are more than `MAX_COMPARED`.
    """
    n_source, places = len(photos.source.relatives), photos.places()
    order = sorted(
        range(len(places)), key=places.__getitem__
    )  # what is found must not depend on a table's order
    pairs, _ = candidates([facts[at].phash for at in order])
    found = [(order[a], order[b]) for a, b in pairs.tolist()]
    apart = [(a, b) for a, b in found if groups[a] != groups[b] or (a < n_source) != (b < n_source)]
    certain = [(a, b) for a, b in apart if facts[a].sha256 == facts[b].sha256]
    alike = [(a, b) for a, b in apart if facts[a].sha256 != facts[b].sha256]
    asked = sorted(alike[:MAX_COMPARED])
    paths = [f"{folder}/{name}" for folder, name in places]
    parts = [asked[start : start + _PAIRS] for start in range(0, len(asked), _PAIRS)]
    jobs = [[(paths[a], paths[b]) for a, b in part] for part in parts]
    same, done = [], 0
    for part, equal in zip(parts, map_chunks(compare_chunk, jobs), strict=True):
        same += [pair for pair, one in zip(part, equal, strict=True) if one]
        done += len(part)
        if progress:
            progress(len(facts), f"photos; {done} of {len(asked)} pairs that look alike compared")
    return list(sets_of([*certain, *same])), len(alike) - len(asked)


def joined(groups: Sequence[str], facts: list[Facts], near: list[list[int]]) -> list[str]:
    """Give groups that share a photo or a near-duplicate one name; the test table's photos join nothing."""
    names = sorted(set(groups))
    number = {name: at for at, name in enumerate(names)}
    links = [
        (number[groups[alike[0]]], number[groups[at]])
        for alike in near
        for at in alike
        if at < len(groups)
    ]
    first: dict[str, str] = {}
    for group, fact in zip(groups, facts, strict=False):
        if fact.sha256 is not None:
            links.append((number[first.setdefault(fact.sha256, group)], number[group]))
    parts = {member: members for members in sets_of(links) for member in members}
    return [
        "+".join(names[at] for at in parts.get(number[group], [number[group]])) for group in groups
    ]
