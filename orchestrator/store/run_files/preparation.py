"""The records of prep.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from orchestrator.store.run_files.records import FileRecord


class ClassRate(FileRecord):
    """How many photos of one class a step failed on."""

    class_: str = Field("", alias="class")
    n: int = 0
    failed: int = 0


class FailureRate(FileRecord):
    """How often a step failed, by the classes of one label."""

    failure: str = ""
    label: str = ""
    classes: tuple[ClassRate, ...] = ()


class Film(FileRecord):
    """One photo after every step of its preparation."""

    sample_id: str = ""
    kind: str = ""  # face | mask | ordinary
    worth: float | None = None
    frames: tuple[str, ...] = ()  # base64 of JPEGs


class PreparedSet(FileRecord):
    """One set of prepared photos and the variants that share it."""

    variants: tuple[str, ...] = ()
    steps: tuple[Any, ...] = ()
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    rates: tuple[FailureRate, ...] = ()
    warnings: tuple[str, ...] = ()
    sheet: tuple[Film, ...] = ()


class Preparation(FileRecord):
    """What prep.json holds."""

    sets: tuple[PreparedSet, ...] = ()
