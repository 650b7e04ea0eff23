import pytest

from orchestrator.report.command_text.state_reasons import why
from orchestrator.search.controller import TrialController
from orchestrator.search.trial_tables import trials_table
from orchestrator.search.trial_times import TrialTimes
from orchestrator.store import tables
from orchestrator.store.ledger import Ledger
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.search import toy
from trainers.overlap.clock import PARTS


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def test_the_parts_of_a_trial_add_up_to_its_time(clock):
    times = TrialTimes()
    clock(10)
    times.on_report(
        {"start_s": 2, "data_s": 1, "steps_s": 3, "evaluation_s": 0.5, "checkpoint_s": 1}
    )
    clock(5)
    times.on_report({"data_s": 1, "steps_s": 3, "evaluation_s": 0.5, "checkpoint_s": 0.25})
    clock(4)
    parts = times.parts(is_complete=True)
    assert {*PARTS, "end", "waiting"} == set(parts)
    assert (6.0, 4.0) == (parts["steps"], parts["end"])
    assert 19.0 == pytest.approx(sum(parts.values()))
    pruned = times.parts(is_complete=False)
    assert (0.0, 4.0) == (pruned["end"], pruned["waiting"] - parts["waiting"])
    assert 19.0 == pytest.approx(sum(pruned.values()))


def test_epochs_that_were_trained_before_have_no_parts(clock):
    times = TrialTimes()
    clock(1)
    times.on_report({"steps_s": 100.0})
    assert times.parts(is_complete=True) is None


def test_a_trainer_that_times_nothing_has_no_parts():
    assert TrialTimes().parts(is_complete=True) is None


def run(folder, reports):
    """Train one trial with these reports; return the row of trials.parquet."""
    spec = toy.spec_maker(folder)("a", "a", {"what": "a"})
    with Ledger(folder) as ledger:
        controller = TrialController(ledger, "search", iter([(spec, None)]))
        controller.next()
        for epoch, metrics in enumerate(reports, 1):
            controller.on_report("s-a", epoch, metrics)
        controller.on_end("s-a", "COMPLETE")
        return trials_table(ledger.state, []).to_pylist()[0]


def test_the_table_has_a_column_per_part_and_why_names_the_largest(tmp_path, clock, monkeypatch):
    original = TrialController.on_report

    def slow(self, *args):
        clock(8)
        return original(self, *args)

    monkeypatch.setattr(TrialController, "on_report", slow)
    epoch = {"val_macro_f1": 0.5, "data_s": 4.0, "steps_s": 2.0, "evaluation_s": 0.5}
    row = run(tmp_path, [epoch, epoch])
    assert (8.0, 4.0, 3.0) == (row["data_s"], row["steps_s"], row["waiting_s"])
    assert row["wall_s"] == pytest.approx(sum(row[name] for name in tables.TIME_COLUMNS))
    told = "\n".join(why(RunPaths(tmp_path), "s-a"))
    assert "16.0 s, most of it data (50 %): data 8.0, steps 4.0, waiting 3.0" in told


def test_a_trial_without_times_has_empty_columns_and_no_sentence(tmp_path):
    row = run(tmp_path, [{"val_macro_f1": 0.5}])
    assert {None} == {row[name] for name in tables.TIME_COLUMNS}
    assert "most of it" not in "\n".join(why(RunPaths(tmp_path), "s-a"))
