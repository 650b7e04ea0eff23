"""The records of selection.json."""

from __future__ import annotations

from typing import Any

from orchestrator.base.json_types import Json
from orchestrator.store.run_files.diagnosis import Diagnosed
from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.run_files.scores import Corrected, Difference, Scores


class Candidate(FileRecord):
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
    stopped_after: int | None = None  # seeds, if a race stopped it
    oof_score: float | None = None  # by the score of the spec; None where that is macro F1

    @property
    def score(self) -> float | None:
        """The score that candidates are compared by; `low` and `high` are its interval."""
        return self.oof_macro_f1 if self.oof_score is None else self.oof_score


class BoardRow(FileRecord):
    """The public and private scores of the ensemble or of one member."""

    who: str = ""
    public_accuracy: float | None = None
    public_macro_f1: float | None = None
    private_accuracy: float | None = None
    private_macro_f1: float | None = None
    public_score: float | None = None  # by the score of the spec; None where the others are it
    private_score: float | None = None

    @property
    def public_headline(self) -> float | None:
        """The score of the spec on the public half; macro F1 where that is accuracy."""
        return self.public_macro_f1 if self.public_score is None else self.public_score

    @property
    def private_headline(self) -> float | None:
        """The same on the private half."""
        return self.private_macro_f1 if self.private_score is None else self.private_score

    def to_json(self) -> Json:
        """Return plain data; a score that is none is left out."""
        without = {"public_score", "private_score"} if self.public_score is None else None
        return self.model_dump(exclude=without)


class Contribution(FileRecord):
    """What one member adds to the vote: the score with it minus the score without it."""

    setting: str = ""
    votes: int | None = None
    macro_f1: float | None = None
    score: float | None = None  # by the score of the spec; None where that is macro F1
    adds: Difference = Difference()

    @property
    def alone(self) -> float | None:
        """The score of the member alone."""
        return self.macro_f1 if self.score is None else self.score


class EnsembleScores(Diagnosed):
    """The ensemble's scores on every set of photos."""

    oof: Scores = Scores()
    public: Scores = Scores()
    test: Scores = Scores()
    gain: Difference | None = None
    corrected: Corrected | None = None
    board: tuple[BoardRow, ...] = ()
    marginal: tuple[Contribution, ...] = ()


class AdjustedLabel(FileRecord):
    """What is done to the probabilities of one label of a member."""

    label: str = ""
    temperature: float = 1.0
    shift: tuple[float, ...] = ()


class Adjusted(FileRecord):
    """How the members' answers are moved before they vote."""

    by: Json = {}  # select.adjust of the spec
    seed: int = 0  # of the parts of the people that fits were judged on
    change: Difference = Difference()  # of the vote, by it
    members: dict[str, tuple[AdjustedLabel, ...]] = {}  # by setting, every label


class VoteRule(FileRecord):
    """How the members vote."""

    rule: str = ""  # hard | soft
    calibrate: bool = False  # of the spec: state confidences at temperatures
    temperatures: dict[str, float] = {}  # by label, where the spec asks for them
    adjusted: Adjusted | None = None  # None where members answer as they were trained
    group_mean: tuple[str, ...] = ()  # of the spec: labels that photos of a group agree on


class Selection(FileRecord):
    """What selection.json holds."""

    score: str = "macro_f1"  # of the spec
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
