"""A shard on its way: what older shards give it, what workers send in, and the file at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.preparation import contact_sheet as sheet
from data_prep.preparation.pipeline import Outcome, Row
from data_prep.preparation.shards import ShardError, read_shard, shard_name, write_shard

SHEET_SUFFIX = ".sheet.json"


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    number: int
    rows: list[Row]
    donors: list[Path] = field(default_factory=list)  # older shards made by the same steps


@dataclass(frozen=True)
class ShardResult:
    """A shard that was made; the caller moves its files to their place."""

    task: ShardTask
    path: Path
    sheet: Path
    n_prepared: int
    n_copied: int
    quarantined: list[tuple[str, str]]  # sample_id, reason
    wall_s: float
    seconds: dict[str, float]  # spent by workers, by step
    by_chance: list[str] = field(
        default_factory=list
    )  # sample_ids of the quarantined that another try may bring back


class Assembly:
    """Collects one shard. `left` holds the photos that somebody must prepare."""

    def __init__(self, task: ShardTask) -> None:
        """Copy what the donors have; a broken donor is only a lost shortcut."""
        self.task = task
        self._began = time.perf_counter()
        self._rows: list[dict[str, Any]] = []
        self._quarantined: dict[str, str] = {}
        self._by_chance: set[str] = set()
        self._seconds: Counter[str] = Counter()
        self.n_prepared = 0
        found, films = _donated(task)
        copies = {row[0]: found[of] for row in task.rows if (of := _photo(row[0], row[2])) in found}
        self._rows += [{**row, "sample_id": sample} for sample, row in copies.items()]
        self._films = [film for film in films if film.sample_id in copies]
        self.n_copied = len(copies)
        self.left = [row for row in task.rows if row[0] not in copies]
        self.shown = sheet.ordinary(sample for sample, _, _ in task.rows)
        self._missing = {sample for sample, _, _ in self.left}

    @property
    def done(self) -> bool:
        """Whether every photo has an outcome."""
        return not self._missing

    def add(self, outcome: Outcome) -> bool:
        """Take what became of one photo; a second answer for the same one is dropped. Returns whether it was new."""
        if outcome.sample not in self._missing:
            return False
        self._missing.remove(outcome.sample)
        self.n_prepared += 1
        if outcome.row is None:
            self._quarantined[outcome.sample] = outcome.reason or "no reason was given"
            self._by_chance.update([outcome.sample] if outcome.chance else [])
        else:
            self._rows.append(outcome.row)
        if outcome.film:
            self._films = sheet.keep([*self._films, outcome.film], sheet.PER_SHARD)
        return True

    def spent(self, seconds: dict[str, float]) -> None:
        """Add what workers spent on its steps."""
        self._seconds.update(seconds)

    def write(self, folder: Path) -> ShardResult:
        """Write the shard and its contact sheet."""
        path = folder / shard_name(self.task.number)
        write_shard(path, self._rows)
        films = folder / (path.name + SHEET_SUFFIX)
        films.write_text(
            json.dumps(sheet.to_json(sheet.keep(self._films, sheet.PER_SHARD))), encoding="utf-8"
        )
        return ShardResult(
            self.task,
            path,
            films,
            self.n_prepared,
            self.n_copied,
            sorted(self._quarantined.items()),
            time.perf_counter() - self._began,
            {name: round(value, 3) for name, value in sorted(self._seconds.items())},
            sorted(self._by_chance),
        )


def read_sheet(path: Path) -> list[sheet.Film]:
    """Read a contact sheet; one that is missing or broken is empty."""
    try:
        return sheet.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def _donated(task: ShardTask) -> tuple[dict[tuple[str, str], dict[str, Any]], list[sheet.Film]]:
    wanted = {_photo(sample, sha256) for sample, _, sha256 in task.rows}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    films: list[sheet.Film] = []
    for path in task.donors:
        try:
            rows: Iterable[dict[str, Any]] = read_shard(path).to_pylist()
        except ShardError:
            continue
        found |= {
            of: row for row in rows if (of := _photo(row["sample_id"], row["sha256"])) in wanted
        }
        films += read_sheet(path.with_name(path.name + SHEET_SUFFIX))
    return found, films


def _photo(sample: str, sha256: str) -> tuple[str, str]:
    """Return what decides a row: the bytes, and the side, since a policy drops training photos only."""
    return sample.partition("/")[0], sha256
