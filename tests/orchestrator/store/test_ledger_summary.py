"""A summary says what a replay of all records says, and decodes few of them."""

import json
import random

import pytest

from orchestrator.store import ledger_summary
from orchestrator.store.event_types import (
    EpochReported,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialReopened,
    TrialStarted,
    WorkerDied,
    objective,
)
from orchestrator.store.ledger import Ledger, LedgerDamaged, read, replay
from orchestrator.store.ledger_summary import RawReport, raw_report, summarize


def write(folder, n_trials=30):
    """Write a ledger in which trials run together, die, are reopened, and some never end."""
    draw = random.Random(0)
    with Ledger(folder) as ledger:
        ledger.append(RunStarted(run_id="a"))
        trials = [f"s-잎 {number}" for number in range(n_trials)]
        for name in trials:
            facts = {"setting": "s", "variant": "v", "phase": draw.choice(["search", "confirm"])}
            facts |= {"seed": draw.randint(0, 9), "fold": draw.choice([None, 0, 1])}
            ledger.append(TrialStarted(trial_id=name, key="k", **facts))
        ended = {}
        for _ in range(300):
            name = draw.choice(trials)
            known = ledger.state.trials[name].reports
            if name in ended:
                if draw.random() < 0.2:
                    ledger.append(TrialReopened(trial_id=name))
                    del ended[name]
                continue
            if draw.random() < 0.2:
                best = max(known.values(), key=objective, default=None)
                status = draw.choice(["COMPLETE", "PRUNED"]) if best else "FAILED"
                ledger.append(TrialEnded(trial_id=name, status=status, metrics=best))
                ended[name] = status
            elif draw.random() < 0.1:
                ledger.append(WorkerDied(trial_id=name, error="killed"))
            else:
                score = draw.choice([0.0, draw.random(), 1e-9])
                metrics = {"val_macro_f1": score, "val_score": draw.random()}
                epoch = draw.randint(1, len(known) + 1)
                ledger.append(EpochReported(trial_id=name, epoch=epoch, metrics=metrics))
        ledger.append(StageEnded(stage="search", outcome="SUCCEEDED"))


def test_a_summary_agrees_with_a_replay(tmp_path, monkeypatch):
    write(tmp_path)
    events = read(tmp_path / "events.jsonl")
    records = replay(events).trials
    for n_bytes in (300, 2**22):  # a batch is a record or two, or all
        monkeypatch.setattr(ledger_summary, "_BATCH_BYTES", n_bytes)
        summary = summarize(tmp_path / "events.jsonl")
        assert list(records) == list(summary.trials)
        for name, trial in summary.trials.items():
            record = records[name]
            assert (record.phase, record.variant, record.status) == (
                trial.phase,
                trial.variant,
                trial.status,
            )
            assert record.reports == trial.reports()
            started = record.started
            place = (started.setting, started.seed, started.fold)
            is_search_fold = started.phase == "search" and started.fold is not None
            assert trial.place == (place if is_search_fold else None)
            best = max(record.reports.values(), key=objective, default=None)
            assert best == trial.best()
        assert ["RunStarted", "StageEnded"] == [type(event).__name__ for event in summary.events]


def test_reports_of_ended_trials_stay_text(tmp_path):
    write(tmp_path)
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
    reports = [line for line in lines if b'"event": "report"' in line]
    assert len(reports) > 50
    assert all(isinstance(raw_report(line), RawReport) for line in reports)
    assert [] == [line for line in lines if raw_report(line) and line not in reports]


def test_a_torn_end_is_left_out_and_a_damaged_record_is_named_by_its_number(tmp_path, monkeypatch):
    place = tmp_path / "events.jsonl"
    write(tmp_path)
    whole = place.read_bytes()
    place.write_bytes(whole[:-9])
    assert 30 == len(summarize(place).trials)
    lines = whole.splitlines(keepends=True)
    place.write_bytes(b"".join([*lines[:20], b"{no record\n", *lines[20:]]))
    monkeypatch.setattr(ledger_summary, "_BATCH_BYTES", 300)
    with pytest.raises(LedgerDamaged, match="record 21: a complete event was required"):
        summarize(place)
    monkeypatch.undo()
    started = TrialStarted(trial_id="t", setting="s", variant="v", phase="search", key="k")
    report = {"n": 1, "time": 1.0, "event": "report", "trial_id": "t", "epoch": 1, "metrics": {}}
    report["metrics"] = {"other": 1.0}
    start = json.dumps(started.to_json())
    place.write_text(f"{start}\n{json.dumps(report)}\n{start}\n")
    with pytest.raises(LedgerDamaged, match=r"trial t: .*val_macro_f1 was required"):
        summarize(place).trials["t"].best()
    end = TrialEnded(trial_id="t", status="FAILED", metrics={"val_macro_f1": 0.5})
    events = [started, end.stamped(1, 1.0), started]
    lines = [json.dumps(event.to_json()) + "\n" for event in events]
    place.write_text("".join(lines).replace("0.5}", "0.5 5}"))
    with pytest.raises(LedgerDamaged, match="trial t: a complete record of its end was required"):
        summarize(place).trials["t"].best()
    assert {} == summarize(tmp_path / "nothing").trials


@pytest.mark.parametrize("kind", ["trial_started", "report", "trial_ended"])
def test_a_last_record_that_no_driver_would_keep_is_left_out(tmp_path, kind):
    place = tmp_path / "events.jsonl"
    write(tmp_path)
    lines = place.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if kind.encode() in line)
    torn = b",, ".join(lines[last].rsplit(b", ", 1))  # its text still looks like a record
    place.write_bytes(b"".join([*lines[:last], torn]))
    before = replay(read(place)).trials
    summary = summarize(place)
    assert len(read(place)) == last
    assert list(before) == list(summary.trials)
    for name, trial in before.items():
        assert (trial.status, trial.reports) == (
            summary.trials[name].status,
            summary.trials[name].reports(),
        )


def test_records_of_other_writers_mean_the_same(tmp_path):
    place = tmp_path / "events.jsonl"
    write(tmp_path)
    lines = place.read_text().splitlines()
    expected = {name: trial.reports() for name, trial in summarize(place).trials.items()}
    for change in (
        lambda line: line + "\r",
        lambda line: line.replace('": ', '":\r'),
        lambda line: line.replace('"metrics": ', '"metrics":\r'),
        lambda line: json.dumps(json.loads(line), separators=(",", ":")),
        lambda line: json.dumps(dict(reversed(json.loads(line).items()))),
    ):
        place.write_text("\n".join(map(change, lines)) + "\n", newline="")
        trials = summarize(place).trials
        assert expected == {name: trial.reports() for name, trial in trials.items()}
