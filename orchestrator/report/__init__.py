"""The report of a run: one self-contained HTML page, made from the run's files alone."""

from orchestrator.report.page import build

__all__ = ["build"]
