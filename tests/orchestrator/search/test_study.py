"""Studies: what is asked first, what is told, and what earlier runs have to tell."""

import json

import optuna
import pytest

from orchestrator.search.reuse import earlier, write_families
from orchestrator.spec.search_space import Search
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import Ledger
from tests.orchestrator.search import toy
from tests.orchestrator.search.test_controller import outcome, play

GOOD = {"train.lr": 0.01, "train.head": "deep"}
WIDER = {
    **toy.SPACE,
    "train.lr": {"float": [1e-5, 1.0], "log": True},
    "train.head": {"choice": ["shallow", "single", "deep"]},
}


def points(folder, search, n):
    study = toy.make_studies(folder, search).studies["a"]
    return [study.ask().point for _ in range(n)]


def test_known_good_points_come_first_and_what_they_leave_open_is_sampled(tmp_path):
    first, second, third = points(tmp_path, {"start": [GOOD, {"train.head": "single"}]}, 3)
    assert GOOD.items() <= first.items()
    assert 16 <= first["train.hidden"] <= 512
    assert "single" == second["train.head"]
    assert third not in (first, second)


def test_a_start_given_later_is_tried_next(tmp_path):
    study = toy.make_studies(tmp_path, {"start": [GOOD]}).studies["a"]
    study.ask({"train.lr": 0.05, "train.head": "single"})
    assert GOOD.items() <= study.ask().point.items()


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_a_start_is_asked_for_once_whatever_its_conditions(tmp_path, sampler):
    starts = [
        {"train.lr": 0.03, "train.head": "single", "train.hidden": 64},  # 64 has no meaning there
        {"train.hidden": 32},  # brings its condition along
    ]
    first, second, *others = points(tmp_path, {"start": starts, "sampler": sampler}, 6)
    assert {"train.lr": 0.03, "train.head": "single"} == first
    assert ("deep", 32) == (second["train.head"], second["train.hidden"])
    assert 6 == len({json.dumps(point) for point in (first, second, *others)})
    resumed = toy.make_studies(tmp_path, {"start": starts, "sampler": sampler}).studies["a"]
    assert [first, second] == [resumed.ask(point).point for point in (first, second)]
    assert others == [resumed.ask().point for _ in others]


def test_a_start_of_another_variant_is_left_out_where_the_space_does_not_contain_it(tmp_path):
    search = {
        "space": {"train.a": {"int": [1, 3]}, "train.b": {"choice": [[1], [2]]}},
        "variant_spaces": {"a": {"train.a": {"int": [1, 2]}, "train.b": {"choice": [[2], [4]]}}},
        "start": [{"train.a": 3, "train.b": [1]}, {"train.a": 1, "train.b": [1]}],
    }
    studies = toy.make_studies(tmp_path, search, variants=("a", "other"))
    of_a = [studies.studies["a"].ask().point for _ in range(4)]
    assert 1 == of_a[0]["train.a"]
    assert 4 == len({json.dumps(point) for point in of_a})
    assert {"train.a": 3, "train.b": [1]} == studies.studies["other"].ask().point


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "grid"])
def test_a_suggestion_is_a_function_of_history_and_number(tmp_path, sampler):
    search = {
        "sampler": sampler,
        "trials": 14,
        "space": {"train.x": {"int": [0, 40]}, "train.y": {"choice": [1, 2]}},
    }

    def play_study(n_known):
        told = []
        study = toy.make_studies(tmp_path, search).studies["a"]
        for number in range(14):
            asked, point = study.ask(known[number] if number < n_known else None)
            study.tell(asked, "COMPLETE", {1: {"val_macro_f1": point["train.x"] / 40}})
            told.append(point)
        return told

    known = []
    known = play_study(0)
    assert known == play_study(7) == play_study(12)
    assert 14 == len({json.dumps(point) for point in known})


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "grid"])
def test_a_small_space_is_tried_out_before_a_setting_comes_again(tmp_path, sampler):
    space = {"train.x": {"int": [1, 5]}, "train.y": {"choice": ["a", "b"]}}

    def play_study(n_known):
        told = []
        search = {"sampler": sampler, "trials": 13, "space": space}
        study = toy.make_studies(tmp_path, search).studies["a"]
        for number in range(13):
            asked, point = study.ask(known[number] if number < n_known else None)
            study.tell(asked, "COMPLETE", {1: {"val_macro_f1": point["train.x"] / 5}})
            told.append(json.dumps(point, sort_keys=True))
        return told

    known = []
    first = play_study(0)
    assert 10 == len(set(first[:10])) == len(set(first))
    known = [json.loads(point) for point in first]
    assert first == play_study(4) == play_study(11) == play_study(12)


def test_what_ended_early_or_badly_is_told_as_that(tmp_path):
    study = toy.make_studies(tmp_path, {}).studies["a"]
    for status, cause in (
        ("COMPLETE", None),
        ("PRUNED", None),
        ("FAILED", "raised"),
        ("FAILED", "memory"),
    ):
        asked, _ = study.ask()
        study.tell(asked, status, {1: {"val_macro_f1": 0.5}, 2: {"val_macro_f1": 0.4}}, cause)
    state = optuna.trial.TrialState
    trials = study.optuna.trials
    assert [state.COMPLETE, state.PRUNED, state.FAIL, state.PRUNED] == [
        trial.state for trial in trials
    ]
    assert (0.5, {1: 0.5, 2: 0.4}) == (trials[0].value, trials[1].intermediate_values)
    assert [{}, {}, {}, {"memory": 1.0}] == [dict(trial.constraints) for trial in trials]


def test_the_sampler_keeps_away_from_what_does_not_fit(tmp_path):
    size = {"choice": ["small", "big"]}
    space = {"train.x": {"float": [0.0, 1.0]}, "train.size": size}
    study = toy.make_studies(tmp_path, {"space": space}).studies["a"]
    n_big = []
    for _ in range(60):
        asked, point = study.ask()
        big = point["train.size"] == "big"
        n_big.append(big)
        reports = {} if big else {1: {"val_macro_f1": point["train.x"]}}
        study.tell(asked, "FAILED" if big else "COMPLETE", reports, "memory" if big else None)
    assert sum(n_big[40:]) <= 5  # by chance it would be ten


def test_a_sampler_that_fails_is_replaced_by_chance_and_said_so(tmp_path, monkeypatch):
    said = []
    studies = toy.make_studies(tmp_path, {})
    studies.warn = said.append
    study = studies.studies["a"]
    study.ask()

    def fail(*args, **kwargs):
        raise RuntimeError("no convergence")

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", fail)
    asked, point = study.ask()
    study.ask()
    assert "train.lr" in point
    assert [
        "the tpe sampler failed (RuntimeError: no convergence); such trials are sampled at random"
    ] == said
    study.tell(asked, "COMPLETE", {1: {"val_macro_f1": 0.5}})
    running = [t for t in study.optuna.trials if t.state == optuna.trial.TrialState.RUNNING]
    assert 2 == len(
        running
    )  # the first and the last one, which were not told; no orphan of the failure


def test_a_start_is_tried_although_the_sampler_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no convergence")

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_independent", fail)
    studies = toy.make_studies(tmp_path, {"start": [{"train.head": "deep"}]})
    studies.warn = lambda _: None
    first, second = (studies.studies["a"].ask().point for _ in range(2))
    assert "deep" == first["train.head"]
    assert first != second


def finished_run(root, name, search, families):
    """Play a study in a run folder of a store, with artifacts for what was finished."""
    run, store = root / "runs" / name, Store(root)
    run.parent.mkdir(exist_ok=True)
    done = {}
    play(run, search=search, store=done)
    for key, history in done.items():
        if store.find("trial", key) is None:
            with store.draft("trial", key, params={}, inputs={}) as draft:
                draft.result["history"] = history
    write_families(run, families)
    return run


def take_over(root, name, search, families):
    """Begin a run with what earlier ones tell, play it, and return (taken over, epochs trained)."""
    wanted = Search.model_validate({"space": toy.SPACE, **search})
    found = earlier(Store(root), families, wanted, besides=name).get("a")
    run = root / "runs" / name
    run.mkdir()
    with Ledger(run) as ledger:
        for event in found.events if found else []:
            ledger.append(event)
    return found, play(run, search=search)[1]


SEARCH = {"trials": 8, "scheduler": {"name": "asha", "grace": "1 epochs", "reduction": 3}}


def test_more_trials_of_the_same_study_train_only_those(tmp_path):
    first = finished_run(tmp_path, "first", SEARCH, {"a": "family"})
    found, trained = take_over(tmp_path, "second", {**SEARCH, "trials": 12}, {"a": "family"})
    assert (8, "first") == (found.n_trials, found.run_id)
    assert {f"s-a-{n:04}" for n in range(8, 12)} == {name for name, _ in trained}
    play(tmp_path / "calm", search={**SEARCH, "trials": 12})
    assert outcome(tmp_path / "calm") == outcome(tmp_path / "runs/second")
    assert outcome(first).items() <= outcome(tmp_path / "runs/second").items()


def test_fewer_trials_or_another_study_take_over_what_fits(tmp_path):
    finished_run(tmp_path, "first", SEARCH, {"a": "family"})
    wanted = Search.model_validate({**SEARCH, "space": toy.SPACE})
    assert {} == earlier(Store(tmp_path), {"a": "another"}, wanted, besides="second")
    assert {} == earlier(Store(tmp_path), {"a": "family"}, wanted, besides="first")
    fewer = Search.model_validate({**SEARCH, "space": toy.SPACE, "trials": 3})
    assert 3 == earlier(Store(tmp_path), {"a": "family"}, fewer, besides="second")["a"].n_trials


def test_a_wider_space_with_a_new_choice_keeps_the_old_trials(tmp_path):
    first = finished_run(tmp_path, "first", SEARCH, {"a": "family"})
    search = {**SEARCH, "trials": 11, "space": WIDER}
    found, trained = take_over(tmp_path, "second", search, {"a": "family"})
    assert (8, 3) == (found.n_trials, len({name for name, _ in trained}))
    assert outcome(first).items() <= outcome(tmp_path / "runs/second").items()


def test_a_narrower_space_leaves_out_what_is_no_longer_in_it(tmp_path):
    first = finished_run(tmp_path, "first", SEARCH, {"a": "family"})
    narrow = {**toy.SPACE, "train.head": {"choice": ["deep"]}}
    kept = [point for point, *_ in outcome(first).values() if point["train.head"] == "deep"]
    found, _ = take_over(tmp_path, "second", {**SEARCH, "space": narrow}, {"a": "family"})
    assert len(kept) == found.n_trials
    assert kept == [point for point, *_ in outcome(tmp_path / "runs/second").values()][: len(kept)]


def test_a_trial_whose_artifact_is_gone_ends_what_is_taken_over(tmp_path):
    first = finished_run(tmp_path, "first", SEARCH, {"a": "family"})
    with Ledger(first) as ledger:
        started = [event for event in ledger.events if isinstance(event, TrialStarted)]
        done = {
            event.trial_id
            for event in ledger.events
            if isinstance(event, TrialEnded) and event.status == "COMPLETE"
        }
    at, gone = next((n, event) for n, event in enumerate(started) if n and event.trial_id in done)
    (tmp_path / "trial" / gone.key / "manifest.json").unlink()
    wanted = Search.model_validate({**SEARCH, "space": toy.SPACE})
    assert at == earlier(Store(tmp_path), {"a": "family"}, wanted, besides="second")["a"].n_trials
