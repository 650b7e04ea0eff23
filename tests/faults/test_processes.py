"""Each fault of a process once, in one real run; `python -m tests.campaign.faults` injects a hundred."""

import random
import shutil

import pytest

from tests.faults import processes
from tests.faults.rig import Rig, ray_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]


def test_a_run_survives_each_fault_and_ends_as_if_undisturbed(tmp_path):
    rig = Rig(tmp_path / "rig")
    try:
        calm = processes.undisturbed(rig)
        # for a GCS that dies while the cluster starts Ray itself waits longer than this test may
        chosen = [fault for fault in processes.faults(pause_s=3.0) if "GCS" not in fault.name]
        wanted = [(fault, 1) for fault in chosen]
        rows = processes.inject_all(rig, calm, wanted, random.Random(0), per_run=len(wanted))
    finally:
        shutil.rmtree(ray_folder(rig), ignore_errors=True)
    assert {} == {row.fault: row.notes for row in rows if row.held < row.injected or row.lost}
    assert sum(row.injected for row in rows) >= 12
