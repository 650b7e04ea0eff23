import fcntl
import threading

import pytest

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
        ledger.append("trial_started", commit=True, trial_id="t", **STARTED)
        ledger.append("report", trial_id="t", epoch=1, metrics={"val_macro_f1": 0.5})
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with Ledger(tmp_path) as ledger:
        assert [event["event"] for event in ledger.events] == ["trial_started", "repaired"]
    assert [event["n"] for event in read(path)] == [0, 1]


@pytest.mark.parametrize("damage", [b"#", b"\xff"])
def test_a_damaged_record_in_the_middle_cuts_nothing_off(tmp_path, damage):
    with Ledger(tmp_path) as ledger:
        for number in range(3):
            ledger.append("trial_started", trial_id=f"t{number}", **STARTED)
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
            ledger.append("trial_started", trial_id=f"t{number}", **STARTED)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(replay(read(path)).trials) == ["t0", "t1"]


def test_one_driver_at_a_time_and_the_lock_dies_with_it(tmp_path):
    assert not is_live(tmp_path)
    with Ledger(tmp_path):
        assert is_live(tmp_path)
        with pytest.raises(LedgerLocked), Ledger(tmp_path):
            pass
    assert not is_live(tmp_path)


def test_replay_tells_what_happened(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append("run_started")
        ledger.append("trial_started", trial_id="t", **STARTED)
        ledger.append("report", trial_id="t", epoch=1, metrics={"val_macro_f1": 0.5})
        ledger.append("trial_ended", trial_id="t", status="PRUNED", epochs=1)
        ledger.append("stage", stage="search", outcome="SUCCEEDED")
        ledger.append("run_ended", state="SUCCEEDED")
    state = replay(ledger.events)
    assert (state.trials["t"].status, state.trials["t"].reports) == (
        "PRUNED",
        {1: {"val_macro_f1": 0.5}},
    )
    assert (state.stages, state.state) == ({"search": "SUCCEEDED"}, "SUCCEEDED")
    assert state == replay(ledger.events)
