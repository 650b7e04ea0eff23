"""Trials that stand on others: who waits for whom, and what a death for memory changes."""

import itertools

import pytest

from orchestrator.search.controller import Finished, TrialController, Waiting
from orchestrator.search.study import Studies
from orchestrator.search.trial import TrialSpec
from orchestrator.spec.search_space import Confirm, Search
from orchestrator.stages.confirm import Point, describe_trials, propose_in_order
from orchestrator.store.ledger import Ledger


def spec(trial_id, variant="A", source=None, **train):
    train = {"batch_size": 32, **train}
    return TrialSpec(
        trial_id,
        "s",
        variant,
        "confirm",
        0,
        0,
        {},
        train,
        f"key-{trial_id}",
        "",
        "",
        "",
        {},
        source=source,
    )


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path) as opened:
        yield opened


def finish(controller, trial_id, status="COMPLETE"):
    controller.on_report(trial_id, 1, {"val_macro_f1": 0.5})
    controller.on_end(trial_id, status)


@pytest.mark.parametrize("status", ["COMPLETE", "FAILED"])
def test_confirm_proposes_a_dependent_when_its_source_has_ended_however(ledger, status):
    specs = [spec("ac0", "A+C", "key-a0"), spec("a0"), spec("a1"), spec("ac1", "A+C", "key-a1")]
    controller = TrialController(
        ledger, "confirm", propose_in_order(specs, lambda: controller.records)
    )
    assert ["a0", "a1"] == [controller.next().spec.trial_id for _ in range(2)]
    assert Waiting() == controller.next()
    finish(controller, "a1", status)
    assert "ac1" == controller.next().spec.trial_id
    assert Waiting() == controller.next()
    finish(controller, "a0", status)
    assert "ac0" == controller.next().spec.trial_id
    finish(controller, "ac0", status)
    finish(controller, "ac1", status)
    assert Finished() == controller.next()


def test_a_dependent_whose_source_ended_before_a_restart_does_not_wait(ledger):
    first = TrialController(
        ledger, "confirm", propose_in_order([spec("a0")], lambda: first.records)
    )
    first.next()
    finish(first, "a0")
    again = TrialController(
        ledger, "confirm", propose_in_order([spec("ac0", "A+C", "key-a0")], lambda: again.records)
    )
    assert "ac0" == again.next().spec.trial_id


def test_search_lets_a_variant_wait_until_all_trials_of_its_source_have_ended(ledger):
    numbers = itertools.count()
    studies = Studies(
        "run",
        Search(trials=2, sampler="random", space={"train.optimizer.lr": {"float": [0.1, 0.2]}}),
        ["A+C", "A"],
        0,
        lambda trial_id, variant, point: spec(f"{variant}{next(numbers)}", variant),
        {"A+C": "A"},
    )
    controller = TrialController(ledger, "search", studies.proposals(), tell=studies.tell)
    assert ["A0", "A1"] == [controller.next().spec.trial_id for _ in range(2)]
    finish(controller, "A0")
    assert Waiting() == controller.next()
    finish(controller, "A1", "FAILED")
    assert ["A+C2", "A+C3"] == [controller.next().spec.trial_id for _ in range(2)]
    assert Waiting() == controller.next()  # one that dies would have to be tried again
    finish(controller, "A+C2")
    finish(controller, "A+C3")
    assert Finished() == controller.next()


def test_a_worker_killed_for_memory_is_tried_once_more_with_half_the_micro_batch(ledger):
    controller = TrialController(ledger, "confirm", iter([(spec("a"), None)]))
    controller.next()
    controller.on_death("a", "killed", cause="memory")
    again = controller.next()
    assert (16, 1) == (again.spec.micro_batch, again.deaths)
    controller.on_death("a", "killed", cause="memory")
    assert Finished() == controller.next()
    assert ("FAILED", True) == (
        controller.records["a"].status,
        "with 16 photos at once" in controller.records["a"].error,
    )


def test_a_death_that_is_not_about_memory_changes_nothing(ledger):
    controller = TrialController(ledger, "confirm", iter([(spec("a"), None)]))
    controller.next()
    controller.on_death("a", "node lost")
    assert controller.next().spec.micro_batch is None


def test_in_confirm_a_head_depends_on_the_best_of_its_source_among_the_finalists():
    points = {
        "dependent": Point("A+C", {}),
        "second": Point("B", {}),
        "best": Point("A", {}),
        "other": Point("A", {}),
    }

    def describe(trial_id, phase, variant, params, *, seed, fold, source):
        return spec(trial_id, variant, source)

    specs = describe_trials(describe, Confirm(seeds=[7], folds=2), points, {"A+C": "A"})
    sources = {each.trial_id: each.source for each in specs}
    assert "key-c-best-s7-f1" == sources["c-dependent-s7-f1"]
    assert {None} == {source for name, source in sources.items() if "dependent" not in name}
    assert "c-dependent-s7-f1" == specs[-1].trial_id
