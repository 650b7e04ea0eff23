"""Two objectives, a high score and few parameters: real Optuna, the real controller, report and results."""

import json

import numpy as np
import optuna
import pytest

from orchestrator.evaluation.selection import finalists, pareto_front
from orchestrator.report import search_section
from orchestrator.report.command_text.result_tables import front_rows, render_results
from orchestrator.report.load import load
from orchestrator.report.page import draw
from orchestrator.run.trackers.optuna_journal import Journal
from orchestrator.search.study import search_controller
from orchestrator.search.trial_tables import trials_table
from orchestrator.spec.search_space import Search
from orchestrator.store import tables
from orchestrator.store.event_types import N_PARAMS, PhaseStarted, RunStarted
from orchestrator.store.ledger import Ledger, read, replay
from orchestrator.store.run_files.trials import TrialRow, searched_sizes
from tests.orchestrator.search import toy

SEARCH = {
    "trials": 24,
    "objectives": ["score", "parameters"],
    "scheduler": "none",
    "space": {"train.width": {"int": [1, 400], "log": True}, "train.waste": {"int": [0, 9]}},
}


def curve(params, epoch):
    """A wide model is better, and nothing else is."""
    return round(0.9 - 0.5 / params["train.width"] ** 0.5 - 0.2 / epoch, 6)


def measure(spec):
    return {N_PARAMS: 1e4 * (spec.params["train.width"] + 50 * spec.params["train.waste"])}


def play(folder, *, ledger=None, store=None, **changes):
    folder.mkdir(exist_ok=True)
    store = {} if store is None else store
    with ledger or Ledger(folder) as written:
        if not written.events:
            written.append(RunStarted(run_id="toy"))
        written.append(PhaseStarted(phase="search"))
        studies = toy.make_studies(folder, {**SEARCH, **changes})
        controller = search_controller(
            studies,
            written,
            {"a": f"{toy.N_EPOCHS} epochs"},
            measure=measure,
            finished=lambda spec: store.get(spec.key),
        )
        toy.simulate(
            controller,
            max_concurrent=1,
            curve=curve,
            finish=lambda spec, history: store.setdefault(spec.key, history),
        )
        return studies.studies["a"].optuna


def outcome(folder):
    trials = replay(read(folder / "events.jsonl")).trials
    return {name: (trial.params, trial.metrics) for name, trial in trials.items()}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_study_of_two_objectives_goes_on_after_a_kill_as_if_undisturbed(tmp_path, sampler):
    changes = {"sampler": sampler, "trials": 14}
    study = play(tmp_path / "calm", **changes)
    directions = optuna.study.StudyDirection
    assert [directions.MAXIMIZE, directions.MINIMIZE] == study.directions
    (tmp_path / "killed").mkdir()
    store = {}
    ledger = toy.MortalLedger(tmp_path / "killed", 120)
    with pytest.raises(toy.KilledError):
        play(tmp_path / "killed", ledger=ledger, store=store, **changes)
    play(tmp_path / "killed", store=store, **changes)
    assert outcome(tmp_path / "calm") == outcome(tmp_path / "killed")


def test_the_gaussian_process_takes_both(tmp_path):
    said = []
    studies = toy.make_studies(tmp_path, {**SEARCH, "sampler": "gp"})
    studies.warn = said.append
    study = studies.studies["a"]
    for number in range(11):  # the first ten are drawn at random
        reports = {1: {"val_macro_f1": number / 10}}
        study.tell(study.ask().trial, "COMPLETE", reports, None, {N_PARAMS: 9.0 - number % 4})
    assert "train.width" in study.ask().point
    assert not said, "a sampler that fails is replaced by chance"


def test_the_front_is_optunas_own_and_the_sampler_learns_to_waste_nothing(tmp_path):
    study = play(tmp_path)
    trials = replay(read(tmp_path / "events.jsonl")).trials.values()
    scores = {trial.setting: trial.metrics["val_macro_f1"] for trial in trials}
    sizes = {trial.setting: trial.metrics[N_PARAMS] for trial in trials}
    front = pareto_front(scores, sizes)
    expected = {tuple(trial.values) for trial in study.best_trials}
    assert expected == {(scores[name], sizes[name]) for name in front}
    assert sorted(front, key=lambda name: -scores[name]) == front
    waste = [trial.params["train.waste"] for trial in trials]
    assert np.mean(waste[12:]) < np.mean(waste[:12])


def test_what_ends_without_a_result_is_told_without_values(tmp_path):
    study = toy.make_studies(tmp_path, SEARCH).studies["a"]
    for status, cause in (("PRUNED", None), ("FAILED", "raised"), ("FAILED", "memory")) * 5:
        study.tell(study.ask().trial, status, {1: {"val_macro_f1": 0.5}}, cause)
    study.tell(study.ask().trial, "COMPLETE", {1: {"val_macro_f1": 0.5}}, None, {N_PARAMS: 7.0})
    assert "train.width" in study.ask().point
    values = [trial.values for trial in study.optuna.trials if trial.values is not None]
    assert [[0.5, 7.0]] == values


def test_finalists_are_the_best_of_each_variant_then_the_front_then_the_next_scores():
    ranking = [
        ("big", "a", 0.9),
        ("waste", "a", 0.89),
        ("mid", "a", 0.8),
        ("tiny", "a", 0.4),
        ("other", "b", 0.3),
    ]
    sizes = {"big": 100, "waste": 120, "mid": 50, "tiny": 5, "other": 60}
    variants = ["a", "b"]
    assert ["big", "other"] == finalists(ranking, 1, variants, sizes)
    assert ["big", "mid", "other"] == finalists(ranking, 3, variants, sizes)
    assert ["big", "mid", "tiny", "other"] == finalists(ranking, 4, variants, sizes)
    assert ["big", "waste", "mid", "tiny", "other"] == finalists(ranking, 5, variants, sizes)
    assert ["big", "waste", "other"] == finalists(ranking, 3, variants)
    assert ["b"] == pareto_front({"b": 0.5, "c": 0.5}, {"b": 3, "c": 3})


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose search has ended."""
    play(tmp_path)
    state = replay(read(tmp_path / "events.jsonl"))
    tables.write(trials_table(state, ["a"]), tmp_path / "trials.parquet")
    resolved = {"name": "toy", "search": SEARCH}
    (tmp_path / "resolved.yaml").write_text(json.dumps(resolved))
    return tmp_path


def test_results_list_the_front(run):
    rows = front_rows(run)
    assert len(rows) > 2
    sizes = [row["n_params"] for row in rows]
    assert sorted(sizes, reverse=True) == sizes
    text = render_results(run, "table")
    assert "Pareto front of the search" in text
    assert all(row["setting"] in text for row in rows)
    assert rows == json.loads(render_results(run, "json"))["front"]
    table = tables.read(run / "trials.parquet")
    tables.write(table.drop_columns([N_PARAMS]), run / "trials.parquet")
    assert "front" not in json.loads(render_results(run, "json"))
    assert "Pareto" not in render_results(run, "table")


def test_of_a_setting_with_several_trials_the_best_one_counts_as_for_finalists():
    facts = {"phase": "search", "setting": "s", "variant": "a", N_PARAMS: 5.0}
    rows = []
    for number, score in enumerate((0.6, 0.8, 0.7)):
        rows.append(TrialRow(trial_id=f"t{number}", val_macro_f1=score, **facts))
    assert "t1" == searched_sizes(rows)["s"].trial_id
    assert "t1" == searched_sizes(reversed(rows))["s"].trial_id


def test_the_report_draws_the_front_and_lists_it(run):
    loaded = load(run)
    view = search_section.search(loaded)["front"]
    assert [row["setting"] for row in front_rows(run)] == [
        row["row"].setting for row in view["rows"]
    ]
    assert view["n"] == len(searched_sizes(loaded.trials))
    assert view["plot"].count("<circle") == view["n"]
    assert 1 == view["plot"].count("<polyline")
    ((_, _, body),) = draw(loaded, ("search",))
    assert "are on the Pareto front" in body
    assert "not confirmed" in body


def test_study_log_has_both_objectives(run):
    journal = Journal(run, Search.model_validate(SEARCH))
    for trial in replay(read(run / "events.jsonl")).trials.values():
        journal.take(trial)
    logged = journal.studies["a"].get_trials()
    sizes = [
        trial.metrics[N_PARAMS] for trial in replay(read(run / "events.jsonl")).trials.values()
    ]
    assert sizes == [trial.values[1] for trial in logged]
