"""What a certificate says of a race of finalists."""

from __future__ import annotations

from orchestrator.store.run_files.records import FileRecord


class StoppedFinalist(FileRecord):
    """A finalist that a race stopped."""

    setting: str = ""
    look: int | None = None
    n_seeds: int | None = None
    behind: str = ""
    difference: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None


class RaceFacts(FileRecord):
    """What a race of finalists did."""

    n_finalists: int | None = None
    n_looks: int | None = None
    n_looks_taken: int | None = None
    n_trainings: int | None = None  # without a race
    n_saved: int | None = None
    level: float | None = None
    stopped: tuple[StoppedFinalist, ...] = ()
