"""The JSON files of a run and the rows of its trial tables, as typed records.

The reader is tolerant: a field that is missing or has another type takes its default, and fields
that a newer version added are left out. So every reader of a run works with attributes, and a file
of another version costs a number, not the page.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

R = TypeVar("R")
_INVALID = object()


def read_json(path: Path) -> Any:
    """Read one JSON file; NaN and infinities, which no file of a run may hold, become None."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)


def number(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_record(cls: type[R], value: Any) -> R:
    """Return a record of a JSON object; what cannot be used takes its default.

    Args:
        cls: a dataclass whose fields all have defaults.
        value: what the file holds, of any type.
    """
    source = value if isinstance(value, dict) else {}
    fields = {}
    for name, kind in _types_of(cls).items():  # type: ignore[arg-type]
        key = name.removesuffix("_")  # class_ is the key class
        if key in source and (item := _as_type(kind, source[key])) is not _INVALID:
            fields[name] = item
    return cls(**fields)


def as_records(cls: type[R], value: Any) -> tuple[R, ...]:
    """Return a record of every object in a JSON list."""
    items: tuple[R, ...] = _as_list(cls, value)
    return items


@functools.cache
def _types_of(cls: Any) -> dict[str, Any]:
    kinds = typing.get_type_hints(cls)
    return {item.name: kinds[item.name] for item in dataclasses.fields(cls) if item.init}


def _as_type(kind: Any, value: Any) -> Any:  # noqa: PLR0911 - one line a type
    """Return a value as a type of a record's field, or _INVALID."""
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in {Union, types.UnionType}:
        return None if value is None else _as_type(typing.get_args(kind)[0], value)
    if origin is tuple:
        return _as_list(typing.get_args(kind)[0], value)
    if origin is dict:
        return _as_dict(typing.get_args(kind)[1], value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    return as_record(kind, value) if isinstance(value, dict) else _INVALID


def _as_list(kind: Any, value: Any) -> Any:
    if not isinstance(value, list):
        return ()
    items = [_as_type(kind, item) for item in value]
    return tuple(item for item in items if item is not _INVALID)


def _as_dict(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return {}
    items = {str(key): _as_type(kind, item) for key, item in value.items()}
    return {key: item for key, item in items.items() if item is not _INVALID}


def _as_float(value: Any) -> Any:
    finite = number(value)
    return _INVALID if finite is None else finite


def _as_int(value: Any) -> Any:
    finite = number(value)
    return _INVALID if finite is None else round(finite)


def _as_str(value: Any) -> Any:
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if is_plain else _INVALID


def _as_bool(value: Any) -> Any:
    return value if isinstance(value, bool) else _INVALID


_SCALARS = {float: _as_float, int: _as_int, str: _as_str, bool: _as_bool}


# ---------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Score:
    """A score with its interval; a metric without an interval has its estimate alone."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.9
    n_groups: int | None = None
    n_samples: int | None = None
    too_narrow: bool = False  # photos were resampled, because no groups are known
    too_few_people: bool = False  # a class has fewer than 7 groups: the interval may cover less

    @classmethod
    def from_json(cls, value: Any) -> Score:
        """Return the score of an object, or of a bare number."""
        return as_record(cls, value if isinstance(value, dict) else {"estimate": value})


@dataclass(frozen=True)
class Corrected(Score):
    """A score with the bias of the selection taken off."""

    naive: float | None = None
    n_candidates: int | None = None
    optimism: float | None = None

    @classmethod
    def from_json(cls, value: Any) -> Corrected:
        """Return the score of an object."""
        return as_record(cls, value)


@dataclass(frozen=True)
class Scores:
    """The scores of one ensemble on one set of photos, by metric."""

    part: str = ""  # of the test set: whole, private or public; empty for other sets
    metrics: dict[str, Score] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any) -> Scores:
        """Return the scores of an object {part, metric: score}; an old file has macro F1 alone."""
        source = value if isinstance(value, dict) else {}
        if number(source.get("estimate")) is not None:
            source = {"macro_f1": source}
        metrics = {}
        for name, item in source.items():
            score = Score.from_json(item)
            if score.estimate is not None:
                metrics[str(name)] = score
        part = source.get("part")
        return cls(part if isinstance(part, str) else "", metrics)

    @property
    def macro_f1(self) -> Score | None:
        return self.metrics.get("macro_f1")

    @property
    def accuracy(self) -> Score | None:
        return self.metrics.get("accuracy")


@dataclass(frozen=True)
class Difference:
    """The difference of two scores with its interval."""

    over: str = ""  # the setting it is compared with
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    corrected_difference: float | None = None  # the best member chosen on other people
    corrected_low: float | None = None
    corrected_high: float | None = None

    @property
    def honest(self) -> Difference:
        """The corrected difference where there is one."""
        if self.corrected_difference is None:
            return self
        return Difference(
            self.over, self.corrected_difference, self.corrected_low, self.corrected_high
        )


# -------------------------------------------------------------------------------- selection.json


@dataclass(frozen=True)
class Candidate:
    """A confirmed setting: its scores, its rank, and why it is a member or not."""

    setting: str = ""
    variant: str = ""
    rank: int | None = None
    chosen: bool = False
    reason: str = ""
    oof_macro_f1: float | None = None
    low: float | None = None
    high: float | None = None
    worst_class: int | None = None
    worst_class_recall: float | None = None
    total_variation: float | None = None
    n_params: int | None = None
    search_score: float | None = None
    board_score: float | None = None
    n_samples: int | None = None
    n_left_out: int | None = None
    stopped_after: int | None = None  # seeds, where a race stopped it


@dataclass(frozen=True)
class BoardRow:
    """The public and private scores of the ensemble or of one member."""

    who: str = ""
    public_accuracy: float | None = None
    public_macro_f1: float | None = None
    private_accuracy: float | None = None
    private_macro_f1: float | None = None


@dataclass(frozen=True)
class Contribution:
    """What one member adds to the vote: the score with it minus the score without it."""

    setting: str = ""
    votes: int | None = None
    macro_f1: float | None = None
    adds: Difference = Difference()


@dataclass(frozen=True)
class SubgroupScore:
    """The scores on the photos that share a value of a label or of a column."""

    column: str = ""
    value: str = ""
    macro_f1: Score = Score()
    accuracy: Score = Score()


@dataclass(frozen=True)
class SuspectLabel:
    """Photos of one person whose given class the models doubt."""

    group: str = ""
    label: str = ""
    given: str = ""
    suggested: str = ""
    confidence: float | None = None  # of the given class
    suggested_confidence: float | None = None
    n_photos: int | None = None
    n_photos_read_so: int | None = None
    sample_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelNoise:
    """Likely wrong labels, the most suspect first, and the score without them."""

    method: str = ""
    n_suspects: int | None = None
    n_groups: int | None = None
    n_photos: int | None = None
    macro_f1_without: Score | None = None
    suspects: tuple[SuspectLabel, ...] = ()


@dataclass(frozen=True)
class Change:
    """A number before and after, and the interval of after minus before."""

    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LabelCalibration:
    """The temperature of one label, judged on people that it was not fitted on."""

    label: str = ""
    temperature: float | None = None
    helps: bool = False
    log_loss: Change = Change()
    calibration_error: Change = Change()


@dataclass(frozen=True)
class PartScore:
    """The score on another set of photos than the headline's."""

    n_photos: int | None = None  # that are left out of the headline, or added to it
    macro_f1: Score | None = None


@dataclass(frozen=True)
class EnsembleScores:
    """The ensemble's scores on every set of photos."""

    oof: Scores = Scores()
    public: Scores = Scores()
    test: Scores = Scores()
    gain: Difference | None = None
    corrected: Corrected | None = None
    board: tuple[BoardRow, ...] = ()
    marginal: tuple[Contribution, ...] = ()
    subgroups: tuple[SubgroupScore, ...] = ()
    label_noise: LabelNoise = LabelNoise()
    calibration: tuple[LabelCalibration, ...] = ()
    kept: PartScore | None = None  # without the photos that no member was trained on by rule
    lost: PartScore | None = None  # with the photos lost in preparation, counted as wrong


@dataclass(frozen=True)
class VoteRule:
    """How the members vote."""

    rule: str = ""  # hard | soft
    calibrate: bool = False  # confidences are stated at a temperature


@dataclass(frozen=True)
class Selection:
    """What selection.json holds."""

    policy: Any = None  # a name, or the list of the members that the spec fixes
    rule: str = ""
    level: float = 0.9
    members: tuple[str, ...] = ()
    weights: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    short_of: str = ""
    vote: VoteRule = VoteRule()
    ensemble: EnsembleScores = EnsembleScores()
    winner: Corrected | None = None


# ------------------------------------------------------------------------------ hypotheses.json


@dataclass(frozen=True)
class Hypothesis:
    """A claim of the spec and its verdict."""

    claim: str = ""
    verdict: str = ""
    metric: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    n_groups: int | None = None
    n_samples: int | None = None
    n_left_out: int | None = None
    margin: float | None = None  # of a claim of practical equality
    look: int | None = None  # 1 for the first
    n_seeds: int | None = None
    rests_on: str = ""  # people, people and trainings, or folds
    luck_of_one_training: float | None = None  # standard deviation of one checkpoint's score
    facts: dict[str, Any] = field(default_factory=dict)  # the whole row

    @classmethod
    def from_json(cls, value: Any) -> Hypothesis:
        """Return the verdict of a row; the row itself stays beside it."""
        row = value if isinstance(value, dict) else {}
        return as_record(cls, {**row, "facts": row})

    @property
    def p(self) -> float | None:
        """Return the adjusted p value, or the plain one where it was not adjusted."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted


# ----------------------------------------------------------------------------- certificate.json


@dataclass(frozen=True)
class Estimate:
    """The score that the certificate promises, on what, and for whom."""

    on: str = ""  # out-of-fold predictions | role val
    of: str = ""
    macro_f1: Score = Score()
    calibration_error: float | None = None


@dataclass(frozen=True)
class Gap:
    """How far the estimate lies from the test score."""

    estimate_minus_test: float | None = None
    corrected_minus_test: float | None = None
    test_is_inside_the_interval: bool = False


@dataclass(frozen=True)
class Check:
    """The comparison of fresh answers through `predict` with the stored ones."""

    equal: bool | None = None
    n_photos: int | None = None
    max_difference: float | None = None
    why: str = ""


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class."""

    name: str = ""
    f1: float | None = None
    recall: float | None = None
    precision: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class GroupScore:
    """The accuracy on the photos of one group."""

    group: str = ""
    accuracy: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class DataUse:
    """How often a set of labels was used, and for what."""

    what: str = ""
    times: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a member."""

    trial_id: str = ""
    seed: int | None = None
    fold: int | None = None
    git_commit: str | None = None
    weights_sha256: str = ""


@dataclass(frozen=True)
class CertifiedMember:
    """A member with its settings and checkpoints."""

    setting: str = ""
    variant: str = ""
    votes: int | None = None
    settings: Any = None
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class DataHashes:
    """The hashes of the catalog and of the photos."""

    catalog_sha256: str = ""
    photos_sha256: str = ""


@dataclass(frozen=True)
class SplitHash:
    """The hash of a variant's split."""

    sha256: str = ""


@dataclass(frozen=True)
class CodeVersion:
    """The commit of the code."""

    git_commit: str = ""


@dataclass(frozen=True)
class StoppedFinalist:
    """A finalist that a race stopped."""

    setting: str = ""
    variant: str = ""
    n_seeds: int | None = None
    behind: str = ""
    difference: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class RaceFacts:
    """What a race of finalists did."""

    n_finalists: int | None = None
    n_looks: int | None = None
    n_trainings: int | None = None  # without a race
    n_saved: int | None = None
    level: float | None = None
    stopped: tuple[StoppedFinalist, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """What certificate.json holds."""

    statement: str = ""
    policy: Any = None
    estimate: Estimate = Estimate()
    corrected: Corrected = Corrected()
    public: Scores = Scores()
    test: Scores = Scores()
    gap: Gap | None = None
    gain: Difference | None = None
    check: Check | None = None
    worst_classes: tuple[ClassScores, ...] = ()
    worst_groups: tuple[GroupScore, ...] = ()
    subgroups: tuple[SubgroupScore, ...] = ()
    label_noise: LabelNoise = LabelNoise()
    calibration: tuple[LabelCalibration, ...] = ()
    kept: PartScore | None = None  # without the photos that no member was trained on by rule
    lost: PartScore | None = None  # with the photos lost in preparation, counted as wrong
    race: RaceFacts | None = None
    looked_at: tuple[DataUse, ...] = ()
    members: tuple[CertifiedMember, ...] = ()
    data: DataHashes = DataHashes()
    splits: dict[str, SplitHash] = field(default_factory=dict)
    code: CodeVersion = CodeVersion()


# ------------------------------------------------------------------------------------ audit.json


@dataclass(frozen=True)
class Copies:
    """Sets of photos that are copies of each other."""

    n: int | None = None


@dataclass(frozen=True)
class Histogram:
    """Photos per value of a number, with the borders of its classes."""

    counts: tuple[float, ...] = ()
    start: float = 0.0
    width: float = 1.0
    borders: tuple[float, ...] = ()
    train_borders: tuple[float, ...] = ()


@dataclass(frozen=True)
class JointCounts:
    """Photos per pair of classes of two labels."""

    labels: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    association: float | None = None


@dataclass(frozen=True)
class Association:
    """How closely a column of the table goes with a label."""

    column: str = ""
    label: str = ""
    association: float | None = None


@dataclass(frozen=True)
class Span:
    """Smallest, median and largest value."""

    min: int | None = None
    median: float | None = None
    max: int | None = None


@dataclass(frozen=True)
class PhotoSizes:
    """The sizes of the photos in pixels."""

    width: Span | None = None
    height: Span | None = None
    n_distinct: int | None = None


@dataclass(frozen=True)
class Exclusion:
    """A rule that keeps photos out of training and validation, and how many it matches."""

    rule: Any = None
    n: int | None = None
    n_groups: int | None = None


@dataclass(frozen=True)
class SplitFacts:
    """The split of one variant: photos per class of every role and fold, and its leak."""

    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    fold_classes: dict[str, dict[str, int]] = field(default_factory=dict)
    leak: float | None = None
    excluded: tuple[Exclusion, ...] = ()


@dataclass(frozen=True)
class LeakGap:
    """The score of a quick model on a leaking split, and on one that keeps people apart."""

    split: float | None = None
    disjoint: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n_seeds: int | None = None
    n_folds: int | None = None
    n_train: int | None = None


@dataclass(frozen=True)
class LabelProbe:
    """The scores of a quick model for one label: on the photo, on its rim, and by chance."""

    macro_f1: Score = Score()
    rim: Score = Score()
    chance: Score = Score()
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Probe:
    """The quick models of all labels."""

    n_photos: int | None = None
    n_groups: int | None = None
    labels: dict[str, LabelProbe] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditFinding:
    """A problem of the data, how many photos have it, and what to do."""

    kind: str = ""
    what: str = ""
    n: int | None = None
    do: str = ""
    examples: tuple[Any, ...] = ()


@dataclass(frozen=True)
class AuditFacts:
    """What audit.json holds."""

    n_photos: int | None = None
    n_usable: int | None = None
    n_quarantined: int | None = None
    n_groups: int | None = None
    n_test: int | None = None
    n_classes_missing: int | None = None
    classes: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, Copies] = field(default_factory=dict)
    near_duplicates: dict[str, Copies] = field(default_factory=dict)
    people: tuple[tuple[str, ...], ...] = ()  # groups that look like one person
    reasons: dict[str, int] = field(default_factory=dict)  # why a photo cannot be used -> photos
    histograms: dict[str, Histogram] = field(default_factory=dict)
    joint: tuple[JointCounts, ...] = ()
    tells: tuple[Association, ...] = ()
    photo_sizes: PhotoSizes = PhotoSizes()
    variants: dict[str, SplitFacts] = field(default_factory=dict)
    leak: dict[str, float] = field(default_factory=dict)
    leak_gap: dict[str, LeakGap] = field(default_factory=dict)
    probe: Probe = Probe()
    warnings: tuple[AuditFinding, ...] = ()


# ------------------------------------------------------------------------------------- prep.json


@dataclass(frozen=True)
class ClassRate:
    """How many photos of one class a step failed on."""

    class_: str = ""
    n: int = 0
    failed: int = 0


@dataclass(frozen=True)
class FailureRate:
    """How often a step failed, by the classes of one label."""

    failure: str = ""
    label: str = ""
    classes: tuple[ClassRate, ...] = ()


@dataclass(frozen=True)
class Film:
    """One photo after every step of its preparation."""

    sample_id: str = ""
    kind: str = ""  # face | mask | ordinary
    worth: float | None = None
    frames: tuple[str, ...] = ()  # base64 of JPEGs


@dataclass(frozen=True)
class PreparedSet:
    """One set of prepared photos and the variants that share it."""

    variants: tuple[str, ...] = ()
    steps: tuple[Any, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rates: tuple[FailureRate, ...] = ()
    warnings: tuple[str, ...] = ()
    sheet: tuple[Film, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What prep.json holds."""

    sets: tuple[PreparedSet, ...] = ()


# --------------------------------------------------------- summary.json, plan.json, resolved.yaml


@dataclass(frozen=True)
class Summary:
    """What summary.json holds."""

    run_id: str = ""
    state: str = ""
    wall_s: float | None = None


@dataclass(frozen=True)
class PlannedStage:
    """A stage as the plan states it."""

    name: str = ""
    outcome: str = ""
    why: str = ""


@dataclass(frozen=True)
class PlanFile:
    """What plan.json says about the stages."""

    stages: tuple[PlannedStage, ...] = ()


@dataclass(frozen=True)
class DataFacts:
    """The section `data` of a resolved spec."""

    group: Any = ""
    labels: Any = None

    @property
    def group_text(self) -> str:
        """The group as a reader calls it: a column, or the rule that reads it from names."""
        rule = self.group if isinstance(self.group, dict) else {}
        return f"{rule['from']} of the photo" if "from" in rule else str(self.group)


@dataclass(frozen=True)
class SearchFacts:
    """The section `search` of a resolved spec."""

    space: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrepFacts:
    """The section `prep` of a resolved spec."""

    steps: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ResolvedSpec:
    """What readers of a run need of its resolved spec."""

    name: str = ""
    data: DataFacts = DataFacts()
    prep: PrepFacts = PrepFacts()
    search: SearchFacts = SearchFacts()
    confirm: Any = ()  # None where the spec switches it off
    vote: VoteRule = VoteRule()


# ----------------------------------------------------------------- trials.parquet, curves.parquet


@dataclass(frozen=True)
class TrialRow:
    """One row of trials.parquet."""

    trial_id: str = ""
    variant: str = ""
    phase: str = ""  # search | confirm
    setting: str = ""
    seed: int | None = None
    fold: int | None = None
    status: str = ""
    params: dict[str, Any] = field(default_factory=dict)  # short name -> sampled value
    epochs: int | None = None
    wall_s: float | None = None
    val_macro_f1: float | None = None
    val_accuracy: float | None = None
    val_loss: float | None = None
    error: str = ""
    label_scores: dict[str, float] = field(default_factory=dict)  # label -> its macro F1

    @classmethod
    def from_json(cls, value: Any) -> TrialRow:
        """Return a row of the table."""
        row = value if isinstance(value, dict) else {}
        prefix = "val_macro_f1_"
        scores = {
            name.removeprefix(prefix): score
            for name, score in row.items()
            if name.startswith(prefix)
        }
        return as_record(
            cls, {**row, "params": short_params(row.get("params")), "label_scores": scores}
        )


@dataclass(frozen=True)
class EpochRow:
    """One row of curves.parquet."""

    trial_id: str = ""
    epoch: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    val_macro_f1: float | None = None


def short_params(text: Any) -> dict[str, Any]:
    """Return a trial's sampled values by their names without `train.`."""
    try:
        params = json.loads(text or "{}")
    except (TypeError, ValueError):
        return {}
    if not isinstance(params, dict):
        return {}
    return {name.removeprefix("train."): value for name, value in params.items()}
