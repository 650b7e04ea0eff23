"""Results and status: the numbers of the run's files, as data."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from orchestrator.report.command_text.plans_and_runs import run_lines, status_lines
from orchestrator.report.command_text.result_tables import (
    audit_lines,
    ensemble_lines,
    render_results,
    trials_view,
)
from orchestrator.report.command_text.run_status import status_view
from orchestrator.store import tables
from orchestrator.store.ledger import Ledger
from tests.orchestrator.report.fake_run import SCHEMA, SETTINGS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("store") / "runs" / "masks-1a2b3c4d")


def test_trials_are_all_there_with_search_first_and_best_first(run):
    rows = trials_view(run)
    assert len(pq.read_table(run / "trials.parquet")) == len(rows)
    assert [row["phase"] for row in rows] == ["search"] * 38 + ["confirm"] * 30
    scored = [row["val_macro_f1"] for row in rows[:38] if row["val_macro_f1"] is not None]
    assert sorted(scored, reverse=True) == scored


def test_csv_has_the_columns_and_values_of_the_table(run):
    rows = list(csv.DictReader(io.StringIO(render_results(run, "csv"))))
    table = {row["trial_id"]: row for row in pq.read_table(run / "trials.parquet").to_pylist()}
    assert list(rows[0]) == list(next(iter(table.values())))
    assert {name: row["val_macro_f1"] for name, row in table.items() if row["val_macro_f1"]} == {
        row["trial_id"]: float(row["val_macro_f1"]) for row in rows if row["val_macro_f1"]
    }


def test_json_holds_ensemble_candidates_and_hypotheses(run):
    view = json.loads(render_results(run, "json"))
    selection = json.loads((run / "selection.json").read_text())
    assert selection["ensemble"]["oof"] == view["ensemble"]["oof"]
    assert selection["members"] == view["ensemble"]["members"]
    assert list(SETTINGS) == [candidate["setting"] for candidate in view["candidates"]]
    assert len(view["hypotheses"]) == 3


def test_the_gravest_warnings_of_the_audit_are_repeated_in_three_lines(tmp_path):
    warnings = [{"what": "equal photos are in different groups", "n": 4}]
    warnings += [{"what": f"warning {number}", "n": 1} for number in range(4)]
    (tmp_path / "audit.json").write_text(json.dumps({"warnings": warnings}))
    first, *_, last = lines = audit_lines(tmp_path)
    assert len(lines) == 4
    assert first == "audit: equal photos are in different groups: 4"
    assert last == "audit: and 2 more in audit.json"
    assert audit_lines(tmp_path / "none") == []


def test_table_shows_every_trial_and_the_score_with_its_interval(run):
    text = render_results(run, "table")
    score = json.loads((run / "selection.json").read_text())["ensemble"]["oof"]["macro_f1"]
    assert [row["trial_id"] for row in trials_view(run) if row["trial_id"] not in text] == []
    assert f"{score['estimate']:.3f}" in text
    assert f"{score['low']:.3f} to {score['high']:.3f}" in text


def test_a_verdict_names_both_p_values_because_the_interval_goes_with_the_first(tmp_path):
    root = write_run(tmp_path)
    rows = json.loads((root / "hypotheses.json").read_text())
    rows[0] |= {"p_value": 0.0116, "p_adjusted": 0.74, "look": 2}
    (root / "hypotheses.json").write_text(json.dumps(rows))
    text = "\n".join(ensemble_lines(root))
    assert ", p 0.012, 0.740 adjusted for all claims at look 2, " in text
    rows[0] |= {"p_adjusted": 0.0116, "look": 1}
    (root / "hypotheses.json").write_text(json.dumps(rows))
    assert re.search(r", p 0.012, \d+ groups", "\n".join(ensemble_lines(root)))


def test_scores_that_are_no_numbers_are_null_in_json(tmp_path):
    row = {"trial_id": "s-[bold]x", "setting": "aa", "variant": "[red]a", "phase": "search", "seed": 1, "status": "FAILED", "params": "{}",
           "val_macro_f1": float("nan"), "val_loss": float("inf")}  # fmt: skip
    tables.write(
        tables.from_rows([row], tables.trials_schema(SCHEMA.names)), tmp_path / "trials.parquet"
    )
    found = json.loads(render_results(tmp_path, "json"), parse_constant=pytest.fail)["trials"][0]
    assert (found["val_macro_f1"], found["val_loss"]) == (None, None)
    assert "[red]a" in render_results(tmp_path, "table")


def test_lines_say_how_sure_the_score_is(run, tmp_path):
    text = "\n".join(ensemble_lines(run))
    assert "48 groups" in text
    assert "too narrow" in text
    assert "half-cutmix > single: supported" in text
    assert "no test labels: no test score" in "\n".join(
        ensemble_lines(write_run(tmp_path / "run", test_labels=False))
    )


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_run_without_results_has_empty_ones(tmp_path, form):
    assert render_results(tmp_path, form)
    assert trials_view(tmp_path) == []
    assert ensemble_lines(tmp_path) == ["no ensemble yet"]


def test_torn_selection_is_no_ensemble(run, tmp_path):
    (tmp_path / "selection.json").write_text('{"members": ["a1b2')
    assert ensemble_lines(tmp_path) == ["no ensemble yet"]


def test_status_leaves_out_a_torn_last_line(run, tmp_path):
    raw = (run / "events.jsonl").read_bytes()
    (tmp_path / "events.jsonl").write_bytes(raw[:-20])
    view = status_view(tmp_path)
    assert view["trials"] == {"COMPLETE": 63, "PRUNED": 4, "FAILED": 1}
    assert view["state"] == "INTERRUPTED"
    best = max(row["val_macro_f1"] or 0.0 for row in trials_view(run) if row["phase"] == "search")
    assert best == view["best"]["val_macro_f1"]
    assert len(view["stages"]) == 10


def test_status_and_runs_link_the_dashboard_of_a_live_run_alone(tmp_path):
    run = tmp_path / "runs/masks-1"
    (run / "control").mkdir(parents=True)
    (run / "events.jsonl").write_text('{"event": "run_started", "time": 1.0}\n')
    page = "http://127.0.0.1:8265/#/jobs/01000000"
    (run / "control/dashboard").write_text(page)
    with Ledger(run):
        assert f"dashboard: {page}" in status_lines(status_view(run))
        assert run_lines(tmp_path)[0].endswith(page)
    assert page not in "\n".join([*status_lines(status_view(run)), *run_lines(tmp_path)])


def test_a_score_of_zero_is_a_score(tmp_path):
    rows = []
    for name, score in (("low", -0.1), ("zero", 0.0), ("none", None), ("high", 0.1)):
        row = dict.fromkeys(tables.trials_schema([], ["val_score"]).names)
        rows.append({**row, "trial_id": name, "phase": "search", "val_score": score})
    rows[1]["val_macro_f1"] = 0.9
    table = tables.from_rows(rows, tables.trials_schema([], ["val_score"]))
    tables.write(table, tmp_path / "trials.parquet")
    assert ["high", "zero", "low", "none"] == [row["trial_id"] for row in trials_view(tmp_path)]


def test_status_counts_what_runs(tmp_path):
    events = [
        {"event": "run_started", "time": 1.0},
        {
            "event": "trial_started",
            "time": 2.0,
            "trial_id": "s-a-0000",
            "phase": "search",
            "variant": "a",
            "setting": "s",
            "key": "k",
        },
        {
            "event": "report",
            "time": 3.0,
            "trial_id": "s-a-0000",
            "epoch": 1,
            "metrics": {"val_macro_f1": 0.25},
        },
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with Ledger(tmp_path):
        view = status_view(tmp_path)
    assert view["trials"] == {"RUNNING": 1}
    assert ["s-a-0000"] == [one["trial_id"] for one in view["running"]]
    dead = status_view(tmp_path)
    assert ("INTERRUPTED", {"UNFINISHED": 1}, []) == (
        dead["state"],
        dead["trials"],
        dead["running"],
    )
    assert dead["wall_s"] == status_view(tmp_path)["wall_s"], "its clock stands"
    assert view["best"] == {"trial_id": "s-a-0000", "variant": "a", "val_macro_f1": 0.25}


def test_status_imports_nothing_heavy(run):
    code = (
        "import sys; from pathlib import Path; from orchestrator.report.command_text.run_status import status_view; status_view(Path(sys.argv[1]));"
        "print([name for name in ('torch', 'ray', 'pandas', 'pyarrow', 'numpy', 'rich') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
