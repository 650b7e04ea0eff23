"""The inspection of all photos of a data set, in chunks, resumably."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.catalog.photo_inspection import Facts, inspect_chunk
from data_prep.catalog.photo_listing import Listing, images_of
from data_prep.config import Data, TestTable
from data_prep.files import write_text

CHUNK = 64
"""Photos per task: 0.2 s of decoding at 384 x 512, so the fixed cost of a task is small beside it.
"""

MapChunks = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Progress = Callable[[int, str], None]
Place = tuple[str, str]  # `images/` folder, path below it


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
    chunks = chunks_of([places[index] for index in readable], CHUNK)
    n_done = 0
    for chunk in _resumable(chunks, map_chunks, work):
        for photo in chunk:
            facts[readable[n_done]] = photo
            n_done += 1
        if progress:
            progress(n_done, f"of {len(readable)} photos")
    return facts


def chunks_of(items: list[Any], size: int) -> list[list[Any]]:
    """Return the items in lists of a size; the last may be shorter."""
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
