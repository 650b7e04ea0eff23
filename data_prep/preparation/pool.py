"""The actor pool: workers that stay warm, handed one photo after another; a shard is what is committed.

A worker holds two calls at most, so no more waits than is worked on. An idle worker takes photos of whatever shard is
open, so nobody waits for a slow one. The cluster is asked for its CPUs now and then: a node that joined gets workers,
one that died costs the photos its workers held.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.config import Prep
from data_prep.preparation.assembly import Assembly, ShardResult, ShardTask
from data_prep.preparation.pipeline import Outcome, Preparation, Row, prepare_row

__all__ = ["PHOTO_TIMEOUT_S", "PoolError", "ShardResult", "ShardTask", "prepare_shards"]

PHOTO_TIMEOUT_S = 120.0
_CALL_S = 0.2  # a call should last about as long, so that its own millisecond does not count
_MAX_PHOTOS = 32  # in one call
_IN_FLIGHT = 2  # calls a worker holds: the next one is there when one ends
_LOOK_EVERY_S = 2.0
_MAX_TIMEOUTS = 2
_MAX_DEATHS = (
    3  # of workers at one photo; two of them may be chance where workers are killed from outside
)
_MAX_BAD_STARTS = 3  # in a row


class PoolError(RuntimeError):
    """A pool that cannot go on."""


class Worker:
    """The body of an actor: a preparation that stays loaded."""

    def load(self, prep: Prep, make: Callable[[Prep, int], Any], threads: int) -> list[str]:
        """Load the models and return what the user should know about how they run."""
        self.preparation = make(prep, threads)
        return list(getattr(self.preparation, "warnings", ()))

    def prepare(
        self, rows: list[Row], shown: set[str]
    ) -> tuple[list[Outcome], dict[str, float], float]:
        """Prepare a few photos; return their outcomes, the seconds per step, and the seconds in all."""
        began, before = time.perf_counter(), Counter(getattr(self.preparation, "seconds", {}))
        outcomes = [prepare_row(row, self.preparation, show=row[0] in shown) for row in rows]
        spent = Counter(getattr(self.preparation, "seconds", {}))
        spent.subtract(before)
        return outcomes, dict(spent), time.perf_counter() - began


def real_preparation(prep: Prep, threads: int, *, gpu: bool = False) -> Preparation:
    """Load the real models."""
    return Preparation(prep, threads=threads, gpu=gpu)


@dataclass
class _Call:
    """A few photos of one shard that a worker was given."""

    number: int  # of the shard
    rows: list[Row]
    reply: Any


@dataclass
class _Hand:
    """What is known of one worker."""

    actor: Any
    loading: Any  # the reply that says it is ready; None from then on
    calls: deque[_Call] = field(default_factory=deque)
    since: float = 0.0  # when it began with its first call
    late: bool = False  # killed, because it took too long


def prepare_shards(
    tasks: Iterable[ShardTask],
    prep: Prep,
    work_dir: Path,
    *,
    cpus: float,
    gpus: float = 0,
    n_workers: int | None = None,
    timeout_s: float = PHOTO_TIMEOUT_S,
    make: Callable[[Prep, int], Any] | None = None,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[ShardResult]:
    """Make shards on a pool of Ray actors and yield each as it is finished, in any order.

    A worker that dies is replaced and its photos are given to others. A photo at which workers die again and again, or
    that takes longer than `timeout_s` twice, is quarantined.

    Args:
        tasks: the shards.
        prep: the spec's section.
        work_dir: where the files are written.
        cpus: per worker; also the threads of every library in it.
        gpus: per worker.
        n_workers: at most; as many as the cluster has room for by default, asked anew while the pool runs.
        timeout_s: for one photo.
        make: loads a preparation from (prep, threads).
        progress: gets how many photos have an outcome.
        say: gets what the user should know, once each.

    Raises:
        PoolError: workers die before they are ready.
        WeightsError: a model's weights are missing or changed.
        MachineError: photos could not be read, and that says nothing about them.
    """
    pool = _Pool(
        deque(tasks),
        prep,
        work_dir,
        make or partial(real_preparation, gpu=gpus > 0),
        cpus,
        gpus,
        n_workers or math.inf,
        timeout_s,
        progress or (lambda done: None),  # noqa: ARG005
        say or (lambda text: None),  # noqa: ARG005
    )
    try:
        yield from pool.run()
    finally:
        pool.close()


class _Pool:
    def __init__(
        self,
        waiting: deque[ShardTask],
        prep: Prep,
        work_dir: Path,
        make: Callable[[Prep, int], Any],
        cpus: float,
        gpus: float,
        n_workers: float,
        timeout_s: float,
        progress: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        import ray  # noqa: PLC0415

        self._ray, self._actor = (
            ray,
            ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker),
        )
        self._waiting, self._work_dir, self._timeout_s = waiting, work_dir, timeout_s
        self._load = (prep, make, max(1, int(cpus)))
        self._share, self._most = {"CPU": cpus, "GPU": gpus}, n_workers
        self._progress, self._say = progress, say
        self._open: dict[int, Assembly] = {}
        self._ready: deque[int] = deque()  # shards that are whole
        self._queue: deque[tuple[int, Row]] = deque()
        self._n_unopened = sum(len(task.rows) for task in waiting)
        self._n_done = 0
        self._hands: list[_Hand] = []
        self._deaths, self._timeouts = Counter[str](), Counter[str]()
        self._bad_starts = 0
        self._photo_s: float | None = None  # how long one photo takes, once known
        self._said: set[str] = set()

    def run(self) -> Iterator[ShardResult]:
        look_at = 0.0
        self._fill()
        while self._open or self._waiting:
            yield from self._finished()
            if (now := time.monotonic()) >= look_at:
                look_at = now + _LOOK_EVERY_S
                self._hire()
                self._kill_late()
            self._feed()
            replies = {
                hand.loading or hand.calls[0].reply: hand
                for hand in self._hands
                if hand.loading or hand.calls
            }
            if not replies:
                if self._open and not self._ready:
                    time.sleep(_LOOK_EVERY_S / 4)  # no room for a worker now
                continue
            answered, _ = self._ray.wait(list(replies), num_returns=1, timeout=_LOOK_EVERY_S)
            if answered:  # whoever else has answered too: wait() prefers the first of its list
                answered, _ = self._ray.wait(list(replies), num_returns=len(replies), timeout=0)
            for reply in answered:
                self._hear(replies[reply])
            self._fill()
        yield from self._finished()

    def close(self) -> None:
        for hand in self._hands:
            self._ray.kill(hand.actor)

    def _fill(self) -> None:
        """Open shards until every worker can be given photos."""
        while (
            self._waiting
            and len(self._queue) < _MAX_PHOTOS * (len(self._hands) + 1)
            and not self._ready
        ):
            assembly = Assembly(task := self._waiting.popleft())
            self._open[task.number] = assembly
            self._queue.extend((task.number, row) for row in assembly.left)
            self._n_unopened -= len(task.rows)
            self._count(assembly.n_copied)
            if assembly.done:
                self._ready.append(task.number)

    def _finished(self) -> Iterator[ShardResult]:
        while self._ready:
            yield self._open.pop(self._ready.popleft()).write(self._work_dir)
            self._fill()

    def _count(self, n_photos: int) -> None:
        self._n_done += n_photos
        self._progress(self._n_done)

    def _room(self) -> int:
        """Return how many workers the cluster can hold now."""
        has = self._ray.cluster_resources()
        fits = [
            math.floor(has.get(name, 0.0) / share + 1e-9)
            for name, share in self._share.items()
            if share
        ]
        return int(max(1, min([*fits, self._most])))

    def _hire(self) -> None:
        wanted = min(self._room(), len(self._queue) + sum(len(hand.calls) for hand in self._hands))
        for _ in range(wanted - len(self._hands)):
            actor = self._actor.remote()
            self._hands.append(_Hand(actor, actor.load.remote(*self._load)))

    def _feed(self) -> None:
        """Give every ready worker what it may hold, one round after the other."""
        for _ in range(_IN_FLIGHT):
            for hand in self._hands:
                if (
                    self._queue
                    and not hand.loading
                    and not hand.late
                    and len(hand.calls) < _IN_FLIGHT
                ):
                    self._give(hand)

    def _give(self, hand: _Hand) -> None:
        number, first = self._queue.popleft()
        rows = [first]
        while len(rows) < self._n_photos(first) and self._queue and self._queue[0][0] == number:
            if self._suspect(self._queue[0][1]):
                break
            rows.append(self._queue.popleft()[1])
        if not hand.calls:
            hand.since = time.monotonic()
        shown = self._open[number].shown.intersection(sample for sample, _, _ in rows)
        hand.calls.append(_Call(number, rows, hand.actor.prepare.remote(rows, shown)))

    def _suspect(self, row: Row) -> bool:
        return row[0] in self._deaths or row[0] in self._timeouts

    def _n_photos(self, first: Row) -> int:
        """Return how many photos make a call: few when they are slow, fewer at the end, one where one is suspected."""
        if self._photo_s is None or self._suspect(first):
            return 1
        fair = (len(self._queue) + self._n_unopened) // (4 * max(1, len(self._hands)))
        return max(1, min(int(_CALL_S / max(self._photo_s, 1e-6)), fair, _MAX_PHOTOS))

    def _hear(self, hand: _Hand) -> None:
        try:
            answer = self._ray.get(hand.loading or hand.calls[0].reply)
        except self._ray.exceptions.RayError as error:
            if isinstance(error, self._ray.exceptions.RayTaskError):
                raise error.cause from error  # what the worker's code itself raised: missing weights, a fault of ours
            self._bury(hand)
            return
        if hand.loading:
            hand.loading, self._bad_starts = None, 0
            for text in answer:
                if text not in self._said:
                    self._said.add(text)
                    self._say(text)
            return
        call = hand.calls.popleft()
        hand.since = time.monotonic()
        outcomes, seconds, wall_s = answer
        self._photo_s = wall_s / len(call.rows)
        self._open[call.number].spent(seconds)
        for outcome in outcomes:
            self._add(call.number, outcome)
        if hand.late:  # the answer came while it was killed
            self._bury(hand, blame=False)

    def _add(self, number: int, outcome: Outcome) -> None:
        assembly = self._open[number]
        if assembly.add(outcome):
            self._count(1)
            if assembly.done:
                self._ready.append(number)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for hand in self._hands:
            if (
                not hand.calls
                or hand.late
                or now - hand.since <= self._timeout_s * len(hand.calls[0].rows)
            ):
                continue
            if not self._ray.wait([hand.calls[0].reply], timeout=0)[
                0
            ]:  # else it was we who were late
                hand.late = True
                self._ray.kill(hand.actor)

    def _bury(self, hand: _Hand, *, blame: bool = True) -> None:
        """Take a dead worker out; blame the photos it was at, and give all it held to others."""
        self._hands.remove(hand)
        self._ray.kill(hand.actor)  # its answer may be lost while it lives
        if hand.loading:
            self._bad_starts += 1
            if self._bad_starts >= _MAX_BAD_STARTS:
                raise PoolError(
                    f"workers must load the models, {_MAX_BAD_STARTS} in a row died before they had; "
                    "look at free memory, and at Ray's log of the worker"
                )
        for at, call in enumerate(hand.calls):
            blamed = blame and at == 0
            for row in reversed(call.rows):
                if blamed and self._blame(call, row, late=hand.late):
                    continue
                (self._queue.append if blamed else self._queue.appendleft)((call.number, row))
        self._hire()

    def _blame(self, call: _Call, row: Row, *, late: bool) -> bool:
        """Count a death or a timeout against a photo, and return whether it is quarantined for it."""
        book, limit = (self._timeouts, _MAX_TIMEOUTS) if late else (self._deaths, _MAX_DEATHS)
        book[row[0]] += 1 if len(call.rows) == 1 else 0  # one of many is only suspected
        if book[row[0]] < limit:
            return False
        reason = f"took longer than {self._timeout_s:g} s" if late else "crashed the worker"
        self._add(call.number, Outcome(row[0], None, f"{reason} {book[row[0]]} times", chance=True))
        return True
