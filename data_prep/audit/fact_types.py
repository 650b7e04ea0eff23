"""What an audit counts: the parts of audit.json as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "train_and_test",
    "test_group",
    "leak",
    "label_conflicts",
    "across_groups",
    "left_out",
    "shortcut",
    "quarantined",
    "rare",
    "missing",
    "border",
    "tells",
    "imbalance",
    "no_groups",
    "within_group",
]
"""The kinds of findings, the worst first."""


@dataclass(frozen=True)
class Finding:
    """A problem of the data, its size, examples, and what to change in the spec."""

    kind: Kind
    what: str
    n: int
    examples: list[Any]
    do: str


@dataclass(frozen=True)
class ScoreWords:
    """The score that quick models are judged by: as a spec writes it, and in words."""

    text: str = "macro_f1"
    title: str = "macro F1"  # of all labels together, or as the spec says
    of_label: str = "macro F1"  # of each label by itself


@dataclass(frozen=True)
class PartlyLabelled:
    """Photos that lack a label: all of them, those that train the labels they have, and of which."""

    n: int
    n_training: int
    missing: dict[str, int]  # label -> photos of `n_training` that lack it


@dataclass(frozen=True)
class JointTable:
    """Photos per pair of classes of two labels, and Cramer's V of the table (0 to 1)."""

    labels: list[str]
    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    association: float


@dataclass(frozen=True)
class Tell:
    """How much a column, or the form of the photos, tells of a label."""

    column: str
    label: str
    association: float
    n_values: int


@dataclass(frozen=True)
class BorderCounts:
    """Photos within 3 units of a border."""

    below: int
    above: int


@dataclass(frozen=True)
class Histogram:
    """The numbers behind a label: bar i covers start + i * width up to the next bar."""

    column: str | None
    borders: list[float]
    train_borders: list[float] | None
    start: float
    width: float
    counts: list[int]
    doubtful: dict[str, BorderCounts]


@dataclass(frozen=True)
class PhotoSize:
    """A size in pixels and how many photos have it."""

    width: int
    height: int
    n: int


@dataclass(frozen=True)
class SideRange:
    """Range of one side of the photos, in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class PhotoSizes:
    """The most frequent sizes, and the range of both sides where there are photos."""

    frequent: list[PhotoSize]
    n_distinct: int
    width: SideRange | None = None
    height: SideRange | None = None


@dataclass(frozen=True)
class Quarantined:
    """A photo that cannot be used."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class PhotoSets:
    """Sets of sample ids; at most 500 are listed, catalog.parquet has all of them."""

    n: int
    n_photos: int
    examples: list[list[str]]
    sets: list[list[str]]


@dataclass(frozen=True)
class Duplicates:
    """Sets of equal photos by place. A set with two labels also counts as a conflict."""

    train_and_test: PhotoSets
    across_groups: PhotoSets
    within_group: PhotoSets
    label_conflicts: PhotoSets


@dataclass(frozen=True)
class ExcludedByRule:
    """What one rule of `data.exclude` takes out; two rules may count one photo."""

    rule: dict[str, Any]
    n: int
    n_groups: int


@dataclass(frozen=True)
class VariantFacts:
    """The split of one variant: photos and groups per role, classes per fold, and the leak.

    `folds` and `fold_classes` are those of the first confirm seed, `folds_without` of any.
    """

    roles: dict[str, int]
    groups: dict[str, int]
    counts: dict[str, dict[str, dict[str, int]]]
    classes: dict[str, dict[str, int]]
    folds: dict[str, int]
    fold_classes: dict[str, dict[str, int]]
    folds_without: dict[str, list[str]]
    leak: float
    leak_groups: float
    excluded: list[ExcludedByRule] | None = None


@dataclass(frozen=True)
class AuditFacts:
    """All facts of an audit.

    `classes` counts joint classes that occur. `group_labels` are constant within most groups.
    `n_near_left_out` counts pairs that look alike and were not compared, because only the 20,000
    closest are. `people` are sets of groups that share a picture. `leak` is the share of val
    photos whose group, or one that shares a picture with it, is in train too. `leak_gap` and
    `probe` hold what quick models scored, where that was measured. `partly_labelled` is None where
    no photo trains without some label.
    """

    n_photos: int
    n_usable: int
    n_test: int
    n_groups: int
    counts: dict[str, dict[str, int]]
    classes: dict[str, int]
    n_classes_missing: int
    group_labels: list[str]
    group_strata: dict[str, int]
    joint: list[JointTable]
    histograms: dict[str, Histogram]
    tells: list[Tell]
    sizes: list[PhotoSize]
    photo_sizes: PhotoSizes
    quarantined: list[Quarantined]
    n_quarantined: int
    reasons: dict[str, int]
    duplicates: Duplicates
    near_duplicates: Duplicates
    n_near_left_out: int
    people: list[list[str]]
    imbalance: float | None
    test_groups_in_train: list[str]
    variants: dict[str, VariantFacts]
    leak_gap: Mapping[str, Mapping[str, Any]]
    probe: Mapping[str, Any] | None
    leak: dict[str, float]
    warnings: list[Finding]
    partly_labelled: PartlyLabelled | None = None
    score: ScoreWords = ScoreWords()

    def to_json(self) -> dict[str, object]:
        """Return the content of audit.json."""
        facts = asdict(self)
        if self.partly_labelled is None:
            del facts["partly_labelled"]
        if self.score == ScoreWords():
            del facts["score"]
        for side in ("width", "height"):
            if getattr(self.photo_sizes, side) is None:
                del facts["photo_sizes"][side]
        for name, variant in self.variants.items():
            if variant.excluded is None:
                del facts["variants"][name]["excluded"]
        return facts
