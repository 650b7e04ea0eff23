"""Which run a name means, and how runs are listed."""

import os
import time

import pytest

from orchestrator.base.errors import UserError
from orchestrator.report.command_text.plans_and_runs import run_lines, status_lines
from orchestrator.report.command_text.run_status import status_view
from orchestrator.report.command_text.run_story import story
from orchestrator.report.command_text.state_reasons import why
from orchestrator.run.control import remove_run
from orchestrator.store.event_types import RunEnded, StageEnded
from orchestrator.store.ledger import Ledger
from orchestrator.store.run_dir import RunPaths, find_run


def leave(store, name, *events, files=(), age_s=0.0, state="SUCCEEDED"):
    """Leave a run folder that was started some time ago."""
    paths = RunPaths(store / "runs" / name)
    paths.root.mkdir(parents=True)
    with Ledger(paths.root) as ledger:
        for event in events:
            ledger.append(event)
    for file in files:
        path = getattr(paths, file)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    paths.summary.write_text(f'{{"state": "{state}", "wall_s": 5.0}}')
    paths.resolved.write_text("")
    began = time.time() - age_s
    os.utime(paths.resolved, (began, began))
    return paths


def failed(store):
    return leave(
        store,
        "b-2",
        StageEnded(stage="catalog", outcome="SUCCEEDED"),
        StageEnded(stage="prepare", outcome="FAILED", note="the disk is full"),
        StageEnded(stage="search", outcome="BLOCKED", note="an earlier stage failed"),
        RunEnded(state="FAILED"),
        state="FAILED",
    )


def test_latest_is_the_latest_that_has_what_is_asked_for(tmp_path):
    leave(tmp_path, "a-1", files=["selection", "report"], age_s=9000)
    failed(tmp_path)
    assert "b-2" == find_run(tmp_path, "latest").run_id
    assert "a-1" == find_run(tmp_path, "latest", has="selection").run_id
    assert "b-2" == find_run(tmp_path, "latest", has="votes").run_id  # none has it
    assert "b-2" == find_run(tmp_path, "b-2", has="selection").run_id  # asked for by name


def test_a_failed_run_says_why_and_what_to_type(tmp_path):
    paths = failed(tmp_path)
    for lines in (status_lines(status_view(paths.root)), list(story(paths)), why(paths)):
        text = "\n".join(lines)
        assert "reason: stage prepare failed: the disk is full" in text
        assert "`resume b-2`" in text


def test_a_finished_run_has_no_reason(tmp_path):
    paths = leave(tmp_path, "a-1", RunEnded(state="SUCCEEDED"))
    assert "reason" not in "\n".join(status_lines(status_view(paths.root)))
    assert ["run a-1: SUCCEEDED"] == why(paths)


def test_runs_are_listed_with_state_age_and_size(tmp_path):
    paths = leave(tmp_path, "a-1", age_s=3 * 3600 + 60)
    (paths.root / "big").write_bytes(b"1" * 2_000_000)
    failed(tmp_path)
    first, second = run_lines(tmp_path)
    assert ["b-2", "FAILED"] == first.split()[:2]
    assert ["a-1", "SUCCEEDED", "3", "h", "ago", "5", "s", "2.0", "MB"] == second.split()


def test_a_run_is_removed_unless_it_is_live(tmp_path):
    paths = failed(tmp_path)
    with Ledger(paths.root), pytest.raises(UserError, match="it is live; end it with `cancel b-2`"):
        remove_run(paths)
    remove_run(paths)
    assert not paths.root.exists()
