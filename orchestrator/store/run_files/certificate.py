"""The records of certificate.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from orchestrator.store.run_files.diagnosis import Diagnosed
from orchestrator.store.run_files.race import RaceFacts
from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.run_files.scores import (
    CheckpointCurve,
    Corrected,
    Difference,
    Score,
    Scores,
)


class Estimate(FileRecord):
    """The score that the certificate promises, on what, and for whom."""

    on: str = ""  # out-of-fold predictions | role val
    of: str = ""
    people: str = ""  # which people had no part in a choice
    macro_f1: Score = Score()
    score: Score | None = None  # by the score of the spec; None where that is macro F1
    calibration_error: float | None = None

    @property
    def headline(self) -> Score:
        """The score that the spec goes by."""
        return self.score or self.macro_f1


class Gap(FileRecord):
    """How far the estimate lies from the test score."""

    estimate_minus_test: float | None = None
    corrected_minus_test: float | None = None
    expected_minus_test: float | None = None  # corrected and with all checkpoints, if known
    low: float | None = None  # of expected_minus_test
    high: float | None = None
    test_is_inside_the_interval: bool = False


class Check(FileRecord):
    """The comparison of fresh answers through `predict` with the stored ones."""

    equal: bool | None = None
    n_checkpoints: int | None = None
    n_photos: int | None = None
    max_difference: float | None = None  # of a probability
    tolerance: float | None = None
    why: str = ""


class ClassScores(FileRecord):
    """The scores of one class."""

    name: str = ""
    f1: float | None = None
    recall: float | None = None
    precision: float | None = None
    n: int | None = None


class GroupScore(FileRecord):
    """The accuracy on the photos of one group."""

    group: str = ""
    accuracy: float | None = None
    n: int | None = None


class DataUse(FileRecord):
    """How often a set of labels was used, and for what."""

    what: str = ""
    times: int | None = None
    why: str = ""


class Checkpoint(FileRecord):
    """One checkpoint of a member."""

    trial_id: str = ""
    seed: int | None = None
    fold: int | None = None
    key: str = ""  # of its artifact
    weights_sha256: str = ""
    git_commit: str | None = None
    host: str | None = None
    best_epoch: int | None = None


class CertifiedMember(FileRecord):
    """A member with its settings and checkpoints."""

    setting: str = ""
    variant: str = ""
    votes: int | None = None
    settings: Any = None
    prep_steps: tuple[Any, ...] = ()
    n_params: int | None = None
    oof_macro_f1: float | None = None
    oof_score: float | None = Field(None, exclude_if=lambda value: value is None)
    checkpoints: tuple[Checkpoint, ...] = ()


class DataHashes(FileRecord):
    """The hashes of the catalog and of the photos, and what they count."""

    catalog_sha256: str = ""
    photos_sha256: str = ""
    n_photos: int | None = None
    n_groups: int | None = None
    n_test: int | None = None
    n_public: int | None = None
    n_test_lost: int | None = None  # unreadable ones of the part that is scored
    n_quarantined: int | None = None


class SplitHash(FileRecord):
    """The key and the hash of a variant's split."""

    key: str = ""
    sha256: str = ""


class CodeVersion(FileRecord):
    """The commit of the code."""

    git_commit: str = ""


class Certificate(Diagnosed):
    """What certificate.json holds."""

    statement: str = ""
    score: str = "macro_f1"  # of the spec
    policy: Any = None
    estimate: Estimate = Estimate()
    corrected: Corrected = Corrected()
    checkpoints: CheckpointCurve = CheckpointCurve()
    findings: tuple[str, ...] = ()
    public: Scores = Scores()
    test: Scores = Scores()
    gap: Gap | None = None
    gain: Difference | None = None
    check: Check | None = None
    worst_classes: tuple[ClassScores, ...] = ()
    worst_groups: tuple[GroupScore, ...] = ()
    race: RaceFacts | None = None
    looked_at: tuple[DataUse, ...] = ()
    members: tuple[CertifiedMember, ...] = ()
    data: DataHashes = DataHashes()
    splits: dict[str, SplitHash] = {}
    code: CodeVersion = CodeVersion()
