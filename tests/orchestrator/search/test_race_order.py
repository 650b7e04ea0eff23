"""Confirm with a race: trials go seed by seed, and what is stopped gets no further seed."""

import pytest

from orchestrator.search.controller import Finished, TrialController, Waiting
from orchestrator.search.trial import TrialSpec
from orchestrator.stages.confirm import Point, propose_race, protected_settings
from orchestrator.store.event_types import RaceLooked, from_json
from orchestrator.store.ledger import Ledger

SEEDS = (7, 8, 9)


def specs(settings=("good", "bad"), folds=2):
    all_trials = []
    for setting in settings:
        for seed in SEEDS:
            for fold in range(folds):
                name = f"c-{setting}-s{seed}-f{fold}"
                paths = ("", "", "")
                trial = TrialSpec(
                    name, setting, setting, "confirm", seed, fold, {}, {}, f"key-{name}", *paths, {}
                )
                all_trials.append(trial)
    return all_trials


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path) as opened:
        yield opened


def controller_of(ledger, looks, started=()):
    by_id = {spec.trial_id: spec for spec in specs()}

    def compare(look, trials):
        looks.append((look, sorted(trial.trial_id for trial in trials)))
        return {"bad"} if look == 1 else set()

    controller = TrialController(
        ledger,
        "confirm",
        propose_race(specs(), started, SEEDS, lambda: controller.records, compare),
        resume=lambda trial: (by_id[trial.trial_id], None),
    )
    return controller


def hand_out(controller):
    """Take all trials that may start now, and return their names."""
    names = []
    while not isinstance(proposal := controller.next(), Waiting | Finished):
        if not proposal.has_ended:
            names.append(proposal.spec.trial_id)
    return names, proposal


def end(controller, names):
    for name in names:
        controller.on_report(name, 1, {"val_macro_f1": 0.5})
        controller.on_end(name, "COMPLETE")


def test_a_stopped_setting_is_trained_with_no_further_seed(ledger):
    looks = []
    controller = controller_of(ledger, looks)
    first, state = hand_out(controller)
    assert first == ["c-good-s7-f0", "c-good-s7-f1", "c-bad-s7-f0", "c-bad-s7-f1"]
    assert state == Waiting()
    end(controller, first[:3])
    assert hand_out(controller) == ([], Waiting())
    assert looks == []
    end(controller, first[3:])
    second, _ = hand_out(controller)
    assert second == ["c-good-s8-f0", "c-good-s8-f1"]
    assert looks == [(1, sorted(first))]
    end(controller, second)
    third, _ = hand_out(controller)
    assert third == ["c-good-s9-f0", "c-good-s9-f1"]
    assert looks[1] == (2, sorted(name for name in first + second if "good" in name))
    end(controller, third)
    assert hand_out(controller) == ([], Finished())
    assert len(looks) == 2, "after the last seed there is nothing to stop"


def test_a_race_goes_on_after_a_restart_where_it_was(ledger):
    before = controller_of(ledger, [])
    first, _ = hand_out(before)
    end(before, first[:2])  # the driver dies with two trials open
    looks = []
    again = controller_of(ledger, looks, started=set(first))
    reopened, state = hand_out(again)
    assert reopened == first[2:]
    assert state == Waiting()
    end(again, reopened)
    second, _ = hand_out(again)
    assert second == ["c-good-s8-f0", "c-good-s8-f1"]
    assert looks == [(1, sorted(first))]


def test_arms_of_claims_and_sources_of_features_are_never_stopped():
    points = {
        "a1": Point("a", {}),
        "b1": Point("b", {}),
        "a2": Point("a", {}),
        "c1": Point("c", {}),
        "d1": Point("d", {}),
    }
    assert protected_settings(points, ["a > b"], {}) == {"a1", "b1"}
    assert protected_settings(points, ["a = missing within 0.02"], {"d": "c"}) == {"a1", "c1"}
    assert protected_settings(points, [], {}) == set()


def test_a_look_is_a_record_of_the_ledger():
    facts = {"setting": "bad", "look": 1}
    event = RaceLooked(look=1, n_seeds=1, n_compared=2, stopped=[facts])
    assert from_json(event.to_json()) == event
