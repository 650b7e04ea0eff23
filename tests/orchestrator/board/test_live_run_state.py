"""The board reads a growing ledger once, keeps little of it, and tells what is running."""

import math

import pytest

from orchestrator.board.live_run_state import LiveRun, trial_events
from orchestrator.board.run_cache import Hub
from orchestrator.board.trial_overview import rungs, spread
from orchestrator.board.trial_table import PAGE_ROWS, Query, TrialTable, as_csv
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import ShardWritten, TrialReopened, WorkerDied
from orchestrator.store.ledger import Tail
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.board.planted import LiveDriver


@pytest.fixture
def driver(tmp_path):
    driver = LiveDriver(Store(tmp_path))
    yield driver
    driver.leave()


def opened(driver):
    run = LiveRun(RunPaths(driver.root))
    run.refresh(budget_s=60)
    return run


def again(run):
    run._next_s = 0.0
    run.refresh(budget_s=60)
    return run


def test_a_refresh_reads_what_is_new_and_raises_the_version_only_then(driver):
    run = opened(driver)
    driver.start("s-1", **{"train.optimizer.lr": 0.1})
    driver.report("s-1", 1, 0.5)
    version = run.version
    assert "s-1" in again(run).trials
    assert version < run.version
    version = run.version
    assert version == again(run).version
    run.refresh()  # too early: nobody makes it look twice a moment
    trial = run.trials["s-1"]
    assert {"optimizer.lr": 0.1} == trial.params
    assert (0.5, 0.5, 1) == (trial.score, trial.last_score, trial.n_epochs)
    assert "RUNNING" == run.shown_status(trial)


def test_a_trial_that_is_tried_again_reports_its_epochs_anew(driver):
    driver.start("s-1")
    for epoch, score in ((1, 0.2), (2, 0.6), (3, 0.5)):
        driver.report("s-1", epoch, score)
    driver.append(WorkerDied(trial_id="s-1", error="killed"))
    driver.report("s-1", 2, 0.4)
    trial = opened(driver).trials["s-1"]
    assert [(1, 0.2), (2, 0.4)] == [
        (row.epoch, pytest.approx(row.val_macro_f1)) for row in trial.epochs()
    ]
    assert 1 == trial.n_deaths
    assert all(row.train_loss is None for row in trial.epochs())  # it was not reported


def test_a_run_whose_driver_is_gone_has_unfinished_trials(driver):
    driver.start("s-1")
    run = opened(driver)
    assert ["s-1"] == [trial.trial_id for trial in run.running()]
    version = run.version
    driver.leave()
    assert [] == again(run).running()
    assert "UNFINISHED" == run.shown_status(run.trials["s-1"])
    assert version < run.version


def test_the_running_stage_says_how_much_is_done(driver):
    (driver.root / "plan.json").write_text('{"trials": {"search": 4}, "n_photos": 10}')
    run = opened(driver)
    assert "RUNNING" == run.stages()[0].outcome
    driver.begin_search()
    driver.append(ShardWritten(number=0, key="k", n_prepared=3, n_copied=1))
    for name in ("s-1", "s-2"):
        driver.start(name)
        driver.end(name, score=0.5, wall_s=2.0)
    stage = again(run).stages()[4]
    assert ("search", "RUNNING", 2, 4, 0.5) == (
        stage.name,
        stage.outcome,
        stage.n_done,
        stage.n_total,
        stage.share,
    )
    assert stage.left_s is not None
    assert 4 == run.n_prepared


def test_a_long_ledger_is_read_in_parts_that_end_at_records(driver):
    for number in range(50):
        driver.start(f"s-{number}", number)
    tail = Tail(driver.root / "events.jsonl")
    parts = []
    while tail.n_unread_bytes:
        parts.append(tail.read(at_most_bytes=1000))
        assert parts[-1]
    assert 51 == sum(map(len, parts))
    assert 20 < len(parts)
    assert [] == tail.read(at_most_bytes=1000)


def test_the_events_of_one_trial_are_those_with_its_name(driver):
    driver.start('s-"1"')
    driver.start("s-10")
    driver.report('s-"1"', 1, 0.5)
    driver.append(TrialReopened(trial_id="s-10"))
    events = trial_events(RunPaths(driver.root), 's-"1"')
    assert ["trial_started", "report"] == [event.record_kind for event in events]


def test_the_table_filters_sorts_and_turns_pages(driver):
    for number in range(120):
        name = f"s-{number:03}"
        head = "deep" if number % 2 else "single"
        driver.start(
            name, number, "ab"[number % 2], **{"train.lr": number / 10, "train.head": head}
        )
        if number != 7:
            driver.end(name, score=(number * 37 % 120) / 120, wall_s=1.0)
    run = opened(driver)
    table = TrialTable(run)
    page = table.page(Query.of({}))
    assert (120, 120, 3, PAGE_ROWS) == (page.n, page.n_matching, page.n_pages, len(page.rows))
    scores = [trial.score for trial in page.rows]
    assert sorted(scores, reverse=True) == scores
    last = table.page(Query.of({"page": "999"}))
    assert (3, 20, 101) == (last.query.page, len(last.rows), last.first)
    assert "s-007" == last.rows[-1].trial_id  # without a score it stands last, whatever the order
    assert "s-007" == table.page(Query.of({"order": "asc", "page": "3"})).rows[-1].trial_id
    by_setting = table.page(Query.of({"sort": "p.lr", "order": "asc", "variant": "b"}))
    assert [0.1, 0.3, 0.5] == [trial.params["lr"] for trial in by_setting.rows[:3]]
    assert 60 == table.page(Query.of({"text": "DEEP"})).n_matching
    assert ["s-007"] == [
        trial.trial_id for trial in table.page(Query.of({"status": "RUNNING"})).rows
    ]
    assert 1 == table.page(Query.of({"text": "s-007 deep"})).n_matching
    rows = as_csv(run, table.matching(Query.of({"text": "s-003"}))).splitlines()
    assert "s-003,b,search,00000003,0,,COMPLETE,0,0.925,,1.0,0.3,deep" == rows[1]


@pytest.mark.parametrize(
    "params",
    [{"page": "-1"}, {"page": "x" * 50}, {"sort": "nothing"}, {"sort": "p.x"}, {"order": "up"}],
)
def test_an_address_that_makes_no_sense_gives_the_first_page(driver, params):
    driver.start("s-1")
    assert 1 == len(TrialTable(opened(driver)).page(Query.of(params)).rows)


def test_addresses_keep_the_query_and_leave_out_defaults():
    query = Query.of({"text": "a b", "sort": "wall"})
    assert "?text=a+b&sort=wall&page=2" == query.address(page=2)
    assert "?" == Query.of({}).address()


def test_rungs_count_who_reached_an_epoch_and_who_was_stopped_there(driver):
    for number, (n_epochs, status) in enumerate(((1, "PRUNED"), (3, "PRUNED"), (9, "COMPLETE"))):
        driver.start(f"s-{number}", number)
        for epoch in range(1, n_epochs + 1):
            driver.report(f"s-{number}", epoch, 0.1 * number + 0.01 * epoch)
        driver.end(f"s-{number}", status)
    rows = rungs(list(opened(driver).trials.values()))
    assert [(1, 3, 1), (3, 2, 1)] == [(row.epoch, row.n_reached, row.n_stopped) for row in rows]
    assert math.isclose(0.13, rows[1].best_stopped, abs_tol=1e-6)


def test_many_trials_are_thinned_evenly_and_keep_the_best(driver):
    for number in range(100):
        driver.start(f"s-{number}", number)
        driver.end(f"s-{number}", score=number / 100)
    chosen = spread(list(opened(driver).trials.values()), 10)
    assert [0.99, 0.89, 0.79] == [trial.score for trial in chosen[:3]]
    assert 10 == len(chosen)


def test_a_damaged_ledger_costs_its_rest_and_is_told(driver):
    driver.start("s-1")
    run = opened(driver)
    with (driver.root / "events.jsonl").open("ab") as handle:
        handle.write(b'{}\n{"n": 3, "time": 1.0, "event": "repaired", "lost_bytes": 1}\n')
    again(run)
    assert "record" in run.damage
    assert 0 == run.n_unread_bytes
    assert ["s-1"] == list(run.trials)


def test_a_damaged_report_of_a_running_trial_is_told(driver):
    driver.start("s-1")
    driver.report("s-1", 1, 0.5)
    run = opened(driver)
    line = (
        b'{"n": 2, "time": 1.0, "event": "report", "trial_id": "s-1", "epoch": 2, "metrics": {x}}\n'
    )
    with (driver.root / "events.jsonl").open("ab") as handle:
        handle.write(line + b'{"n": 3, "time": 1.0, "event": "repaired", "lost_bytes": 1}\n')
    again(run)
    assert "trial s-1: a complete report was required" in run.damage
    again(run)
    assert (1, 0.5) == (run.trials["s-1"].n_epochs, run.trials["s-1"].score)


def test_reports_of_ended_trials_are_decoded_when_they_are_looked_at(driver):
    for name, scores in (("s-1", (0.2, 0.6, 0.5)), ('s-"2"', (0.1, 0.3))):
        driver.start(name)
        for epoch, score in enumerate(scores, 1):
            driver.report(name, epoch, score)
        driver.end(name, score=max(scores), epochs=len(scores))
    run = opened(driver)
    trial, other = run.trials["s-1"], run.trials['s-"2"']
    assert len(trial.lines) > 100  # not decoded yet
    assert (0.6, 0.5, 3) == (trial.score, trial.last_score, trial.n_epochs)
    assert [0.2, 0.6, 0.5] == [pytest.approx(row.val_macro_f1) for row in trial.epochs()]
    assert not trial.lines
    assert (0.6, 3) == (trial.score, trial.n_epochs)
    assert pytest.approx(0.5) == trial.last_score
    assert [0.1, 0.3] == [pytest.approx(row.val_macro_f1) for row in other.epochs()]


def test_the_runs_that_are_live_are_read_before_they_are_asked_for(driver):
    hub = Hub(Store(driver.root.parents[1]), driver.root)
    driver.start("s-1")
    hub.read_ahead()
    assert "s-1" in hub.open("live-1").live.trials
