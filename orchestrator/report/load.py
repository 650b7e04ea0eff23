"""Everything a run folder holds, read once, with a sentence for what is missing."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from data_prep.catalog.labels import Schema
from orchestrator.report import scores
from orchestrator.store import tables
from orchestrator.store.events import DriverStarted, Event, from_json

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The files of a run as they were found; None or empty where a file is missing or unreadable."""

    root: Path
    summary: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    hypotheses: list[dict[str, Any]] | None = None
    audit: dict[str, Any] = field(default_factory=dict)
    prep: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    resolved_text: str = ""
    events: list[Event] = field(default_factory=list)
    schema: Schema | None = None
    trials: list[dict[str, Any]] | None = None
    curves: list[dict[str, Any]] | None = None
    folds: pa.Table | None = None
    predictions: pa.Table | None = None  # the members' out-of-fold rows only
    votes: pa.Table | None = None
    test_labels: pa.Table | None = None
    missing: tuple[str, ...] = ()  # files that were not there
    broken: tuple[str, ...] = ()  # sentences about files that could not be read

    @property
    def members(self) -> list[str]:
        """Settings of the ensemble in rank order."""
        return [str(member) for member in listed(self.selection.get("members"))]

    @property
    def weights(self) -> list[int]:
        """Votes of every member: one each, unless policy diverse gave one several."""
        found = listed(self.selection.get("weights"))
        return (
            [int(one) for one in found]
            if len(found) == len(self.members)
            else [1] * len(self.members)
        )

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The confirmed settings, best first."""
        return dicts(self.selection.get("candidates"))

    @property
    def rule(self) -> str:
        """How the members vote: hard or soft."""
        stated = mapping(self.selection.get("vote")).get("rule") or mapping(
            self.resolved.get("vote")
        ).get("rule")
        return str(stated or "hard")

    @functools.cached_property
    def answers(self) -> dict[str, scores.Answers]:
        """The vote beside the truth, out of fold ("oof") and on the test set ("test"), as far as it is known."""
        found: dict[str, scores.Answers | None] = {}
        if self.predictions is not None and self.members and self.schema is not None:
            found["oof"] = scores.oof_answers(
                self.predictions, self.members, self.rule, self.schema.n_classes, self.weights
            )
        if self.votes is not None and self.test_labels is not None:
            found["test"] = scores.labelled_answers(self.votes, self.test_labels)
        return {side: one for side, one in found.items() if one is not None}

    def started(self) -> DriverStarted:
        """Return the latest start: git commit, packages, overrides; an empty one where there is none."""
        starts = [event for event in self.events if isinstance(event, DriverStarted)]
        return starts[-1] if starts else DriverStarted()

    def class_name(self, label: int) -> str:
        """Return a class's readable name, or its number where the labels are not known."""
        if self.schema is None or not 0 <= label < self.schema.n_classes:
            return f"class {label}"
        return self.schema.class_name(label)


def load(root: Path) -> Run:
    """Read a run folder; whatever is missing or torn is noted and left empty."""
    missing: list[str] = []
    broken: list[str] = []

    def read(name: str, how: Callable[[Path], T], empty: T, *, needed: bool = True) -> T:
        path = root / name
        if not path.is_file():
            if needed:
                missing.append(name)
            return empty
        try:
            return how(path)
        except Exception as error:  # noqa: BLE001 - a torn file must not cost the rest of the page
            first = (str(error).splitlines() or [""])[0]
            broken.append(
                f"{name} could not be read ({type(error).__name__}: {first}); submit the run again to rewrite it"
            )
            return empty

    no_events: list[Event] = []
    events = read("events.jsonl", read_events, no_events)
    resolved = mapping(read("resolved.yaml", _yaml, {}))
    selection = mapping(read("selection.json", read_json, {}))
    members = {str(member) for member in listed(selection.get("members"))}
    return Run(
        root=root,
        summary=mapping(
            read("summary.json", read_json, {}, needed=False)
        ),  # written after the report
        selection=selection,
        certificate=mapping(
            read("certificate.json", read_json, {}, needed=False)
        ),  # of runs that came to their end
        hypotheses=read("hypotheses.json", lambda path: dicts(read_json(path)), None),
        audit=mapping(read("audit.json", read_json, {})),
        prep=mapping(read("prep.json", read_json, {}, needed=False)),
        resolved=resolved,
        resolved_text=read(
            "resolved.yaml",
            lambda path: path.read_text(encoding="utf-8", errors="replace"),
            "",
            needed=False,
        ),
        events=events,
        schema=_schema(resolved, events),
        trials=read("trials.parquet", lambda path: tables.read(path).to_pylist(), None),
        curves=read("curves.parquet", lambda path: tables.read(path).to_pylist(), None),
        folds=read("folds.parquet", tables.read, None),
        predictions=read("predictions.parquet", lambda path: _members_oof(path, members), None),
        votes=read("votes.parquet", tables.read, None),
        test_labels=read("test_labels.parquet", tables.read, None, needed=False),
        missing=tuple(missing),
        broken=tuple(broken),
    )


def read_json(path: Path) -> Any:
    """Read one JSON file; NaN and infinities, which no file of ours may hold, become None."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)


def read_events(path: Path) -> list[Event]:
    """Read a ledger, leaving out what is torn or no event."""
    events = []
    for line in path.read_bytes().split(b"\n"):
        try:
            events.append(from_json(json.loads(line)))
        except ValueError:
            continue
    return events


def number(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a dict as it is, and an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and an empty one for everything else."""
    return value if isinstance(value, list) else []


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the dicts of a list."""
    return [item for item in listed(value) if isinstance(item, dict)]


def ensemble_scores(selection: dict[str, Any], side: str) -> dict[str, dict[str, Any]]:
    """Return metric -> {estimate, low, high, ...} of the ensemble, out of fold ("oof") or on the test set ("test").

    Empty where there is none. A metric without an interval, such as macro F1 of one label, has its estimate alone.
    """
    found = mapping(mapping(selection.get("ensemble")).get(side))
    if number(found.get("estimate")) is not None:
        found = {"macro_f1": found}
    scores = {
        name: value if isinstance(value, dict) else {"estimate": value}
        for name, value in found.items()
    }
    return {
        name: value for name, value in scores.items() if number(value.get("estimate")) is not None
    }


def _yaml(path: Path) -> Any:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only this file of a run is YAML

    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def _schema(resolved: dict[str, Any], events: Iterable[Event]) -> Schema | None:
    """Take the label schema from the ledger's start event, else from the resolved spec."""
    for event in events:
        labels = mapping(event.labels) if isinstance(event, DriverStarted) else {}
        if labels and all(isinstance(names, list) and names for names in labels.values()):
            return Schema({name: [str(one) for one in names] for name, names in labels.items()})
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    from data_prep.config import Label  # noqa: PLC0415

    labels = mapping(mapping(resolved.get("data")).get("labels"))
    try:
        return (
            Schema.of(TypeAdapter(dict[str, Label]).validate_json(json.dumps(labels)))
            if labels
            else None
        )
    except (ValidationError, TypeError):
        return None


def _members_oof(path: Path, members: set[str]) -> pa.Table:
    """Read the members' out-of-fold predictions; the other rows may be a hundred times as many."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    wanted = [("split", "=", "oof"), ("setting", "in", sorted(members) or [""])]
    columns = ["setting", "seed", "fold", "sample_id", "target", "pred", "probs"]
    return pq.read_table(path, columns=columns, filters=wanted, memory_map=False)
