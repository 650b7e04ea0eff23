"""The records of summary.json and plan.json."""

from __future__ import annotations

from orchestrator.store.run_files.records import FileRecord


class Summary(FileRecord):
    """What summary.json holds."""

    run_id: str = ""
    state: str = ""
    wall_s: float | None = None


class PlannedStage(FileRecord):
    """A stage as the plan states it."""

    name: str = ""
    outcome: str = ""
    why: str = ""


class PlanFile(FileRecord):
    """What plan.json says about the stages."""

    stages: tuple[PlannedStage, ...] = ()
