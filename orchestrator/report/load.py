"""Everything a run folder holds, read once, with a sentence for what is missing."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_groups import GroupWords, group_words
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.probabilities.adjustment import cross_fitted
from orchestrator.report import confusion_matrices
from orchestrator.spec.models import Select
from orchestrator.spec.score import score_title
from orchestrator.store import tables
from orchestrator.store.event_types import DriverStarted, Event, RunStarted, StageEnded, from_json
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.duplicate_photos import CopySets
from orchestrator.store.run_files.gallery import Gallery
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.preparation import Preparation
from orchestrator.store.run_files.records import FileRecord, as_record, as_records, read_json
from orchestrator.store.run_files.resolved_spec import ResolvedSpec
from orchestrator.store.run_files.selection import Candidate, Selection
from orchestrator.store.run_files.summary import Summary
from orchestrator.store.run_files.trials import EpochRow, TrialRow

T = TypeVar("T")
R = TypeVar("R", bound=FileRecord)

View = dict[str, Any]
"""What one section shows: the names that its macro in sections.html.j2 reads."""


@dataclass(frozen=True)
class Run:
    """The files of a run; None or empty where a file is missing or cannot be read."""

    root: Path
    summary: Summary = field(default_factory=Summary)
    selection: Selection = field(default_factory=Selection)
    certificate: Certificate | None = None
    hypotheses: tuple[Hypothesis, ...] | None = None
    audit: AuditFacts | None = None
    prep: Preparation = field(default_factory=Preparation)
    copies: CopySets = field(default_factory=CopySets)
    gallery: Gallery = field(default_factory=Gallery)
    resolved: ResolvedSpec = field(default_factory=ResolvedSpec)
    resolved_text: str = ""
    events: list[Event] = field(default_factory=list)
    schema: Schema | None = None
    trials: tuple[TrialRow, ...] | None = None
    curves: tuple[EpochRow, ...] | None = None
    folds: pa.Table | None = None
    predictions: pa.Table | None = None  # the members' out-of-fold rows only
    votes: pa.Table | None = None
    test_labels: pa.Table | None = None
    missing: tuple[str, ...] = ()  # files that were not there
    broken: tuple[str, ...] = ()  # sentences about files that could not be read

    @property
    def score_title(self) -> str:
        """Return the score that the run goes by, in words."""
        return score_title(self.resolved.score)

    @property
    def words(self) -> GroupWords:
        """Return what to call the groups."""
        return group_words(self.resolved.data.group_text)

    @property
    def has_selection(self) -> bool:
        """Return True if selection.json says anything."""
        return self.selection != Selection()

    @property
    def members(self) -> tuple[str, ...]:
        """Return the settings of the ensemble in rank order."""
        return self.selection.members

    @property
    def weights(self) -> list[int]:
        """Return the votes of every member: one each, unless the policy gave one several."""
        weights = list(self.selection.weights)
        return weights if len(weights) == len(self.members) else [1] * len(self.members)

    @property
    def rule(self) -> str:
        """Return how the members vote: hard or soft."""
        return self.selection.vote.rule or self.resolved.vote.rule or "hard"

    @functools.cached_property
    def candidates(self) -> dict[str, Candidate]:
        """Return the confirmed settings by name, best first."""
        return {candidate.setting: candidate for candidate in self.selection.candidates}

    @functools.cached_property
    def answers(self) -> dict[str, confusion_matrices.Answers]:
        """Return the answers of the vote with the true classes, where these are known.

        The keys are "oof" for the out-of-fold vote and "test" for the test set.
        """
        answers: dict[str, confusion_matrices.Answers | None] = {}
        if self.predictions is not None and self.members and self.schema is not None:
            predictions = self.predictions
            if self.resolved.search.trials and self.folds is not None:
                predictions = confusion_matrices.without_val(predictions, self.folds)
            answers["oof"] = confusion_matrices.oof_answers(
                predictions,
                list(self.members),
                self.rule,
                self.schema.n_classes,
                self.weights,
                self._adjust(),
            )
        if self.votes is not None and self.test_labels is not None:
            answers["test"] = confusion_matrices.labelled_answers(self.votes, self.test_labels)
        return {name: answer for name, answer in answers.items() if answer is not None}

    def _adjust(self) -> Callable[[Predictions], Predictions] | None:
        """Return what moves a member's answers as the selection did; None where it did not."""
        adjusted = self.selection.vote.adjusted
        schema = self.schema
        if adjusted is None or schema is None or self.folds is None:
            return None
        try:
            settings = Select.model_validate_json(json.dumps({"adjust": adjusted.by})).adjust
        except ValidationError:  # of another version
            return None
        folds = self.folds
        group_of = dict(
            zip(folds["sample_id"].to_pylist(), folds["group"].to_pylist(), strict=True)
        )

        def adjust(arm: Predictions) -> Predictions:
            groups = [group_of.get(sample) or sample for sample in arm.sample_ids]
            return cross_fitted(replace(arm, groups=groups), settings, schema, seed=adjusted.seed)

        return adjust

    def started(self) -> DriverStarted:
        """Return the latest start: git commit, packages, overrides."""
        starts = [event for event in self.events if isinstance(event, DriverStarted)]
        return starts[-1] if starts else RunStarted()

    def stages(self) -> dict[str, StageEnded]:
        """Return the last event of each stage since the latest start."""
        stages: dict[str, StageEnded] = {}
        for event in self.events:
            if isinstance(event, DriverStarted):
                stages = {}
            elif isinstance(event, StageEnded):
                stages[event.stage] = event
        return stages

    def variant_of(self, setting: str) -> str | None:
        """Return the variant of a confirmed setting."""
        return self.candidates[setting].variant if setting in self.candidates else None

    def class_name(self, label: int) -> str:
        """Return a class's readable name, or its number where the labels are not known."""
        if self.schema is None or not 0 <= label < self.schema.n_classes:
            return f"class {label}"
        return self.schema.class_name(label)


class _Folder:
    """Reads files of a run; notes which are missing and which cannot be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing: list[str] = []
        self.broken: list[str] = []

    def read(self, name: str, how: Callable[[Path], T], empty: T, *, needed: bool = True) -> T:
        path = self.root / name
        if not path.is_file():
            if needed:
                self.missing.append(name)
            return empty
        try:
            return how(path)
        except Exception as error:  # noqa: BLE001 - a torn file must not cost the rest of the page
            first = (str(error).splitlines() or [""])[0]
            self.broken.append(
                f"{name} could not be read ({type(error).__name__}: {first}); "
                "submit the run again to rewrite it"
            )
            return empty

    def record(self, name: str, cls: type[R], *, needed: bool = True) -> R:
        return self.read(name, lambda path: as_record(cls, read_json(path)), cls(), needed=needed)

    def rows(self, name: str, cls: type[R]) -> tuple[R, ...] | None:
        return self.read(name, lambda path: as_records(cls, tables.read(path).to_pylist()), None)

    def table(self, name: str, *, needed: bool = True) -> pa.Table | None:
        return self.read(name, tables.read, None, needed=needed)


def load(root: Path) -> Run:
    """Read a run folder; what is missing or torn is noted and left empty."""
    folder = _Folder(root)
    no_events: list[Event] = []
    events = folder.read("events.jsonl", read_events, no_events)
    trials = folder.rows("trials.parquet", TrialRow)
    curves = folder.rows("curves.parquet", EpochRow)
    return _load(folder, events, trials, curves)


def load_live(
    root: Path, events: list[Event], trials: tuple[TrialRow, ...], curves: tuple[EpochRow, ...]
) -> Run:
    """Read the folder of a run that may go on; what is not there yet is not missing.

    Args:
        root: the folder.
        events: the events of its ledger that are of no trial.
        trials: those to show, from the ledger.
        curves: of these trials, from the ledger.
    """
    return dataclasses.replace(_load(_Folder(root), events, trials, curves), missing=())


def _load(
    folder: _Folder,
    events: list[Event],
    trials: tuple[TrialRow, ...] | None,
    curves: tuple[EpochRow, ...] | None,
) -> Run:
    """Read what stages and drivers wrote, beside the ledger and the tables of trials."""
    resolved = folder.read("resolved.yaml", _resolved, ResolvedSpec())
    selection = folder.record("selection.json", Selection)
    members = set(selection.members)
    # summary.json is written after the report, certificate.json by runs that finish
    return Run(
        root=folder.root,
        summary=folder.record("summary.json", Summary, needed=False),
        selection=selection,
        certificate=folder.read(
            "certificate.json", lambda path: _filled(Certificate, path), None, needed=False
        ),
        hypotheses=folder.read(
            "hypotheses.json", lambda path: as_records(Hypothesis, read_json(path)), None
        ),
        audit=folder.read("audit.json", lambda path: _filled(AuditFacts, path), None),
        prep=folder.record("prep.json", Preparation, needed=False),
        copies=folder.record("copies.json", CopySets, needed=False),
        gallery=folder.record("gallery.json", Gallery, needed=False),
        resolved=resolved,
        resolved_text=folder.read("resolved.yaml", _text, "", needed=False),
        events=events,
        schema=_schema(resolved, events),
        trials=trials,
        curves=curves,
        folds=folder.table("folds.parquet"),
        predictions=folder.read(
            "predictions.parquet", lambda path: _out_of_fold(path, members), None
        ),
        votes=folder.table("votes.parquet"),
        test_labels=folder.table("test_labels.parquet", needed=False),
        missing=tuple(folder.missing),
        broken=tuple(folder.broken),
    )


def read_events(path: Path) -> list[Event]:
    """Read a ledger, leaving out what is torn or no event."""
    events = []
    for line in path.read_bytes().split(b"\n"):
        try:
            events.append(from_json(json.loads(line)))
        except ValueError:
            continue
    return events


def _filled(cls: type[R], path: Path) -> R | None:
    """Read a record; None where the file holds nothing."""
    value = read_json(path)
    return as_record(cls, value) if isinstance(value, dict) and value else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _resolved(path: Path) -> ResolvedSpec:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only this file of a run is YAML

    value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return as_record(ResolvedSpec, value)


def _schema(resolved: ResolvedSpec, events: Iterable[Event]) -> Schema | None:
    """Take the label schema from the ledger's start event, else from the resolved spec."""
    for event in events:
        labels = event.labels if isinstance(event, DriverStarted) else None
        if labels and all(isinstance(names, list) and names for names in labels.values()):
            return Schema({name: list(map(str, names)) for name, names in labels.items()})
    if not isinstance(resolved.data.labels, dict) or not resolved.data.labels:
        return None
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    from data_prep.config import Label  # noqa: PLC0415

    adapter: TypeAdapter[dict[str, Label]] = TypeAdapter(dict[str, Label])
    try:
        return Schema.of(adapter.validate_json(json.dumps(resolved.data.labels)))
    except (ValidationError, TypeError):
        return None


def _out_of_fold(path: Path, members: set[str]) -> pa.Table:
    """Read the members' out-of-fold predictions; the other rows may be a hundred times as many."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    wanted = [("split", "=", "oof"), ("setting", "in", sorted(members) or [""])]
    columns = ["setting", "variant", "seed", "fold", "sample_id", "target", "pred", "probs"]
    return pq.read_table(path, columns=columns, filters=wanted, memory_map=False)
