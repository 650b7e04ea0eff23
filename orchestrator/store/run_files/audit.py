"""The records of audit.json."""

from __future__ import annotations

from typing import Any

from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.run_files.scores import Score

_COUNTED = ("photos", "equal", "near")
"""First words of findings that count photos or sets of them."""


class Copies(FileRecord):
    """Sets of photos that are copies of each other."""

    n: int | None = None
    examples: tuple[tuple[str, ...], ...] = ()  # sample ids of a set


class Histogram(FileRecord):
    """Photos per value of a number, with the borders of its classes."""

    counts: tuple[float, ...] = ()
    start: float = 0.0
    width: float = 1.0
    borders: tuple[float, ...] = ()
    train_borders: tuple[float, ...] = ()


class JointCounts(FileRecord):
    """Photos per pair of classes of two labels."""

    labels: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    association: float | None = None


class Association(FileRecord):
    """How closely a column of the table goes with a label."""

    column: str = ""
    label: str = ""
    association: float | None = None


class Span(FileRecord):
    """Smallest, median and largest value."""

    min: int | None = None
    median: float | None = None
    max: int | None = None


class PhotoSizes(FileRecord):
    """The sizes of the photos in pixels."""

    width: Span | None = None
    height: Span | None = None
    n_distinct: int | None = None


class Exclusion(FileRecord):
    """A rule that keeps photos out of training and validation, and how many it matches."""

    rule: Any = None
    n: int | None = None
    n_groups: int | None = None


class SplitFacts(FileRecord):
    """The split of one variant: photos per class of every role and fold, and its leak."""

    classes: dict[str, dict[str, int]] = {}
    fold_classes: dict[str, dict[str, int]] = {}
    leak: float | None = None
    excluded: tuple[Exclusion, ...] = ()


class LeakGap(FileRecord):
    """The score of a quick model on a leaking split, and on one that keeps people apart."""

    split: float | None = None
    disjoint: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n_seeds: int | None = None
    n_folds: int | None = None
    n_train: int | None = None


class LabelProbe(FileRecord):
    """The scores of a quick model for one label: on the photo, on its border, and of guesses."""

    macro_f1: Score = Score()
    rim: Score = Score()
    chance: Score = Score()
    score: Score | None = None  # on the photo, where the spec's metric is not macro F1
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[float, ...], ...] = ()

    @property
    def headline(self) -> Score:
        """The score on the photo; `rim` and `chance` are by the same metric."""
        return self.score or self.macro_f1


class Probe(FileRecord):
    """The quick models of all labels."""

    n_photos: int | None = None
    n_groups: int | None = None
    labels: dict[str, LabelProbe] = {}


class ScoreWords(FileRecord):
    """The score that quick models are judged by, in words."""

    title: str = "macro F1"
    of_label: str = "macro F1"


class PartlyLabelled(FileRecord):
    """Photos that lack a label, and those of them that train the labels they have."""

    n: int | None = None
    n_training: int | None = None
    missing: dict[str, int] = {}


class AuditFinding(FileRecord):
    """A problem of the data, how many photos have it, and what to do."""

    kind: str = ""
    what: str = ""
    n: int | None = None
    do: str = ""
    examples: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """The problem in one line, with the number of photos or sets that it counts."""
        is_counted = self.n is not None and self.what.startswith(_COUNTED)
        return f"{self.what}: {self.n}" if is_counted else self.what


class AuditFacts(FileRecord):
    """What audit.json holds."""

    n_photos: int | None = None
    n_usable: int | None = None
    n_quarantined: int | None = None
    n_groups: int | None = None
    n_test: int | None = None
    n_classes_missing: int | None = None
    partly_labelled: PartlyLabelled = PartlyLabelled()
    score: ScoreWords = ScoreWords()
    classes: dict[str, int] = {}
    duplicates: dict[str, Copies] = {}
    near_duplicates: dict[str, Copies] = {}
    people: tuple[tuple[str, ...], ...] = ()  # groups that look like one person
    reasons: dict[str, int] = {}  # why a photo cannot be used -> photos
    histograms: dict[str, Histogram] = {}
    joint: tuple[JointCounts, ...] = ()
    tells: tuple[Association, ...] = ()
    photo_sizes: PhotoSizes = PhotoSizes()
    variants: dict[str, SplitFacts] = {}
    leak: dict[str, float] = {}
    leak_gap: dict[str, LeakGap] = {}
    probe: Probe = Probe()
    warnings: tuple[AuditFinding, ...] = ()
