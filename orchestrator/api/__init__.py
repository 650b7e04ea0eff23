"""Runs in Python: frames, objects that draw themselves in a notebook, predictions, and submit."""

from orchestrator.api.run_handle import OpenRun, open_run
from orchestrator.api.submission import submit

__all__ = ["OpenRun", "open_run", "submit"]
