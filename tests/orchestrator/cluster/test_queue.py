"""The queue of a shared cluster: who goes first, and what a killed actor changes (nothing)."""

import threading
import time
from dataclasses import replace

import pytest

from orchestrator.cluster import queue
from orchestrator.cluster.queue import GO, WAIT, YIELD, Answer, Place, Queue, Turn, decide


def place(run_id, priority=0, user="ann", since=0.0, *, active=False, max_runs=1):
    return Place(run_id, user, priority, since, active, max_runs)


def words(*places):
    return {run: (answer.word, answer.n_ahead) for run, answer in decide(places).items()}


def test_without_a_limit_everybody_goes():
    places = [place(name, max_runs=None) for name in "abc"]
    assert {Answer(GO)} == set(decide(places).values())


def test_first_come_first_served_within_a_priority_and_higher_ones_first():
    asked = words(
        place("late", since=3), place("early", since=1), place("urgent", priority=5, since=9)
    )
    assert {"urgent": (GO, 0), "early": (WAIT, 0), "late": (WAIT, 1)} == asked


def test_an_active_run_stays_before_others_of_its_priority():
    asked = words(place("new", since=1), place("old", since=2, active=True))
    assert {"old": (GO, 0), "new": (WAIT, 0)} == asked


def test_a_lower_priority_yields_and_the_higher_one_goes_when_it_has():
    low = place("low", active=True)
    high = place("high", priority=1, since=5)
    assert {"low": (YIELD, 0), "high": (WAIT, 0)} == words(low, high)
    assert {"low": (WAIT, 0), "high": (GO, 0)} == words(replace(low, is_active=False), high)


def test_turns_are_fair_among_users():
    places = [place(f"ann-{number}", since=number) for number in range(3)]
    places.append(place("bob-0", user="bob", since=9))
    places[0] = replace(places[0], is_active=True)
    asked = words(*places)
    assert ["bob-0", "ann-1", "ann-2"] == sorted(
        (run for run in asked if asked[run][0] == WAIT), key=lambda run: asked[run][1]
    )


def test_users_take_turns_also_when_no_run_is_active_any_more():
    waiting = [place(f"ann-{number}", since=number) for number in range(3)]
    waiting += [place(f"bob-{number}", user="bob", since=9 + number) for number in range(2)]
    actor = Queue()
    order = []
    while waiting:
        (admitted,) = [run for run in waiting if actor.report(run).word == GO]
        order.append(admitted.run_id)
        waiting.remove(admitted)
        for run in waiting:
            actor.report(run)  # all are known before the next turn
        actor.forget(admitted.run_id)
    assert ["ann-0", "bob-0", "ann-1", "bob-1", "ann-2"] == order


def test_the_smallest_limit_counts():
    asked = words(place("a", max_runs=3), place("b", since=1, max_runs=2), place("c", since=2))
    assert [GO, WAIT, WAIT] == [asked[name][0] for name in "abc"]
    asked = words(place("a", max_runs=3), place("b", since=1, max_runs=2))
    assert [GO, GO] == [asked[name][0] for name in "ab"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_whatever_the_order_of_reports_no_more_than_the_limit_are_active_and_all_get_their_turn(
    limit,
):
    now = [0.0]
    waiting = [
        place(f"{user}-{number}", number % 2, user, number, max_runs=limit)
        for number in range(5)
        for user in ("ann", "bob")
    ]
    actor = Queue(clock=lambda: now[0])
    active, done = [], []
    while waiting or active:
        now[0] += 1
        for run in list(waiting):
            if actor.report(run).word == GO:
                waiting.remove(run)
                active.append(replace(run, is_active=True))
        assert len(active) <= limit
        for run in list(active):
            if actor.report(run).word == YIELD:
                active.remove(run)
                waiting.append(replace(run, is_active=False))
        if active:
            done.append(active.pop(0))
            actor.forget(done[-1].run_id)
        if now[0] % 4 == 0:  # it dies
            actor = Queue(gathers=True, clock=lambda: now[0])
    assert 10 == len({run.run_id for run in done})


def test_a_driver_that_is_silent_for_long_is_forgotten():
    now = [0.0]
    actor = Queue(clock=lambda: now[0])
    assert Answer(GO) == actor.report(place("dead"))
    assert Answer(WAIT, 0) == actor.report(place("next", since=1))
    for second in range(1, 21):
        now[0] = second
        assert Answer(WAIT, 0) == actor.report(place("next", since=1))
    now[0] = 21
    assert Answer(GO) == actor.report(place("next", since=1))


def test_an_actor_that_was_away_takes_no_driver_for_dead():
    now = [0.0]
    actor = Queue(clock=lambda: now[0])
    assert Answer(GO) == actor.report(place("active"))
    assert Answer(WAIT, 0) == actor.report(place("next", since=1))
    now[0] = 60  # it was stopped
    assert Answer(WAIT, 0) == actor.report(place("next", since=1))
    assert Answer(GO) == actor.report(place("active", active=True))


@pytest.mark.ray
def test_a_killed_actor_comes_back_and_nothing_starts_twice():
    from orchestrator.cluster.connection import connect

    heard = []

    def enter(turn):
        thread = threading.Thread(target=turn.__enter__, daemon=True)
        thread.start()
        return thread

    def hear(name):
        return lambda answer: heard.append((name, answer.word))

    with connect(None, num_cpus=1, dashboard=False):
        import ray  # the environment stands now

        first = Turn(place("first"), hear("first")).__enter__()
        second = Turn(place("second", since=1), hear("second"))
        waits = enter(second)
        deadline = time.monotonic() + 30
        while ("second", WAIT) not in heard:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ray.kill(ray.get_actor(queue.NAME, queue.NAMESPACE), no_restart=False)
        waits.join(queue._GATHER_S + 3)
        assert waits.is_alive(), "the first one is still active"
        urgent = Turn(place("urgent", priority=1, since=2), hear("urgent"))
        urgent_waits = enter(urgent)
        while not first.must_yield():
            assert time.monotonic() < deadline + 30
            time.sleep(0.05)
        assert urgent_waits.is_alive(), "the first one has a trial yet"
        goes_on = threading.Thread(target=first.wait_again, daemon=True)
        goes_on.start()
        urgent_waits.join(15)
        assert not urgent_waits.is_alive()
        urgent.__exit__()
        goes_on.join(15)
        assert not goes_on.is_alive()
        first.__exit__()
        waits.join(15)
        assert not waits.is_alive()
        second.__exit__()
        deadline = time.monotonic() + 15
        while ray.util.list_named_actors(all_namespaces=True):
            assert time.monotonic() < deadline, "the actor ends with its last run"
            time.sleep(0.1)
    order = [name for name, word in heard if word == GO]
    assert ["first", "urgent", "first", "second"] == order


@pytest.mark.ray
def test_the_actor_ends_when_its_last_driver_was_killed():
    from orchestrator.cluster.connection import connect

    with connect(None, num_cpus=1, dashboard=False):
        import ray  # the environment stands now

        turn = Turn(place("killed"), lambda answer: None).__enter__()
        turn._closed.set()  # it reports no more, and does not say that it ends
        turn._thread.join()
        ended = time.monotonic()
        while ray.util.list_named_actors(all_namespaces=True):
            assert time.monotonic() < ended + queue._IDLE_S + 20
            time.sleep(0.2)
        assert time.monotonic() > ended + queue._IDLE_S - 5
        again = Turn(place("again"), lambda answer: None).__enter__()
        again.__exit__()
