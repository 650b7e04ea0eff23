"""`make gpu-check` on a machine without a card: every row that can run does, the others say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import check
from tests.gpu.check import CARD, CPU, Measured, Row, judge

ROOT = Path(__file__).resolve().parents[1]


def row(figure=1.0, beside=None, **settings):
    return Row("row", lambda setting: Measured(figure, "s", beside=beside), **settings)


@pytest.mark.parametrize(
    ("tested", "setting", "verdict"),
    [
        (row(0.98, 1.0, at_least=0.97), CARD, check.OK),
        (row(0.96, 1.0, at_least=0.97), CARD, check.SHORT),
        (row(0.96, 1.0, at_least=0.97), CPU, check.RAN),  # a CPU says nothing of a card
        (row(3.0, at_most=2), CARD, check.SHORT),
        (row(1.0, at_most=2), CARD, check.OK),
        (row(1.0), CARD, check.RAN),
        (row(cuda=True), CPU, check.NEEDS_CUDA),
    ],
)
def test_a_row_is_judged_by_its_own_figure_and_only_on_a_card(tested, setting, verdict):
    assert verdict == judge(tested, setting, time_left_s=1).verdict


def test_what_a_row_lacks_is_its_verdict_and_ends_nothing():
    def lacks(setting):
        import no_such_module  # noqa: F401

    result = judge(Row("row", lacks), CPU, time_left_s=1)
    assert check.FAILED == result.verdict
    assert "ModuleNotFoundError: No module named 'no_such_module'" == result.note
    assert check.NO_TIME == judge(row(), CPU, time_left_s=0).verdict


@pytest.mark.slow
def test_all_rows_but_submit_do_without_ray_and_optuna(tmp_path):
    code = """
import sys
for name in ("ray", "optuna", "pytest", "click", "rich"):
    sys.modules[name] = None  # an import of it raises
from tests.gpu.check import CPU, judge
from tests.gpu.rows import ROWS
import trainers.training_loop, trainers.inference, orchestrator.search.trial_process
names = {"checkpoint", "second_trial"}
for row in ROWS:
    if row.name in names:
        print(judge(row, CPU, time_left_s=60).verdict)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ["ran", "ran"] == done.stdout.split()


@pytest.mark.slow
def test_on_a_cpu_every_row_runs_or_says_that_it_needs_cuda(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--short", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {check.RAN, check.NEEDS_CUDA} == {each["verdict"] for each in rows}, done.stdout
    assert sum(each["verdict"] == check.RAN for each in rows) >= 16
