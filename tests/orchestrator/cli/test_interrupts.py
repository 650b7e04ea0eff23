"""An interrupted command ends in time, in order or by force."""

import signal
import subprocess
import sys

import pytest

BLOCK = """
import signal, sys, time
from orchestrator.cli.interrupts import ending_in_time
signal.signal(signal.SIGINT, signal.{before})
with ending_in_time(0.3):
    try:
        print("ready", flush=True)
        time.sleep({sleep_s})
    finally:
        time.sleep({clean_up_s})
print("went on")
"""


def start(**values):
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCK.format(**values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_clean_up_that_hangs_is_ended_by_force(number):
    process = start(before="default_int_handler", sleep_s=60, clean_up_s=60)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert errors.startswith("not ended 0.3 s after the interrupt, so ended by force")


def test_a_quick_clean_up_is_left_alone():
    process = start(before="default_int_handler", sleep_s=60, clean_up_s=0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.rstrip().endswith("errors.Interrupted")
    assert "by force" not in errors


def test_an_ignored_interrupt_stays_ignored():
    process = start(before="SIG_IGN", sleep_s=1, clean_up_s=0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "went on\n")
