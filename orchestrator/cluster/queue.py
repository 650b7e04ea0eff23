"""The queue of a shared cluster: a small actor that says which run may train, and its drivers' side.

The actor holds nothing that a driver could not tell it again: after its death it comes back empty, and
every driver registers anew within seconds. Until then it admits nobody.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from orchestrator.base.errors import UserError

NAME = "robust_vote_queue"
NAMESPACE = "robust_vote"
REPORT_EVERY_S = 1.0
_POLL_S = 0.1
_ANSWER_S = 10.0
_FIRST_ANSWER_S = 90.0
_SILENT_S = 20.0  # after which a driver that does not report counts as dead
_AWAY_S = 12.0  # without a report of anybody, which a slow network does not explain
_GATHER_S = 4.0  # after the actor's start, before it admits anybody
_IDLE_S = 20.0  # without a report, after which the actor ends: nobody is left who would end it

GO = "go"
WAIT = "wait"
YIELD = "yield"


@dataclass(frozen=True)
class Place:
    """A run in the queue, as its driver reports it."""

    run_id: str
    user: str
    priority: int
    since: float  # when it was submitted, seconds since 1970
    is_active: bool = False  # it was admitted, and has not yielded since
    max_runs: int | None = None  # that its driver wants at a time


@dataclass(frozen=True)
class Answer:
    """What a run may do, and how many wait before it."""

    word: str  # go | wait | yield
    n_ahead: int = 0


def decide(
    places: Sequence[Place], last_turns: Mapping[str, int] | None = None
) -> dict[str, Answer]:
    """Return what each run may do; a pure function.

    Higher priorities come first. Within one, runs that are active stay, then the user with the fewest
    runs before it is next, then the user whose last turn is longest ago, then the run that came
    first. The smallest limit that a driver names counts. A run that has to yield keeps its place
    until it has no trial left.

    Args:
        places: of all runs that work or wait.
        last_turns: user -> number of the last turn that one of its runs got; a user without one comes first.
    """
    limits = [place.max_runs for place in places if place.max_runs is not None]
    limit = min(limits) if limits else len(places)
    order = _in_order(places, last_turns or {})
    chosen = order[:limit]
    n_free = limit - sum(place.is_active for place in places)
    answers: dict[str, Answer] = {}
    n_ahead = 0
    for place in order:
        if place in chosen and place.is_active:
            answers[place.run_id] = Answer(GO)
        elif place in chosen and n_free > 0:
            answers[place.run_id] = Answer(GO)
            n_free -= 1
        elif place.is_active:
            answers[place.run_id] = Answer(YIELD)
        else:
            answers[place.run_id] = Answer(WAIT, n_ahead)
            n_ahead += 1
    return answers


def _in_order(places: Sequence[Place], last_turns: Mapping[str, int]) -> list[Place]:
    """Return the places in the order in which they get their turn."""
    left = list(places)
    order: list[Place] = []
    n_before: Counter[str] = Counter()  # user -> runs
    while left:

        def turn(place: Place) -> tuple[int, bool, int, int, float, str]:
            return (
                -place.priority,
                not place.is_active,
                n_before[place.user],
                last_turns.get(place.user, 0),
                place.since,
                place.run_id,
            )

        first = min(left, key=turn)
        left.remove(first)
        order.append(first)
        n_before[first.user] += 1
    return order


class Queue:
    """What the actor does."""

    def __init__(
        self, *, gathers: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin empty.

        Args:
            gathers: admit nobody for some seconds, because others may be active.
            clock: seconds.
        """
        self._clock = clock
        self._places: dict[str, Place] = {}
        self._heard: dict[str, float] = {}  # run -> when
        self._last_turns: dict[str, int] = {}  # user with a place -> number of a turn
        self._n_turns = 0
        self._reported = clock()  # when anybody did
        self._opens = clock() + (_GATHER_S if gathers else 0.0)

    def report(self, place: Place) -> Answer:
        """Take in a run, new or known, and return what it may do."""
        now = self._clock()
        if now - self._reported > _AWAY_S:  # this process was away, and not all the drivers
            self._heard = dict.fromkeys(self._heard, now)
        self._reported = now
        self._places[place.run_id] = place
        self._heard[place.run_id] = now
        for run_id, heard in list(self._heard.items()):
            if now - heard > _SILENT_S:
                self.forget(run_id)
        answer = decide(list(self._places.values()), self._last_turns)[place.run_id]
        if answer.word != GO or place.is_active:
            return answer
        if now < self._opens:
            return Answer(WAIT)
        self._places[place.run_id] = replace(place, is_active=True)
        self._n_turns += 1
        self._last_turns[place.user] = self._n_turns
        return answer

    def forget(self, run_id: str) -> bool:
        """Drop a run that has ended; return True if the queue is empty now."""
        self._places.pop(run_id, None)
        self._heard.pop(run_id, None)
        users = {place.user for place in self._places.values()}
        for user in self._last_turns.keys() - users:
            del self._last_turns[user]
        return not self._places


class _QueueActor(Queue):
    """The same as an actor, which ends when nobody is left.

    The last run says that it ends. Where it cannot, because it was killed or the actor was just
    being started again, the actor ends by itself.
    """

    def __init__(self, *, gathers: bool) -> None:
        import ray  # noqa: PLC0415

        context = ray.get_runtime_context()
        super().__init__(gathers=gathers or context.was_current_actor_reconstructed)
        myself = context.current_actor
        threading.Thread(target=self._end_when_idle, args=(myself,), daemon=True).start()

    def _end_when_idle(self, myself: Any) -> None:
        import ray  # noqa: PLC0415

        while self._clock() - self._reported < _IDLE_S:
            time.sleep(1)
        ray.kill(myself)  # for good; `exit_actor` is for methods alone

    def forget(self, run_id: str) -> bool:
        import ray  # noqa: PLC0415

        is_empty = super().forget(run_id)
        if is_empty:
            ray.actor.exit_actor()
        return is_empty


def _actor(*, gathers: bool) -> Any:
    """Return the actor of the cluster that this process is connected to; start it where there is none.

    Args:
        gathers: there was one before, so other drivers may be active.
    """
    import ray  # noqa: PLC0415

    actor = ray.remote(_QueueActor)
    return actor.options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
    ).remote(gathers=gathers)


class Yielded(Exception):  # noqa: N818 - says what is the case
    """The trials of a run have ended, because a run of a higher priority waits."""


class Turn:
    """A run's place in the queue, as its driver has it: a `with` block that begins when it is admitted."""

    def __init__(self, place: Place, show: Callable[[Answer], None]) -> None:
        """Prepare; nothing is asked yet.

        Args:
            place: of the run.
            show: called with each new answer.
        """
        self._place = place
        self._show = show
        self._answer: Answer | None = None  # None until one is heard
        self._actor: Any = None
        self._was_heard = False
        self._problem = "no answer"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="queue")

    def __enter__(self) -> Self:
        """Wait for the run's turn.

        Raises:
            UserError: the queue never answers.
        """
        self._thread.start()
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()
        with suppress(Exception):  # a run that is silent is forgotten anyway
            import ray  # noqa: PLC0415

            ray.get(
                ray.get_actor(NAME, NAMESPACE).forget.remote(self._place.run_id), timeout=_ANSWER_S
            )

    def must_yield(self) -> bool:
        """Return True if the run may not start another trial now."""
        return self._answer is not None and self._answer.word != GO

    def wait_again(self) -> None:
        """Give the place up, because no trial of the run is left, and wait for another turn."""
        self._place = replace(self._place, is_active=False)
        self._answer = None
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _FIRST_ANSWER_S
        while not self._place.is_active:
            time.sleep(_POLL_S)
            if not self._was_heard and time.monotonic() > deadline:
                raise UserError(
                    f"the queue of the cluster was required and does not answer: {self._problem}; "
                    "install this package on every node, and see the actor "
                    f"{NAME} on Ray's dashboard"
                )

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._report()
            self._closed.wait(REPORT_EVERY_S)

    def _report(self) -> None:
        """Report to the actor and keep its answer. Where none is heard, the last one counts."""
        import ray  # noqa: PLC0415

        place = self._place
        try:
            if self._actor is None:
                self._actor = _actor(gathers=self._was_heard)
            answer: Answer = ray.get(self._actor.report.remote(place), timeout=_ANSWER_S)
        except Exception as error:  # noqa: BLE001 - it has died, or the head has
            lines = str(error).strip().splitlines() or [""]
            self._problem = f"{type(error).__name__}: {lines[-1][:200]}"
            self._actor = None
            return
        self._was_heard = True
        if place is not self._place:  # it has given its place up meanwhile
            return
        if answer.word == GO and not place.is_active:
            self._place = replace(place, is_active=True)
        if answer != self._answer:
            self._answer = answer
            self._show(answer)
