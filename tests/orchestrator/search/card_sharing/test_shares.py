"""Who gets a card and who waits, without Ray."""

import pytest

from orchestrator.planning.card_sharing_notes import sharing_notes
from orchestrator.search.budget import Budget
from orchestrator.search.card_sharing.capacity import CardUse, TrialSize
from orchestrator.search.card_sharing.measurements import measured_uses
from orchestrator.search.card_sharing.shares import MeasuredShares
from orchestrator.search.controller import Proposal, TrialController, Waiting
from orchestrator.spec.load import read as read_spec
from orchestrator.spec.search_limits import Limits
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import CardMeasured, TrialEnded, WorkerDied
from orchestrator.store.ledger import Ledger, read
from tests.conftest import ROOT
from tests.orchestrator.search import toy
from tests.orchestrator.search.card_sharing.fixed_card import GB

USE = CardUse("test card", 100 * GB, 30 * GB, 0.4)  # three of them share a card


def size_of(spec):
    """Return the size by the first letter of a trial's name."""
    return TrialSize(spec.variant[0], "single", False, 64, 32, "fp32")


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "store/runs/a"
    folder.mkdir(parents=True)
    return folder


def open_controller(
    ledger, folder, names, *, n_cards=1, uses=None, finished=None, are_new=True, **options
):
    make = toy.spec_maker(folder)
    by_name = {f"s-{name}": make(name, name, {"what": name}) for name in names}
    return TrialController(
        ledger,
        "search",
        iter([(spec, None) for spec in by_name.values()] if are_new else []),
        shares=MeasuredShares(n_cards, size_of, dict(uses or {})),
        resume=lambda record: (by_name[record.trial_id], None),
        finished=finished,
        **options,
    )


def hand_out(controller):
    """Return the trials that start now, with their part of a card."""
    started = []
    while isinstance(proposal := controller.next(), Proposal):
        started.append((proposal.spec.trial_id, proposal.gpu))
    return started, proposal


def end(controller, name, use=None):
    if use is not None:
        controller.on_card_use(name, use)
    controller.on_report(name, 1, {"val_macro_f1": 0.5})
    controller.on_end(name, "COMPLETE")


def test_the_first_trial_of_a_size_has_a_card_and_the_next_ones_share_it(run_folder):
    with Ledger(run_folder) as ledger:
        controller = open_controller(ledger, run_folder, ["a1", "a2", "a3", "a4", "a5"])
        assert ([("s-a1", 1.0)], Waiting()) == hand_out(controller)
        end(controller, "s-a1", USE)
        shared = [(f"s-a{n}", 0.3333) for n in (2, 3, 4)]
        assert (shared, Waiting()) == hand_out(controller)
        end(controller, "s-a3")
        assert [("s-a5", 0.3333)] == hand_out(controller)[0]
    (measured,) = [event for event in ledger.events if isinstance(event, CardMeasured)]
    assert "s-a1" == measured.trial_id
    ends = [event for event in ledger.events if isinstance(event, TrialEnded)]
    assert [1.0, 0.3333] == [event.gpu for event in ends]


def test_another_size_waits_for_a_whole_card_and_is_measured(run_folder):
    with Ledger(run_folder) as ledger:
        controller = open_controller(
            ledger, run_folder, ["a1", "a2", "b1", "a3"], uses={size("a"): USE}
        )
        assert [("s-a1", 0.3333), ("s-a2", 0.3333)] == hand_out(controller)[0]
        end(controller, "s-a1")
        assert ([], Waiting()) == hand_out(controller)
        end(controller, "s-a2")
        proposal = controller.next()
        assert ("s-b1", 1.0, True) == (proposal.spec.trial_id, proposal.gpu, proposal.is_measured)
        assert Waiting() == controller.next()
        end(controller, "s-b1")  # nothing could be measured
        assert [("s-a3", 0.3333)] == hand_out(controller)[0]
    assert size("b") not in controller.shares.uses


def size(letter):
    return TrialSize(letter, "single", False, 64, 32, "fp32")


def test_two_cards_hold_twice_as_many(run_folder):
    with Ledger(run_folder) as ledger:
        names = [f"a{n}" for n in range(9)]
        controller = open_controller(ledger, run_folder, names, n_cards=2, uses={size("a"): USE})
        assert 6 == len(hand_out(controller)[0])


def test_what_does_not_fit_beside_others_waits_for_a_card_also_after_a_restart(run_folder):
    known = {size("a"): USE}
    with Ledger(run_folder) as ledger:
        controller = open_controller(ledger, run_folder, ["a1", "a2", "a3"], uses=known)
        assert 3 == len(hand_out(controller)[0])
        controller.on_death("s-a2", "CUDA out of memory", cause="memory")
        assert ([], Waiting()) == hand_out(controller)
        end(controller, "s-a1")
    (death,) = [event for event in ledger.events if isinstance(event, WorkerDied)]
    assert (None, False) == (death.micro_batch, death.counts)
    with Ledger(run_folder) as ledger:
        names = ["a1", "a2", "a3"]
        controller = open_controller(ledger, run_folder, names, uses=known, are_new=False)
        started, _ = hand_out(controller)
        assert {"s-a1": 0.0, "s-a2": 1.0} == dict(started)  # an ended trial is only replayed
        larger = CardUse("test card", 100 * GB, 45 * GB, 0.4)
        end(controller, "s-a2", larger)
        assert [("s-a3", 0.5)] == hand_out(controller)[0]
    assert larger == measured_uses(Store(run_folder.parents[1]))[size("a")]


def test_a_trial_that_the_store_has_takes_no_card(run_folder):
    with Ledger(run_folder) as ledger:
        history = [{"val_macro_f1": 0.5}]
        controller = open_controller(
            ledger, run_folder, ["a1", "a2"], finished=lambda spec: history
        )
        assert [("s-a1", 0.0), ("s-a2", 0.0)] == hand_out(controller)[0]


def test_gpu_hours_count_each_trial_s_own_part(run_folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Ledger(run_folder) as ledger:
        budget = Budget(Limits(gpu_hours=1.0))
        controller = open_controller(
            ledger, run_folder, ["a1", "a2", "a3"], uses={size("a"): USE}, budget=budget
        )
        controller.next()
        controller.next()
        now[0] += 3600
        assert 2 * 0.3333 * 3600 == pytest.approx(controller._running_card_s())
        end(controller, "s-a1")
        end(controller, "s-a2")
        assert not controller.is_exhausted()
        controller.next()
        now[0] += 2 * 3600
        assert controller.is_exhausted()
        assert "gpu_hours: 1.33 of 1 are used" in controller.budget.reached


def test_a_torn_record_is_no_measurement(run_folder):
    with Ledger(run_folder) as ledger:
        controller = open_controller(ledger, run_folder, ["a1"])
        controller.next()
        end(controller, "s-a1", USE)
    path = run_folder / "events.jsonl"
    text = path.read_text()
    path.write_text(text + '{"n": 99, "event": "card_measured", "trial')
    assert {size("a"): USE} == measured_uses(Store(run_folder.parents[1]))
    assert read(path)


@pytest.fixture
def experiment():
    return read_spec(ROOT / "experiments/contest/full.yaml", check_roots=False)


def test_auto_means_none_without_a_card_and_plan_says_so(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (note,) = sharing_notes(experiment, Store(tmp_path))
    assert "gpu: auto means 0 on this machine" in note
    share = experiment.spec.resources.per_trial
    assert ("cpu", 0.0) == (share.on(0).device, share.on(0).least_gpu)
    assert ("cuda", 1.0) == (share.on(2).device, share.on(2).least_gpu)


def test_plan_says_what_earlier_trials_showed(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    notes = sharing_notes(experiment, Store(tmp_path))
    assert all("not measured yet; the first trial has a card for itself" in note for note in notes)
    measured = TrialSize("efficientnet_b4", "single", False, 380, 32, "bf16")
    (tmp_path / "runs/a").mkdir(parents=True)
    with Ledger(tmp_path / "runs/a") as ledger:
        use = CardUse("test card", 100 * GB, 30 * GB, 0.4)
        ledger.append(CardMeasured(trial_id="s-a", size=vars(measured), use=vars(use)))
    (note,) = [n for n in sharing_notes(experiment, Store(tmp_path)) if "with head single" in n]
    assert "3 trials share a card test card (a trial took 30.0 of 100.0 GB" in note
    assert "kept it busy 40 % of its time" in note


def test_auto_changes_no_key(experiment):
    third = ["resources.per_trial.gpu=0.33"]
    fixed = read_spec(ROOT / "experiments/contest/full.yaml", third, check_roots=False)
    assert fixed.identity() == experiment.identity()
    assert not sharing_notes(fixed, Store(ROOT / "no-store"))
