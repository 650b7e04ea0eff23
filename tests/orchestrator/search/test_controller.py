"""The controller without Ray: who is next, who stops, and what a killed driver leaves to the next one."""

import contextlib
import itertools
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.search.controller import Finished, TrialController, Waiting
from orchestrator.search.early_stopping import Rungs, rung_epochs
from orchestrator.spec.search_limits import Limits, seconds
from orchestrator.spec.search_space import Asha, Median
from orchestrator.store.event_types import (
    LimitReached,
    PhaseStarted,
    RunResumed,
    RunStarted,
    TrialEnded,
    TrialStarted,
)
from orchestrator.store.ledger import Ledger, apply, read, replay
from tests.orchestrator.search import toy

SEARCH = {"trials": 12, "scheduler": {"name": "asha", "grace": "1 epochs", "reduction": 3}}


def play(
    folder, *, ledger=None, max_concurrent=1, search=SEARCH, store=None, is_lost=None, **options
):
    """Run a study in simulated time; return (controller, epochs trained)."""
    folder.mkdir(exist_ok=True)
    store = {} if store is None else store
    with ledger or Ledger(folder) as written:
        written.append(RunResumed(run_id="toy") if written.events else RunStarted(run_id="toy"))
        written.append(PhaseStarted(phase="search"))
        controller = toy.make_controller(
            written, toy.make_studies(folder, search), folder, is_lost=is_lost or (lambda _: False)
        )
        controller.finished = lambda spec: store.get(spec.key)
        finish = lambda spec, history: store.setdefault(spec.key, history)  # noqa: E731
        return controller, toy.simulate(
            controller, max_concurrent=max_concurrent, finish=finish, **options
        )


def outcome(folder):
    """Return all that counts of a study: settings, results and ends."""
    trials = replay(read(folder / "events.jsonl")).trials
    return {name: (t.params, t.status, t.reports, t.why) for name, t in trials.items()}


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_killed_at_any_record_the_study_ends_as_if_undisturbed(tmp_path, how):
    play(tmp_path / "calm")
    expected, n_records = outcome(tmp_path / "calm"), len(read(tmp_path / "calm/events.jsonl"))
    for at in range(3, n_records + 1, 4):
        folder, store = tmp_path / f"{how}-{at}", {}
        folder.mkdir()
        with pytest.raises(toy.KilledError):
            play(folder, ledger=toy.MortalLedger(folder, at, how), store=store)
        ended = {e.trial_id for e in read(folder / "events.jsonl") if isinstance(e, TrialEnded)}
        _, trained = play(folder, store=store)
        assert expected == outcome(folder), at
        assert set() == ended & {name for name, _ in trained}, at


def test_killed_again_and_again_with_two_at_a_time_no_finished_trial_runs_twice_and_rungs_are_the_same(
    tmp_path,
):
    folder, store, done = tmp_path / "run", {}, set()
    folder.mkdir()
    for n_kills in itertools.count():  # noqa: B007 - read below
        try:
            controller, trained = play(
                folder, ledger=toy.MortalLedger(folder, 9), max_concurrent=2, store=store
            )
        except toy.KilledError:
            ended = {e.trial_id for e in read(folder / "events.jsonl") if isinstance(e, TrialEnded)}
            assert done <= ended
            done = ended
        else:
            break
    assert n_kills > 5
    assert set() == done & {name for name, _ in trained}
    counts = Counter(e.trial_id for e in read(folder / "events.jsonl") if isinstance(e, TrialEnded))
    assert (12, {1}) == (len(counts), set(counts.values()))
    with Ledger(folder) as ledger:
        again = toy.make_controller(ledger, toy.make_studies(folder, SEARCH), folder)
    assert controller.rungs["a"].scores == again.rungs["a"].scores


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "grid"])
def test_killed_near_the_end_of_a_small_finite_space_it_ends_as_if_undisturbed(tmp_path, sampler):
    """Six points and nine trials: the last ones find every point tried, and draw an old one again."""
    space = {
        "train.lr": {"choice": [0.001, 0.01, 0.1]},
        "train.head": {"choice": ["single", "shallow"]},
    }
    search = {"trials": 9, "sampler": sampler, "space": space, "scheduler": "none"}
    play(tmp_path / "calm", search=search)
    expected, n_records = outcome(tmp_path / "calm"), len(read(tmp_path / "calm/events.jsonl"))
    assert {"grid": 6}.get(sampler, 9) == len(expected)
    for at in (n_records - 9, n_records - 3):
        folder, store = tmp_path / f"killed-{at}", {}
        folder.mkdir()
        with pytest.raises(toy.KilledError):
            play(folder, ledger=toy.MortalLedger(folder, at), store=store, search=search)
        with contextlib.suppress(toy.KilledError):
            again = toy.MortalLedger(folder, 6)
            play(folder, ledger=again, store=store, search=search)
        play(folder, store=store, search=search)
        assert expected == outcome(folder), at


def test_a_training_of_steps_is_not_stopped_at_its_last_epoch(tmp_path):
    """How many epochs steps are, only the worker knows; a rung there threw finished trainings away."""
    studies = toy.make_studies(tmp_path, {"trials": 3, "sampler": "random"})
    with Ledger(tmp_path) as ledger:
        controller = toy.search_controller(studies, ledger, {"a": "90 steps"})
        ends = []
        for best, is_last in ((0.9, False), (0.5, True), (0.1, False)):
            name = controller.next().spec.trial_id
            stops = controller.on_report(name, 1, {"val_macro_f1": best}, is_last=is_last)
            if not stops:
                controller.on_end(name, "COMPLETE")
            ends.append(ledger.state.trials[name].status)
        rungs = controller.rungs["a"].scores
    assert ["COMPLETE", "COMPLETE", "PRUNED"] == ends
    with Ledger(tmp_path) as ledger:
        studies = toy.make_studies(tmp_path, {"trials": 3, "sampler": "random"})
        again = toy.search_controller(studies, ledger, {"a": "90 steps"})
    assert rungs == again.rungs["a"].scores, "a rung counts it also after a restart"


@pytest.mark.parametrize("n_before", [None, 5])
def test_a_finished_training_that_the_store_has_lost_is_trained_again_to_its_end(
    tmp_path, n_before
):
    """Its run said for ever: a finished artifact was required, found none; submit again."""
    calm, folder, store = tmp_path / "calm", tmp_path / "run", {}
    play(calm)
    expected = outcome(calm)
    ledger = None
    if n_before:  # another driver goes on after the loss
        folder.mkdir()
        ledger = toy.MortalLedger(folder, 40)
    with contextlib.suppress(toy.KilledError):
        play(folder, ledger=ledger, store=store)
    trials = replay(read(folder / "events.jsonl")).trials.values()
    lost = [trial for trial in trials if trial.status == "COMPLETE"][:2]
    assert lost
    for trial in lost:
        del store[trial.key]
    controller, trained = play(folder, store=store, is_lost=lambda trial: trial.key not in store)
    assert expected == outcome(folder), "also under ASHA: what was finished is not stopped now"
    assert {trial.key for trial in lost} <= store.keys()
    again = Counter(name for name, _ in trained)
    assert {toy.N_EPOCHS} == {again[trial.trial_id] for trial in lost}
    assert 12 == controller.n_ended
    _, trained = play(folder, store=store, is_lost=lambda trial: trial.key not in store)
    assert [] == trained


def test_a_study_of_more_trials_begins_with_those_of_less(tmp_path):
    play(tmp_path / "less")
    play(tmp_path / "more", search={**SEARCH, "trials": 20})
    less, more = outcome(tmp_path / "less"), outcome(tmp_path / "more")
    assert less == {name: more[name] for name in less}


def test_asha_stops_the_worse_and_says_why():
    rungs = Rungs(Asha(grace="1 epochs", reduction=2), 4)
    assert [1, 2] == rung_epochs(rungs.scheduler, 4)
    assert rungs.reason_to_stop("a", 1, 0.5) is None  # nothing to halve yet
    assert (
        rungs.reason_to_stop("b", 1, 0.4)
        == "asha: best 0.4000 after epoch 1 is place 2 of 2; the first 1 go on, 0.5000 was needed"
    )
    assert rungs.reason_to_stop("c", 1, 0.6) is None
    assert rungs.reason_to_stop("c", 4, 0.0) is None  # the end is no rung


def test_the_same_scores_in_any_order_make_the_same_rungs():
    scores = {"a": 0.1, "b": 0.3, "c": 0.2}
    made = []
    for order in itertools.permutations(scores):
        rungs = Rungs(Asha(), 9)
        for name in [*order, *order]:  # heard twice after a restart
            rungs.reason_to_stop(name, 1, scores[name])
        made.append((rungs.scores, rungs._ranked))
    assert all(one == made[0] for one in made)


def test_the_median_rule_stops_what_is_below_the_others():
    rungs = Rungs(Median(grace="2 epochs"), 9)
    assert [
        rungs.reason_to_stop(name, 1, score) for name, score in (("a", 0.9), ("b", 0.8), ("c", 0.1))
    ] == [None] * 3
    assert [rungs.reason_to_stop(name, 2, score) for name, score in (("a", 0.9), ("b", 0.8))] == [
        None
    ] * 2
    assert "below 0.8500, the median of 2 others" in rungs.reason_to_stop("c", 2, 0.1)


def test_unequal_speeds_finish_all_trials(tmp_path):
    speed = lambda spec: 1.0 if spec.params["train.head"] == "single" else 7.3  # noqa: E731
    controller, _ = play(tmp_path / "run", max_concurrent=3, speed=speed)
    assert 12 == sum(controller.counts.values())


def test_a_death_is_retried_and_a_lost_node_costs_no_attempt(tmp_path):
    with Ledger(tmp_path) as ledger:
        controller = toy.make_controller(
            ledger, toy.make_studies(tmp_path, {"trials": 1}), tmp_path
        )
        for counts in (True, False, False, True, False):
            live = controller.next()
            controller.on_death(live.spec.trial_id, "gone", counts=counts)
        live = controller.next()
        assert (2, 5) == (live.deaths, live.attempt)
        assert (
            Waiting() == controller.next()
        )  # it may have to be tried again, so this is not the end
        controller.on_death(live.spec.trial_id, "its process was killed by SIGKILL", cause="killed")
        assert Finished() == controller.next()
    trial = replay(ledger.events).trials["s-a-0000"]
    assert ("FAILED", "killed") == (trial.status, trial.cause)
    assert "its process was killed by SIGKILL, 3 times" == trial.error


def test_deaths_count_over_restarts(tmp_path):
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            controller = toy.make_controller(
                ledger, toy.make_studies(tmp_path, {"trials": 1}), tmp_path
            )
            controller.on_death(controller.next().spec.trial_id, "gone")
    with Ledger(tmp_path) as ledger:
        controller = toy.make_controller(
            ledger, toy.make_studies(tmp_path, {"trials": 1}), tmp_path
        )
        assert 2 == controller.next().deaths


def test_what_failed_by_chance_is_tried_again_by_the_next_driver_and_nothing_else(tmp_path):
    def controller_of(ledger):
        return toy.make_controller(ledger, toy.make_studies(tmp_path, {"trials": 3}), tmp_path)

    with Ledger(tmp_path) as ledger:
        controller = controller_of(ledger)
        for cause in ("disk", "raised", None):
            name = controller.next().spec.trial_id
            controller.on_report(name, 1, {"val_macro_f1": 0.5})
            controller.on_end(
                name, "FAILED" if cause else "COMPLETE", cause and f"it {cause}", cause=cause
            )
    for goes in (
        "on",
        "still",
    ):  # a driver killed after it began is followed by one that does the same
        with Ledger(tmp_path) as ledger:
            controller = controller_of(ledger)
            lives = [controller.next() for _ in range(3)]
            assert ["s-a-0001", "s-a-0002", "s-a-0000"] == [live.spec.trial_id for live in lives], (
                goes
            )
            assert [True, True, False] == [live.has_ended for live in lives]
    with Ledger(tmp_path) as ledger:
        controller = controller_of(ledger)
        for live in (controller.next(), controller.next(), controller.next()):
            controller.on_end(live.spec.trial_id, "COMPLETE")
        assert Finished() == controller.next()
    trials = replay(read(tmp_path / "events.jsonl")).trials
    assert ["COMPLETE", "FAILED", "COMPLETE"] == [trial.status for trial in trials.values()]
    with Ledger(tmp_path) as ledger:
        assert {"COMPLETE": 2, "FAILED": 1} == controller_of(ledger).counts


def test_a_search_that_confirm_rests_on_stays_as_it_is(tmp_path):
    with Ledger(tmp_path) as ledger:
        controller = toy.make_controller(
            ledger, toy.make_studies(tmp_path, {"trials": 1}), tmp_path
        )
        controller.on_end(controller.next().spec.trial_id, "FAILED", "full", cause="disk")
        ledger.append(PhaseStarted(phase="confirm"))
    with Ledger(tmp_path) as ledger:
        toy.make_controller(ledger, toy.make_studies(tmp_path, {"trials": 1}), tmp_path)
    assert "FAILED" == replay(read(tmp_path / "events.jsonl")).trials["s-a-0000"].status


def test_one_artifact_is_trained_by_one_trial_at_a_time_and_then_found(tmp_path):
    make, store = toy.spec_maker(tmp_path), {}
    specs = [make(f"a-{n}", "a", {"train.lr": 0.01, "train.head": "single"}) for n in range(2)]
    with Ledger(tmp_path) as ledger:
        controller = TrialController(
            ledger,
            "search",
            iter([(spec, None) for spec in specs]),
            finished=lambda spec: store.get(spec.key),
        )
        first = controller.next()
        assert Waiting() == controller.next()
        controller.on_report(first.spec.trial_id, 1, {"val_macro_f1": 0.5})
        store[first.spec.key] = [{"val_macro_f1": 0.5}]
        controller.on_end(first.spec.trial_id, "COMPLETE")
        second = controller.next()
        assert [(1, {"val_macro_f1": 0.5})] == second.replay.reports
        controller.on_report(second.spec.trial_id, 1, {"val_macro_f1": 0.5})
        controller.on_end(second.spec.trial_id, "COMPLETE")
    assert [False, True] == [trial.is_cached for trial in replay(ledger.events).trials.values()]


def test_a_target_ends_the_search_and_stays_reached_over_a_restart(tmp_path):
    search = {**SEARCH, "limits": {"target": 0.5}}
    controller, _ = play(tmp_path / "run", search=search, max_concurrent=2)
    assert sum(controller.counts.values()) < 12
    assert controller.best >= 0.5
    assert "search.limits.target" in controller.budget.reached
    assert all(trial.status for trial in controller.records.values())
    again, trained = play(tmp_path / "run", search=search)
    assert (controller.counts, []) == (again.counts, trained)


def test_wall_time_and_gpu_hours_count_over_restarts(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(RunStarted())
        ledger.append(PhaseStarted(phase="search"))
        ledger.append(TrialStarted(**toy.spec_maker(tmp_path)("a-0000", "a", {}).to_json()))
    times = (1000.0, 1100.0, 1200.0)
    events = [
        event.stamped(n, time)
        for n, (event, time) in enumerate(zip(ledger.events, times, strict=True))
    ]
    end = TrialEnded(
        n=3, time=1400.0, trial_id="s-a-0000", status="FAILED", cause="raised", wall_s=1800.0
    )
    events.append(end)

    class Told:
        def __init__(self):
            self.events = events
            self.state = replay(events)

        def append(self, event, *, commit=False):
            events.append(event.stamped(len(events), 1500.0))
            apply(self.state, events[-1])

    studies = toy.make_studies(tmp_path, {"limits": {"wall": "299 seconds"}, "space": {}})
    controller = toy.make_controller(Told(), studies, tmp_path)
    assert controller.is_exhausted()
    assert "search.limits.wall" in controller.budget.reached
    events.pop()
    studies = toy.make_studies(tmp_path, {"limits": {"wall": "302 seconds"}, "space": {}})
    assert not toy.make_controller(Told(), studies, tmp_path).is_exhausted()
    controller = toy.make_controller(Told(), studies, tmp_path)
    controller.budget.limits, controller.budget.gpus_per_trial = Limits(gpu_hours=0.25), 0.5
    assert controller.is_exhausted()
    assert "gpu_hours: 0.25 of 0.25 are used" in controller.budget.reached
    events[events.index(end)] = replace(end, cached=True)
    events[:] = [event for event in events if not isinstance(event, LimitReached)]
    controller = toy.make_controller(Told(), studies, tmp_path)
    controller.budget.limits, controller.budget.gpus_per_trial = Limits(gpu_hours=0.25), 0.5
    assert not controller.is_exhausted(), "an earlier run's trial costs this one nothing"


def test_times_are_read():
    assert [90.0, 5400.0, 7200.0, 86400.0] == [
        seconds(text) for text in ("90 seconds", "1.5 hours", "120 minutes", "1 day")
    ]
    with pytest.raises(ValueError, match="a time such as "):
        seconds("90")


def test_a_run_that_yields_lets_its_trials_end_and_goes_on_from_its_ledger(tmp_path):
    play(tmp_path / "calm")
    folder, store = tmp_path / "yields", {}
    folder.mkdir()
    with Ledger(folder) as ledger:
        ledger.append(PhaseStarted(phase="search"))
        controller = toy.make_controller(ledger, toy.make_studies(folder, SEARCH), folder)
        first = controller.next()
        controller.must_yield = lambda: True
        assert Waiting() == controller.next()
        assert not controller.has_yielded
        for epoch in range(1, toy.N_EPOCHS + 1):
            metrics = {"val_macro_f1": toy.score(first.spec.params, epoch)}
            controller.on_report(first.spec.trial_id, epoch, metrics)
        controller.on_end(first.spec.trial_id, "COMPLETE")
        assert Finished() == controller.next()
        assert controller.has_yielded
    play(folder, store=store)
    assert outcome(tmp_path / "calm") == outcome(folder)
