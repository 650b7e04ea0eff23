"""One shard in the making: copies from older shards, outcomes of workers, and the file."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import write_text
from data_prep.preparation import step_films as sheet
from data_prep.preparation.photo_steps import Outcome, Row
from data_prep.preparation.shards import ShardError, ShardRow, read_shard, shard_name, write_shard

SHEET_SUFFIX = ".sheet.json"
_PhotoKey = tuple[str, str]  # side, sha256


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    number: int
    rows: list[Row]
    donors: list[Path] = field(default_factory=list)  # older shards made by the same steps


@dataclass(frozen=True)
class ShardResult:
    """A finished shard; the caller moves its files to their place."""

    task: ShardTask
    path: Path
    sheet: Path
    n_prepared: int
    n_copied: int
    quarantined: list[tuple[str, str]]  # sample_id, reason
    wall_s: float
    seconds: dict[str, float]  # spent by workers, by step
    by_chance: list[str] = field(default_factory=list)  # quarantined ones that are worth a retry


@dataclass(frozen=True)
class _Donation:
    """What older shards hold of the photos of a task."""

    rows: dict[_PhotoKey, ShardRow]
    films: list[sheet.Film]


class Assembly:
    """Collects one shard. `left` holds the photos that workers must prepare."""

    def __init__(self, task: ShardTask) -> None:
        """Copy what the donors have; a broken donor is only a lost shortcut."""
        self.task = task
        self._began = time.perf_counter()
        self._rows: list[ShardRow] = []
        self._quarantined: dict[str, str] = {}
        self._transient: set[str] = set()
        self._seconds: Counter[str] = Counter()
        self.n_prepared = 0
        donation = _donation(task)
        self.left: list[Row] = []
        for row in task.rows:
            sample, _, sha256 = row
            donated = donation.rows.get(_photo_key(sample, sha256))
            if donated is None:
                self.left.append(row)
            else:
                self._rows.append({**donated, "sample_id": sample})
        copied = {row["sample_id"] for row in self._rows}
        self._films = [film for film in donation.films if film.sample_id in copied]
        self.n_copied = len(copied)
        self.shown = sheet.ordinary(sample for sample, _, _ in task.rows)
        self._missing = {sample for sample, _, _ in self.left}

    @property
    def is_complete(self) -> bool:
        """Return True if every photo has an outcome."""
        return not self._missing

    def add(self, outcome: Outcome) -> bool:
        """Take the outcome of one photo; return False for a second one, which is dropped."""
        if outcome.sample not in self._missing:
            return False
        self._missing.remove(outcome.sample)
        self.n_prepared += 1
        if outcome.row is not None:
            self._rows.append(outcome.row)
        else:
            self._quarantined[outcome.sample] = outcome.reason or "no reason was given"
            if outcome.is_transient:
                self._transient.add(outcome.sample)
        if outcome.film:
            self._films = sheet.keep([*self._films, outcome.film], sheet.PER_SHARD)
        return True

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add what workers spent on its steps."""
        self._seconds.update(seconds)

    def write(self, folder: Path) -> ShardResult:
        """Write the shard and its contact sheet."""
        path = folder / shard_name(self.task.number)
        write_shard(path, self._rows)
        films = sheet.to_json(sheet.keep(self._films, sheet.PER_SHARD))
        sheet_path = folder / (path.name + SHEET_SUFFIX)
        write_text(sheet_path, json.dumps(films))
        return ShardResult(
            self.task,
            path,
            sheet_path,
            self.n_prepared,
            self.n_copied,
            sorted(self._quarantined.items()),
            time.perf_counter() - self._began,
            {name: round(value, 3) for name, value in sorted(self._seconds.items())},
            sorted(self._transient),
        )


def read_sheet(path: Path) -> list[sheet.Film]:
    """Read a contact sheet; one that is missing or broken is empty."""
    try:
        return sheet.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def _donation(task: ShardTask) -> _Donation:
    wanted = {_photo_key(sample, sha256) for sample, _, sha256 in task.rows}
    donation = _Donation({}, [])
    for path in task.donors:
        try:
            rows: list[ShardRow] = read_shard(path).to_pylist()
        except ShardError:
            continue
        for row in rows:
            key = _photo_key(row["sample_id"], row["sha256"])
            if key in wanted:
                donation.rows[key] = row
        donation.films.extend(read_sheet(path.with_name(path.name + SHEET_SUFFIX)))
    return donation


def _photo_key(sample: str, sha256: str) -> _PhotoKey:
    """Return what decides a row: bytes, and side, because a policy drops training photos only."""
    return sample.partition("/")[0], sha256
