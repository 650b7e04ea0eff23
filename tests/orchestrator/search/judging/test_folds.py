"""Folds as fidelity: real Optuna and the real controller, over a toy score that differs by fold."""

import json
import math
import statistics
from collections import Counter
from dataclasses import replace

import optuna
import pytest
from scipy.stats import wilcoxon

from orchestrator.base.keys import digest
from orchestrator.board.live_run_state import LiveRun
from orchestrator.report import search_section
from orchestrator.report.command_text.plans_and_runs import status_lines
from orchestrator.report.command_text.run_status import status_view
from orchestrator.report.command_text.state_reasons import why
from orchestrator.report.load import load
from orchestrator.report.page import draw
from orchestrator.run.trackers.optuna_journal import Journal
from orchestrator.search.judging.folds import FoldStudies, fold_controller
from orchestrator.search.reuse import earlier, write_families
from orchestrator.search.trial_tables import best_trial, trials_table
from orchestrator.spec.search_space import Confirm, Search
from orchestrator.stages.search import rank_settings
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import (
    FOLD_SCORE,
    LimitReached,
    PhaseStarted,
    RunResumed,
    RunStarted,
    TrialEnded,
)
from orchestrator.store.fold_means import best_setting, fold_means, fold_trainings
from orchestrator.store.ledger import Ledger, read, replay
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.trials import searched_settings
from tests.orchestrator.search import toy

CONFIRM = Confirm(seeds=[3, 4], folds=4)
SEARCH = {"trials": 10, "folds": 8, "scheduler": {"name": "wilcoxon", "p": 0.1}, "space": toy.SPACE}


def measure(spec):
    """Return a score with easy and hard folds, and some luck of the training."""
    luck = int(digest([spec.params, spec.seed, spec.fold])[:4], 16) / 2**16 - 0.5
    score = toy.score(spec.params, toy.N_EPOCHS) + 0.03 * (spec.fold - spec.seed) + 0.02 * luck
    return {FOLD_SCORE: score}


def make_fold(trial_id, variant, point, step):
    spec = toy.spec_maker("nowhere")(trial_id, variant, point)
    key = digest([variant, point, *step])
    return replace(spec, seed=step.seed, fold=step.fold, key=key)


def play(folder, *, ledger=None, search=SEARCH, store=None, max_concurrent=1, fails=()):
    """Run a search in simulated time; return (controller, studies, epochs trained)."""
    folder.mkdir(exist_ok=True)
    store = {} if store is None else store
    search = Search.model_validate(search)
    with ledger or Ledger(folder) as written:
        written.append(RunResumed(run_id="toy") if written.events else RunStarted(run_id="toy"))
        written.append(PhaseStarted(phase="search"))
        plain = toy.make_studies(folder, search.model_dump(mode="json", by_alias=True))
        studies = FoldStudies(plain, search.fold_steps(CONFIRM), make_fold, measure)
        controller = fold_controller(
            studies, written, finished=lambda spec: store.get(spec.key), is_lost=lambda _: False
        )
        on_end = controller.on_end

        def end(name, status, **facts):
            if name in fails:
                on_end(name, "FAILED", "ValueError: no", cause="raised")
            else:
                on_end(name, status, **facts)

        controller.on_end = end
        trained = toy.simulate(
            controller,
            max_concurrent=max_concurrent,
            finish=lambda spec, history: store.setdefault(spec.key, history),
        )
        return controller, studies, trained


def outcome(folder):
    """Return all that counts of a search: settings, scores and ends."""
    trials = replay(read(folder / "events.jsonl")).trials
    return {name: (t.params, t.status, t.metrics, t.why) for name, t in trials.items()}


def test_a_setting_that_loses_on_the_folds_of_the_best_one_is_stopped_and_no_other(tmp_path):
    _, studies, trained = play(tmp_path)
    whole = []
    stopped = []
    for setting in studies.settings.values():
        (stopped if len(setting.scores) < 8 else whole).append(setting)
    assert 10 == len(whole) + len(stopped)
    assert len(stopped) > 3
    assert len(trained) == toy.N_EPOCHS * sum(len(s.scores) for s in studies.settings.values())
    for setting in stopped:
        assert len(setting.scores) >= 4, "three lost folds are no evidence at p = .1"
        rivals = [s for s in whole if s.asked.number < setting.asked.number]
        best = max(rivals, key=lambda rival: rival.mean)
        lost = [setting.scores[n] - best.scores[n] for n in setting.scores]
        assert wilcoxon(lost, alternative="less").pvalue < 0.1
        assert wilcoxon(lost[:-1], alternative="less").pvalue >= 0.1, "it is stopped at once"
        assert setting.mean < max(s.mean for s in whole)
    trials = replay(read(tmp_path / "events.jsonl")).trials.values()
    last = [trial for trial in trials if trial.trial_id.startswith(stopped[0].begin)][-1]
    assert "COMPLETE" == last.status
    assert "wilcoxon: its setting loses to the best one, " in last.why
    assert "over the same " in last.why


def test_optuna_knows_a_setting_by_the_mean_over_its_folds(tmp_path):
    _, studies, _ = play(tmp_path)
    known = studies.studies.studies["a"].optuna.get_trials(deepcopy=False)
    known = [trial for trial in known if trial.state == optuna.trial.TrialState.COMPLETE]
    assert 10 == len(known)
    for trial, setting in zip(known, studies.settings.values(), strict=True):
        assert setting.scores == trial.intermediate_values
        assert math.isclose(trial.value, statistics.fmean(setting.scores.values()))


def test_folds_come_one_after_the_other_and_settings_side_by_side(tmp_path):
    _, studies, _ = play(tmp_path, max_concurrent=3)
    trials = replay(read(tmp_path / "events.jsonl")).trials
    order = {}
    for trial in trials.values():
        begin = trial.trial_id.rsplit("-", 2)[0]
        order.setdefault(begin, []).append((trial.started.seed, trial.started.fold))
    steps = [tuple(step) for step in studies.steps]
    assert [(3, 0), (3, 1), (3, 2), (3, 3), (4, 0), (4, 1), (4, 2), (4, 3)] == steps
    for seen in order.values():
        assert steps[: len(seen)] == seen
    first_of = [name for name in trials if name.endswith("-s3-f0")]
    assert first_of[:3] == list(trials)[:3], "three settings begin before one has a second fold"


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_killed_at_any_record_it_goes_on_at_the_next_fold(tmp_path, how):
    search = {**SEARCH, "trials": 4}
    play(tmp_path / "calm", search=search)
    expected = outcome(tmp_path / "calm")
    n_records = len(read(tmp_path / "calm/events.jsonl"))
    for place in range(3, n_records + 1, 31):
        folder = tmp_path / f"{how}-{place}"
        folder.mkdir()
        store = {}
        ledger = toy.MortalLedger(folder, place, how)
        with pytest.raises(toy.KilledError):
            play(folder, search=search, ledger=ledger, store=store)
        ended = {e.trial_id for e in read(folder / "events.jsonl") if isinstance(e, TrialEnded)}
        _, _, trained = play(folder, search=search, store=store)
        assert expected == outcome(folder), place
        assert ended.isdisjoint({name for name, _ in trained}), place


def test_killed_again_and_again_with_two_at_a_time_no_fold_is_trained_twice(tmp_path):
    store = {}
    for _ in range(200):
        try:
            play(tmp_path, ledger=toy.MortalLedger(tmp_path, 60), store=store, max_concurrent=2)
        except toy.KilledError:
            continue
        break
    events = read(tmp_path / "events.jsonl")
    trained = Counter(event.trial_id for event in events if isinstance(event, TrialEnded))
    assert {1} == set(trained.values())
    assert 10 == len(fold_means(fold_trainings(replay(events).trials.values())))


def test_what_the_store_has_is_not_trained(tmp_path):
    store = {}
    play(tmp_path / "first", store=store)
    _, _, trained = play(tmp_path / "second", store=store)
    assert not trained
    assert outcome(tmp_path / "first") == outcome(tmp_path / "second")


def test_a_fold_that_fails_ends_its_setting_alone(tmp_path):
    _, studies, _ = play(tmp_path, fails={"s-a-0002-s3-f1"})
    failed = studies.settings["s-a-0002"]
    assert [0] == list(failed.scores)
    assert [0, 1] == list(failed.keys)
    state = optuna.trial.TrialState
    states = [t.state for t in studies.studies.studies["a"].optuna.trials]
    assert 1 == states.count(state.FAIL)
    assert 9 == states.count(state.COMPLETE)
    trials = replay(read(tmp_path / "events.jsonl")).trials.values()
    assert failed.name not in {row.setting for row in rank_settings(trials, 8)}


def test_a_target_is_reached_by_the_mean_of_a_setting_and_by_no_single_fold(tmp_path):
    """The reports of a training are about its inner part, and one fold may be easy."""
    low = {**SEARCH, "limits": {"target": 0.5}}
    controller, studies, _ = play(tmp_path, search=low)
    assert [8] == [len(s.scores) for s in studies.settings.values()]
    assert controller.best == studies.settings["s-a-0000"].mean
    assert 1 == sum(isinstance(event, LimitReached) for event in read(tmp_path / "events.jsonl"))


def test_the_ranking_and_the_best_trial_go_by_whole_settings(tmp_path):
    _, studies, _ = play(tmp_path)
    state = replay(read(tmp_path / "events.jsonl"))
    ranking = rank_settings(state.trials.values(), 8)
    means = {s.name: s.mean for s in studies.settings.values() if len(s.scores) == 8}
    assert {row.setting: row.score for row in ranking} == pytest.approx(means)
    best = best_trial(state)
    assert (max(means.values()), 8) == (best[FOLD_SCORE], best["n_folds"])
    assert means[best["setting"]] == best[FOLD_SCORE]


def test_status_and_board_name_the_best_setting_and_not_its_luckiest_fold(tmp_path):
    _, studies, _ = play(tmp_path)
    whole = [setting for setting in studies.settings.values() if len(setting.scores) == 8]
    best = max(whole, key=lambda setting: setting.mean)
    single = {max(s.scores.values()) for s in studies.settings.values()}
    assert best.mean < max(single), "one fold is easy"
    view = status_view(tmp_path)
    named = view["best"]
    assert (best.name, best.mean, 8) == (named["setting"], named["fold_score"], named["n_folds"])
    assert best_trial(replay(read(tmp_path / "events.jsonl"))) == named
    line = f"best setting so far: {best.mean:.3f}, its mean over 8 folds (a, {best.name})"
    assert line in status_lines(view)
    live = LiveRun(RunPaths(tmp_path))
    live.refresh(budget_s=60)
    shown = live.best_setting()
    assert (best.name, best.mean, 8) == (shown.setting, shown.score, shown.n_folds)
    assert live.best() is None
    rows = searched_settings(live.rows(live.trials.values()))
    assert {row.setting: row.score for row in rows} == pytest.approx(
        {setting.name: setting.mean for setting in studies.settings.values()}
    )


def test_of_settings_under_way_those_with_the_most_folds_count_and_before_a_fold_none(tmp_path):
    search = {**SEARCH, "trials": 3, "scheduler": "none"}
    play(tmp_path / "whole", search=search, max_concurrent=3)
    lines = (tmp_path / "whole/events.jsonl").read_bytes().splitlines(keepends=True)
    seen = set()
    for place in range(2, len(lines), 7):
        (tmp_path / "events.jsonl").write_bytes(b"".join(lines[:place]))
        state = replay(read(tmp_path / "events.jsonl"))
        best = best_setting(fold_trainings(state.trials.values()))
        named = status_view(tmp_path)["best"]
        live = LiveRun(RunPaths(tmp_path))
        live.refresh(budget_s=60)
        assert best == live.best_setting()
        assert (best and best.trial_id) == (named and named["trial_id"])
        scores = {}
        for trial in state.trials.values():
            if trial.ended:
                scores.setdefault(trial.setting, []).append(trial.metrics[FOLD_SCORE])
        most = max(map(len, scores.values()), default=0)
        seen.add(most)
        means = [statistics.fmean(of) for of in scores.values() if len(of) == most]
        assert (best and best.score) == max(means, default=None)
    assert {0, 1, 7} <= seen


def test_more_settings_take_over_the_folds_of_an_earlier_run(tmp_path):
    run = tmp_path / "runs/first"
    run.parent.mkdir()
    done = {}
    play(run, store=done)
    store = Store(tmp_path)
    for key, history in done.items():
        with store.draft("trial", key, params={}, inputs={}) as draft:
            draft.result["history"] = history
    write_families(run, {"a": "family"})
    more = Search.model_validate({**SEARCH, "trials": 12})
    taken = earlier(store, {"a": "family"}, more, besides="second")["a"]
    n_folds = len(outcome(run))
    assert n_folds == taken.n_trials
    second = tmp_path / "runs/second"
    second.mkdir()
    with Ledger(second) as ledger:
        for event in taken.events:
            ledger.append(event)
    _, studies, trained = play(second, search={**SEARCH, "trials": 12})
    assert {"s-a-0010", "s-a-0011"} == {name.rsplit("-", 2)[0] for name, _ in trained}
    assert outcome(run).items() <= outcome(second).items()
    assert 12 == len(studies.settings)
    fewer = Search.model_validate({**SEARCH, "trials": 2})
    names = {e.trial_id for e in earlier(store, {"a": "family"}, fewer, besides="x")["a"].events}
    assert {"s-a-0000", "s-a-0001"} == {name.rsplit("-", 2)[0] for name in names}


def test_a_dependent_variant_waits_and_gets_the_best_setting_of_its_source_at_the_same_fold(
    tmp_path,
):
    sources = {}

    def make(trial_id, variant, point, step):
        spec = make_fold(trial_id, variant, point, step)
        if variant == "a":
            return spec
        sources[step] = studies.best_key("a", step)
        return replace(spec, source=sources[step])

    search = Search.model_validate({**SEARCH, "trials": 3, "scheduler": "none"})
    plain = toy.make_studies(tmp_path, search.model_dump(mode="json"), variants=("f", "a"))
    plain.sources = {"f": "a"}
    with Ledger(tmp_path) as ledger:
        studies = FoldStudies(plain, search.fold_steps(CONFIRM), make, measure)
        controller = fold_controller(studies, ledger)
        toy.simulate(controller, max_concurrent=2)
    variants = [trial.variant for trial in replay(read(tmp_path / "events.jsonl")).trials.values()]
    assert ["a"] * 24 + ["f"] * 24 == variants
    whole = [setting for setting in studies.settings.values() if setting.study.variant == "a"]
    best = max(whole, key=lambda setting: setting.mean)
    assert dict(zip(studies.steps, best.keys.values(), strict=True)) == sources


def test_report_and_why_show_settings_by_their_folds(tmp_path):
    _, studies, _ = play(tmp_path)
    state = replay(read(tmp_path / "events.jsonl"))
    tables.write(trials_table(state, ["a"]), tmp_path / "trials.parquet")
    (tmp_path / "resolved.yaml").write_text(json.dumps({"name": "toy", "search": SEARCH}))
    run = load(tmp_path)
    view = search_section.search(run)
    n_stopped = sum(len(s.scores) < 8 for s in studies.settings.values())
    assert (10, 8, n_stopped) == (view["n"], view["n_folds"], view["n_stopped"])
    ((_, _, body),) = draw(run, ("search",))
    assert f"{n_stopped} of the 10 settings have fewer" in body
    assert view["front"] is None
    scores = {row.setting: row.score for row in searched_settings(run.trials)}
    assert scores == pytest.approx({s.name: s.mean for s in studies.settings.values()})
    stopped = next(trial for trial in state.trials.values() if trial.why)
    lines = why(RunPaths(tmp_path), stopped.trial_id)
    assert any("no further fold: wilcoxon: its setting loses" in line for line in lines)
    assert any("fold_score: " in line for line in lines)


def test_study_log_has_one_trial_per_setting(tmp_path):
    _, studies, _ = play(tmp_path)
    journal = Journal(tmp_path, Search.model_validate(SEARCH))
    for trial in replay(read(tmp_path / "events.jsonl")).trials.values():
        journal.take(trial)
    logged = journal.studies["a"].trials
    assert [s.scores for s in studies.settings.values()] == [t.intermediate_values for t in logged]
    means = [s.mean for s in studies.settings.values()]
    assert means == pytest.approx([trial.value for trial in logged])
