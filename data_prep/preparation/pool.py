"""The actor pool: workers that stay warm take one photo after another; shards are committed.

A worker holds two calls at most, so no more photos wait than are worked on. An idle worker takes
photos of whatever shard is open, so nobody waits for a slow one. The pool asks the cluster for its
CPUs now and then: a node that joined gets workers, one that died costs the photos its workers held.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.catalog.images import MAX_BYTES
from data_prep.prep_config import Prep
from data_prep.preparation.photo_steps import Outcome, Preparation, Row, prepare_row
from data_prep.preparation.shard_builder import Assembly, ShardResult, ShardTask
from data_prep.process_title import show_process_title
from data_prep.roots.places import read_ahead

__all__ = ["PHOTO_TIMEOUT_S", "PoolError", "ShardResult", "ShardTask", "prepare_shards"]

PHOTO_TIMEOUT_S = 120.0
_CALL_S = 0.2  # a call should last about as long, so that its own millisecond does not count
_MAX_PHOTOS = 32  # in one call
_MAX_CALLS = 2  # that a worker holds: the next one is there when one ends
_CHECK_EVERY_S = 2.0
_MAX_TIMEOUTS = 2  # of one photo
_MAX_DEATHS = 3  # of workers at one photo; two may be due to kills from outside
_MAX_BAD_STARTS = 3  # in a row

Make = Callable[[Prep, int], Any]
"""Loads a preparation from (prep, threads)."""


class PoolError(RuntimeError):
    """A pool that cannot go on."""


class _Reply(NamedTuple):
    """What a worker answers to a call."""

    outcomes: list[Outcome]
    step_seconds: dict[str, float]
    wall_s: float


class PrepWorker:
    """The body of an actor: a preparation that stays loaded.

    The number is for those who watch: Ray's dashboard and `ps` show it.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"PrepWorker {self.number}"

    def load(self, prep: Prep, make: Make, threads: int) -> list[str]:
        """Load the models and return what the user should know about how they run."""
        self.preparation = make(prep, threads)
        return list(getattr(self.preparation, "warnings", ()))

    def prepare(self, rows: list[Row], shown: set[str]) -> _Reply:
        """Prepare a few photos; those in `shown` keep pictures of every step."""
        show_process_title(str(self))
        began = time.perf_counter()
        before = Counter(getattr(self.preparation, "seconds", {}))
        outcomes = []
        reads = read_ahead([path for _, path, _ in rows], MAX_BYTES)
        for row, read in zip(rows, reads, strict=True):
            outcomes.append(prepare_row(row, self.preparation, show=row[0] in shown, read=read))
        seconds = Counter(getattr(self.preparation, "seconds", {}))
        seconds.subtract(before)
        return _Reply(outcomes, dict(seconds), time.perf_counter() - began)


def real_preparation(prep: Prep, threads: int, *, gpu: bool = False) -> Preparation:
    """Load the real models."""
    return Preparation(prep, threads=threads, gpu=gpu)


@dataclass
class _Call:
    """A few photos of one shard that a worker was given."""

    shard: int
    rows: list[Row]
    reply: Any


@dataclass
class _WorkerState:
    """What the pool knows of one worker."""

    actor: Any
    loading: Any  # the reply that says it is ready; None from then on
    calls: deque[_Call] = field(default_factory=deque)
    since: float = 0.0  # when it began with its first call
    is_late: bool = False  # killed, because it took too long


@dataclass(frozen=True)
class _Options:
    """Settings of a pool."""

    prep: Prep
    work_dir: Path
    make: Make
    worker: type[PrepWorker]
    cpus: float  # per worker
    gpus: float  # per worker
    n_workers: float  # at most
    timeout_s: float  # for one photo
    progress: Callable[[int], None] | None
    say: Callable[[str], None] | None


def prepare_shards(
    tasks: Iterable[ShardTask],
    prep: Prep,
    work_dir: Path,
    *,
    cpus: float,
    gpus: float = 0,
    n_workers: int | None = None,
    timeout_s: float = PHOTO_TIMEOUT_S,
    make: Make | None = None,
    worker: type[PrepWorker] = PrepWorker,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[ShardResult]:
    """Make shards on a pool of Ray actors and yield each as it is finished, in any order.

    A worker that dies is replaced and its photos are given to others. A photo at which workers die
    again and again, or that takes longer than `timeout_s` twice, is quarantined.

    Args:
        tasks: the shards.
        prep: the spec's section.
        work_dir: where the files are written.
        cpus: per worker; also the threads of every library in it.
        gpus: per worker.
        n_workers: at most; by default as many as the cluster has room for, asked again while the
            pool runs.
        timeout_s: for one photo.
        make: loads a preparation from (prep, threads).
        worker: the body of the actors.
        progress: gets how many photos have an outcome.
        say: gets what the user should know, once each.

    Raises:
        PoolError: workers die before they are ready.
        WeightsError: a model's weights are missing or changed.
        MachineError: photos could not be read, and that says nothing about them.
    """
    options = _Options(
        prep,
        work_dir,
        make or partial(real_preparation, gpu=gpus > 0),
        worker,
        cpus,
        gpus,
        n_workers or math.inf,
        timeout_s,
        progress,
        say,
    )
    pool = _Pool(tasks, options)
    try:
        yield from pool.run()
    finally:
        pool.close()


class _Pool:
    def __init__(self, tasks: Iterable[ShardTask], options: _Options) -> None:
        import ray  # noqa: PLC0415

        self._ray = ray
        self._options = options
        remote = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0)
        self._actor = remote(options.worker)
        self._waiting = deque(tasks)
        self._n_unopened = sum(len(task.rows) for task in self._waiting)
        self._open: dict[int, Assembly] = {}
        self._complete: deque[int] = deque()  # shards of which every photo has an outcome
        self._queue: deque[tuple[int, Row]] = deque()  # photos that no worker has
        self._workers: list[_WorkerState] = []
        self._n_started = 0
        self._n_done = 0
        self._deaths = Counter[str]()  # by sample_id
        self._timeouts = Counter[str]()
        self._bad_starts = 0
        self._photo_s: float | None = None  # how long one photo takes, once known
        self._said: set[str] = set()

    def run(self) -> Iterator[ShardResult]:
        """Yield finished shards until none is left."""
        check_at = 0.0
        self._open_shards()
        while self._open or self._waiting:
            yield from self._finished_shards()
            now = time.monotonic()
            if now >= check_at:
                check_at = now + _CHECK_EVERY_S
                self._start_workers()
                self._kill_late_workers()
            self._dispatch()
            self._receive()
            self._open_shards()
        yield from self._finished_shards()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            self._ray.kill(worker.actor)

    # -- shards -----------------------------------------------------------------------------------

    def _open_shards(self) -> None:
        """Open shards until every worker can be given photos."""
        n_wanted = _MAX_PHOTOS * (len(self._workers) + 1)
        while self._waiting and len(self._queue) < n_wanted and not self._complete:
            task = self._waiting.popleft()
            assembly = Assembly(task)
            self._open[task.number] = assembly
            self._queue.extend((task.number, row) for row in assembly.left)
            self._n_unopened -= len(task.rows)
            self._count(assembly.n_copied)
            if assembly.is_complete:
                self._complete.append(task.number)

    def _finished_shards(self) -> Iterator[ShardResult]:
        while self._complete:
            yield self._open.pop(self._complete.popleft()).write(self._options.work_dir)
            self._open_shards()

    def _add(self, shard: int, outcome: Outcome) -> None:
        assembly = self._open[shard]
        if assembly.add(outcome):
            self._count(1)
            if assembly.is_complete:
                self._complete.append(shard)

    def _count(self, n_photos: int) -> None:
        self._n_done += n_photos
        if self._options.progress:
            self._options.progress(self._n_done)

    # -- workers ----------------------------------------------------------------------------------

    def _n_workers_that_fit(self) -> int:
        """Return how many workers the cluster can hold now, at least one."""
        resources = self._ray.cluster_resources()
        limit = self._options.n_workers
        for name, share in (("CPU", self._options.cpus), ("GPU", self._options.gpus)):
            if share:
                limit = min(limit, math.floor(resources.get(name, 0.0) / share + 1e-9))
        return int(max(1, limit))

    def _start_workers(self) -> None:
        """Start workers until there are as many as fit, and no more than there are photos."""
        n_photos = len(self._queue) + sum(len(worker.calls) for worker in self._workers)
        n_wanted = min(self._n_workers_that_fit(), n_photos)
        threads = max(1, int(self._options.cpus))
        for _ in range(n_wanted - len(self._workers)):
            self._n_started += 1
            actor = self._actor.remote(self._n_started)
            loading = actor.load.remote(self._options.prep, self._options.make, threads)
            self._workers.append(_WorkerState(actor, loading))

    def _kill_late_workers(self) -> None:
        """Kill the workers that have been at a call for too long."""
        now = time.monotonic()
        for worker in self._workers:
            if not worker.calls or worker.is_late:
                continue
            call = worker.calls[0]
            if now - worker.since <= self._options.timeout_s * len(call.rows):
                continue
            answered, _ = self._ray.wait([call.reply], timeout=0)
            if not answered:  # else the pool was late to look
                worker.is_late = True
                self._ray.kill(worker.actor)

    def _remove_worker(self, worker: _WorkerState, *, count_failure: bool = True) -> None:
        """Remove a dead worker and give its photos to others.

        Args:
            worker: is killed in any case.
            count_failure: count its end as a failure of the photos of its first call.

        Raises:
            PoolError: too many workers in a row died before they were ready.
        """
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # while it lives, an answer of it could be lost
        if worker.loading:
            self._bad_starts += 1
            if self._bad_starts >= _MAX_BAD_STARTS:
                raise PoolError(
                    f"workers must load the models, {_MAX_BAD_STARTS} in a row died before they "
                    "had; look at free memory, and at Ray's log of the worker"
                )
        for index, call in enumerate(worker.calls):
            is_suspect = count_failure and index == 0
            for row in reversed(call.rows):
                if not is_suspect:
                    self._queue.appendleft((call.shard, row))
                elif not self._count_failure(call, row, is_late=worker.is_late):
                    self._queue.append((call.shard, row))
        self._start_workers()

    def _count_failure(self, call: _Call, row: Row, *, is_late: bool) -> bool:
        """Count a death or a timeout at a photo; return True if the photo is quarantined for it."""
        sample = row[0]
        failures = self._timeouts if is_late else self._deaths
        limit = _MAX_TIMEOUTS if is_late else _MAX_DEATHS
        failures[sample] += int(len(call.rows) == 1)  # one photo of several is only suspected
        if failures[sample] < limit:
            return False
        reason = "crashed the worker"
        if is_late:
            reason = f"took longer than {self._options.timeout_s:g} s"
        text = f"{reason} {failures[sample]} times"
        self._add(call.shard, Outcome(sample, None, text, is_transient=True))
        return True

    # -- calls ------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give every worker that is ready the calls it may hold, one round after the other."""
        for _ in range(_MAX_CALLS):
            for worker in self._workers:
                is_ready = not worker.loading and not worker.is_late
                if self._queue and is_ready and len(worker.calls) < _MAX_CALLS:
                    self._send_call(worker)

    def _send_call(self, worker: _WorkerState) -> None:
        shard, first = self._queue.popleft()
        rows = [first]
        n_photos = self._call_size(first)
        while len(rows) < n_photos and self._queue:
            next_shard, row = self._queue[0]
            if next_shard != shard or self._is_suspect(row):
                break
            self._queue.popleft()
            rows.append(row)
        if not worker.calls:
            worker.since = time.monotonic()
        shown = self._open[shard].shown.intersection(sample for sample, _, _ in rows)
        worker.calls.append(_Call(shard, rows, worker.actor.prepare.remote(rows, shown)))

    def _is_suspect(self, row: Row) -> bool:
        return row[0] in self._deaths or row[0] in self._timeouts

    def _call_size(self, first: Row) -> int:
        """Return how many photos make a call.

        It is one while the speed is not known and for a suspected photo, few where photos are slow,
        and fewer at the end.
        """
        if self._photo_s is None or self._is_suspect(first):
            return 1
        n_left = len(self._queue) + self._n_unopened
        fair_share = n_left // (4 * max(1, len(self._workers)))
        by_time = int(_CALL_S / max(self._photo_s, 1e-6))
        return max(1, min(by_time, fair_share, _MAX_PHOTOS))

    def _receive(self) -> None:
        """Wait for answers and take those that are there."""
        replies = {}
        for worker in self._workers:
            if worker.loading or worker.calls:
                replies[worker.loading or worker.calls[0].reply] = worker
        if not replies:
            if self._open and not self._complete:
                time.sleep(_CHECK_EVERY_S / 4)  # no room for a worker now
            return
        answered, _ = self._ray.wait(list(replies), num_returns=1, timeout=_CHECK_EVERY_S)
        if answered:  # ask for all that have answered: wait() prefers the first of its list
            answered, _ = self._ray.wait(list(replies), num_returns=len(replies), timeout=0)
        for reply in answered:
            self._take_answer(replies[reply])

    def _take_answer(self, worker: _WorkerState) -> None:
        try:
            answer = self._ray.get(worker.loading or worker.calls[0].reply)
        except self._ray.exceptions.RayTaskError as error:
            # raised by the worker's own code: missing weights, or a fault of this project
            raise error.cause from error
        except self._ray.exceptions.RayError:
            self._remove_worker(worker)
            return
        if worker.loading:
            worker.loading = None
            self._bad_starts = 0
            self._say_once(answer)
            return
        call = worker.calls.popleft()
        worker.since = time.monotonic()
        self._photo_s = answer.wall_s / len(call.rows)
        self._open[call.shard].add_seconds(answer.step_seconds)
        for outcome in answer.outcomes:
            self._add(call.shard, outcome)
        if worker.is_late:  # the answer came while it was killed
            self._remove_worker(worker, count_failure=False)

    def _say_once(self, texts: list[str]) -> None:
        for text in texts:
            if text not in self._said and self._options.say:
                self._options.say(text)
            self._said.add(text)
