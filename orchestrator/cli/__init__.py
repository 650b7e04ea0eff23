"""The command line: parse, call, print. Each command imports what it needs."""

from orchestrator.cli import ensembles, housekeeping, running, showing
from orchestrator.cli.command_group import main

__all__ = ["ensembles", "housekeeping", "main", "running", "showing"]
