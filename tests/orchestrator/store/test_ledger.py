import fcntl
import json
import threading

import pytest

from orchestrator.store.event_types import (
    ArtifactDamaged,
    EpochReported,
    Repaired,
    RunEnded,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialStarted,
    WorkerDied,
)
from orchestrator.store.ledger import (
    LOCK,
    Ledger,
    LedgerDamaged,
    LedgerLocked,
    is_live,
    read,
    replay,
)

STARTED = {
    "phase": "search",
    "variant": "a",
    "setting": "s",
    "params": {},
    "seed": 0,
    "fold": None,
    "key": "k",
    "number": 0,
}


def test_a_torn_last_line_is_dropped_and_what_was_committed_stays(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(TrialStarted(trial_id="t", **STARTED), commit=True)
        ledger.append(EpochReported(trial_id="t", epoch=1, metrics={"val_macro_f1": 0.5}))
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with Ledger(tmp_path) as ledger:
        assert [type(event) for event in ledger.events] == [TrialStarted, Repaired]
    assert [event.n for event in read(path)] == [0, 1]


@pytest.mark.parametrize("damage", [b"#", b"\xff"])
def test_a_damaged_record_in_the_middle_cuts_nothing_off(tmp_path, damage):
    with Ledger(tmp_path) as ledger:
        for number in range(3):
            ledger.append(TrialStarted(trial_id=f"t{number}", **STARTED))
    path = tmp_path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + lines[1][1:] + lines[2])
    before = path.read_bytes()
    for use in (lambda: read(path), lambda: Ledger(tmp_path).__enter__()):
        with pytest.raises(LedgerDamaged, match=r"events\.jsonl, record 2: .* nothing was changed"):
            use()
    assert before == path.read_bytes()
    assert not is_live(tmp_path)


def test_a_look_at_the_lock_keeps_no_driver_out(tmp_path):
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open("rb") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.2, looker.close).start()
        with Ledger(tmp_path):
            assert is_live(tmp_path)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_cut_anywhere_replays_to_a_prefix(tmp_path, cut):
    with Ledger(tmp_path) as ledger:
        for number in range(3):
            ledger.append(TrialStarted(trial_id=f"t{number}", **STARTED))
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(replay(read(path)).trials) == ["t0", "t1"]


def test_records_are_read_back_as_the_events_that_wrote_them(tmp_path):
    written = [
        RunStarted(run_id="r", labels={"mask": ["wear", "not"]}),
        ArtifactDamaged(kind="shard", key="k", reason="hash"),
        TrialStarted(trial_id="t", **STARTED),
        WorkerDied(trial_id="t", error="killed", micro_batch=8),
        TrialEnded(trial_id="t", status="PRUNED", why="asha"),
    ]
    with Ledger(tmp_path) as ledger:
        for event in written:
            ledger.append(event)
    path = tmp_path / "events.jsonl"
    assert ledger.events == read(path)
    assert [event.stamped(-1, 0.0) for event in read(path)] == written
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(record)[:3] for record in records] == [["n", "time", "event"]] * len(written)
    assert ("damaged", "shard") == (records[1]["event"], records[1]["kind"])
    assert {"key", "packages"}.isdisjoint(records[0])


def test_records_of_a_newer_version_are_kept_and_a_record_without_its_fields_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    newer = {"n": 0, "time": 1.0, "event": "moved", "to": "there"}
    wider = {"n": 1, "time": 2.0, "event": "stage", "stage": "audit", "outcome": "CACHED", "by": 1}
    path.write_text(json.dumps(newer) + "\n" + json.dumps(wider) + "\n")
    unknown, stage = read(path)
    assert newer == unknown.to_json()
    assert stage == StageEnded(n=1, time=2.0, stage="audit", outcome="CACHED")
    assert {"audit": "CACHED"} == replay([unknown, stage]).stages
    path.write_text(json.dumps({"n": 0, "time": 1.0, "event": "trial_ended"}) + "\n")
    with pytest.raises(LedgerDamaged, match=r"trial_ended: .*trial_id"):
        Ledger(tmp_path).__enter__()


@pytest.mark.parametrize("kind", ["driver_started", "of a newer version"])
@pytest.mark.parametrize("time", [6.8e16, 10**400, -1, float("nan"), "now"])
def test_a_time_that_is_no_date_is_refused(tmp_path, kind, time):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({"n": 0, "time": time, "event": kind}) + "\n")
    with pytest.raises(LedgerDamaged, match=rf"events\.jsonl.*{kind}: time was required"):
        read(path)


def test_a_number_that_no_float_holds_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    start = {"n": 0, "time": 1.0, "event": "stage", "stage": "audit", "outcome": "CACHED"}
    path.write_text(json.dumps({**start, "wall_s": 10**400}) + "\n")
    with pytest.raises(LedgerDamaged, match="wall_s was required below 1e308"):
        read(path)


def test_one_driver_at_a_time_and_the_lock_dies_with_it(tmp_path):
    assert not is_live(tmp_path)
    with Ledger(tmp_path):
        assert is_live(tmp_path)
        with pytest.raises(LedgerLocked), Ledger(tmp_path):
            pass
    assert not is_live(tmp_path)


def test_replay_tells_what_happened(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(RunStarted())
        ledger.append(TrialStarted(trial_id="t", **STARTED))
        ledger.append(EpochReported(trial_id="t", epoch=1, metrics={"val_macro_f1": 0.5}))
        ledger.append(TrialEnded(trial_id="t", status="PRUNED", epochs=1))
        ledger.append(StageEnded(stage="search", outcome="SUCCEEDED"))
        ledger.append(RunEnded(state="SUCCEEDED"))
    state = replay(ledger.events)
    assert (state.trials["t"].status, state.trials["t"].reports) == (
        "PRUNED",
        {1: {"val_macro_f1": 0.5}},
    )
    assert (state.stages, state.state) == ({"search": "SUCCEEDED"}, "SUCCEEDED")
    assert state == replay(ledger.events)
