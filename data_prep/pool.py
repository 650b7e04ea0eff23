"""The actor pool: one warm preparation per worker, one shard the unit of work and of retry."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.config import Prep
from data_prep.images import PhotoError
from data_prep.prepare import Dropped, Preparation
from data_prep.shards import ShardError, read_shard, write_shard

_MAX_CRASHES = 2  # of a worker on one shard, before its photos are tried one by one


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    number: int
    rows: list[tuple[str, str, str]]  # sample_id, path, sha256 of the photo
    donors: list[Path] = field(default_factory=list)  # older shards made by the same steps
    avoid: tuple[str, ...] = ()  # samples that crashed a worker


@dataclass(frozen=True)
class ShardResult:
    """A shard that was made; the caller moves the file to its place."""

    task: ShardTask
    path: Path
    n_prepared: int
    n_copied: int
    quarantined: list[tuple[str, str]]  # sample_id, reason
    wall_s: float


def make_shard(task: ShardTask, preparation: Callable[..., Any], work_dir: Path) -> ShardResult:
    """Make one shard: copy what a donor has, prepare the rest, quarantine what cannot be prepared."""
    began = time.perf_counter()
    wanted = {sha256 for _, _, sha256 in task.rows}
    copies = _copies(task.donors, wanted)
    rows, quarantined, n_prepared = [], [(sample, "crashed the worker twice") for sample in task.avoid], 0
    for sample, path, sha256 in task.rows:
        if sample in task.avoid:
            continue
        if sha256 in copies:
            rows.append({**copies[sha256], "sample_id": sample})
            continue
        try:
            photo = Path(path).read_bytes()
            if hashlib.sha256(photo).hexdigest() != sha256:
                raise PhotoError("changed since the catalog was made")
            n_prepared += 1
            made = preparation(photo, always=sample.startswith("test/"))
        except (PhotoError, Dropped, OSError) as error:
            quarantined.append((sample, str(error)))
            continue
        except Exception as error:  # noqa: BLE001 - one photo that a library chokes on must not cost the shard
            quarantined.append((sample, f"{type(error).__name__}: {error}"))
            continue
        rows.append(
            {
                "sample_id": sample,
                "sha256": sha256,
                "image": made.image,
                "face_box": made.face_box,
                "face_confidence": made.face_confidence,
                "mask_area": made.mask_area,
                "outcome": made.outcome,
            }
        )
    place = work_dir / f"shard-{task.number:05}.parquet"
    write_shard(place, rows)
    return ShardResult(
        task,
        place,
        n_prepared,
        len(rows) + len(quarantined) - n_prepared - len(task.avoid),
        quarantined,
        time.perf_counter() - began,
    )


def _copies(donors: list[Path], wanted: set[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in donors:
        try:
            rows = read_shard(path).to_pylist()
        except ShardError:
            continue  # a broken donor is only a lost shortcut
        found |= {row["sha256"]: row for row in rows if row["sha256"] in wanted}
    return found


class Worker:
    """The body of an actor: a preparation that stays loaded."""

    def __init__(self, prep: Prep, make: Callable[[Prep, int], Any], threads: int) -> None:
        import cv2  # noqa: PLC0415

        cv2.setNumThreads(threads)
        self.preparation = make(prep, threads)

    def make(self, task: ShardTask, work_dir: Path) -> ShardResult:
        """Make one shard."""
        return make_shard(task, self.preparation, work_dir)


def real_preparation(prep: Prep, threads: int) -> Preparation:
    """Load the real models."""
    return Preparation(prep, threads=threads)


def prepare_shards(
    tasks: list[ShardTask],
    prep: Prep,
    work_dir: Path,
    *,
    n_workers: int,
    cpus: float,
    gpus: float = 0,
    make: Callable[[Prep, int], Any] = real_preparation,
) -> Iterator[ShardResult]:
    """Make shards on a pool of Ray actors and yield each as it is finished, in any order.

    A worker that dies is replaced and its shard made again; after the second death on one shard, its photos are tried
    in shards of one, and a photo that kills its worker again is quarantined.
    """
    import ray  # noqa: PLC0415

    threads = max(1, int(cpus))
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker)
    waiting, crashes = deque(sorted(tasks, key=lambda task: -len(task.rows))), Counter[int]()
    idle = [actor.remote(prep, make, threads) for _ in range(min(n_workers, len(tasks)))]
    busy: dict[Any, tuple[Any, ShardTask]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, task = idle.pop(), waiting.popleft()
                busy[worker.make.remote(task, work_dir)] = (worker, task)
            ready, _ = ray.wait(list(busy), num_returns=1)
            worker, task = busy.pop(ready[0])
            try:
                result = ray.get(ready[0])
            except ray.exceptions.RayActorError:
                crashes[task.number] += 1
                idle.append(actor.remote(prep, make, threads))
                if crashes[task.number] >= _MAX_CRASHES:
                    task = replace(task, avoid=_poison(task, actor, prep, make, threads, work_dir))
                waiting.append(task)
                continue
            idle.append(worker)
            yield result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            ray.kill(worker)


def _poison(task: ShardTask, actor: Any, prep: Prep, make: Any, threads: int, work_dir: Path) -> tuple[str, ...]:
    """Find the photos of a shard that kill a worker, by giving it one photo at a time."""
    import ray  # noqa: PLC0415

    found = list(task.avoid)
    alone = work_dir / "alone"
    alone.mkdir(exist_ok=True)
    worker = actor.remote(prep, make, threads)
    for row in task.rows:
        if row[0] in found:
            continue
        try:
            ray.get(worker.make.remote(ShardTask(task.number, [row], task.donors), alone))
        except ray.exceptions.RayActorError:
            found.append(row[0])
            worker = actor.remote(prep, make, threads)
    ray.kill(worker)
    return tuple(found)
