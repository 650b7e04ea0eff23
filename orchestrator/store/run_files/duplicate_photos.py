"""The records of copies.json: photos that are taken for one picture, as the models see them."""

from __future__ import annotations

from orchestrator.store.run_files.records import FileRecord


class Pictured(FileRecord):
    """A photo of a set of copies; no picture where preparation lost it."""

    sample_id: str = ""
    jpeg: str = ""  # base64


class CopySet(FileRecord):
    """A set of copies that matters: across groups, labels, or training and test."""

    where: str = ""  # across_groups | label_conflicts | train_and_test
    is_near: bool = False  # found by their pixels; else byte-equal
    photos: tuple[Pictured, ...] = ()


class CopySets(FileRecord):
    """What copies.json holds."""

    sets: tuple[CopySet, ...] = ()
