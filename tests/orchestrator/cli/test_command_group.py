"""A command that is interrupted ends with exit code 130, wherever the interrupt finds it."""

import subprocess
import sys

import pytest

COMMANDS = """
import os, signal
from orchestrator.cli.command_group import main
from orchestrator.cli.interrupts import ending_in_time

@main.command()
def plainly():
    exec("os.kill(os.getpid(), signal.SIGTERM)")

@main.command()
def in_a_run():
    with ending_in_time():
        exec("os.kill(os.getpid(), signal.{name})")

main()
"""


@pytest.mark.parametrize(
    ("command", "name"), [("plainly", "SIGTERM"), ("in-a-run", "SIGTERM"), ("in-a-run", "SIGINT")]
)
def test_an_interrupt_of_code_that_exec_runs(tmp_path, command, name):
    (tmp_path / "commands.py").write_text(COMMANDS.format(name=name))
    arguments = ["env", "--default-signal=INT", sys.executable, "-m", "commands", command]
    ended = subprocess.run(
        arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.startswith("interrupted; to continue the run")
