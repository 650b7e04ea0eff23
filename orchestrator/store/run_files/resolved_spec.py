"""The record of resolved.yaml."""

from __future__ import annotations

from typing import Any

from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.run_files.selection import VoteRule


class DataFacts(FileRecord):
    """The section `data` of a resolved spec."""

    group: Any = ""
    labels: Any = None
    not_copies: Any = ()  # lists of sample ids, or "all"

    @property
    def group_text(self) -> str:
        """The group in words: a column, or the rule that reads it from names."""
        rule = self.group if isinstance(self.group, dict) else {}
        return f"{rule['from']} of the photo" if "from" in rule else str(self.group)


class SearchFacts(FileRecord):
    """The section `search` of a resolved spec."""

    trials: int | None = None  # None where the spec searches nothing
    space: dict[str, Any] = {}
    folds: int | None = None  # None where a setting is trained once


class PrepFacts(FileRecord):
    """The section `prep` of a resolved spec."""

    steps: tuple[Any, ...] = ()


class ReportFacts(FileRecord):
    """The section `report` of a resolved spec."""

    photos: bool = True


class ResolvedSpec(FileRecord):
    """What readers of a run need of its resolved spec."""

    name: str = ""
    data: DataFacts = DataFacts()
    prep: PrepFacts = PrepFacts()
    search: SearchFacts = SearchFacts()
    confirm: Any = ()  # None where the spec switches it off
    vote: VoteRule = VoteRule()
    hypotheses: tuple[str, ...] = ()
    score: str = "macro_f1"
    report: ReportFacts = ReportFacts()

    @property
    def n_folds(self) -> int:
        """Return how many folds confirm deals for a seed; 1 where it is off or cannot be read."""
        folds = self.confirm.get("folds") if isinstance(self.confirm, dict) else None
        return folds if isinstance(folds, int) else 1

    @property
    def n_trainings(self) -> int:
        """Return how many trainings confirm gives a finalist."""
        seeds = self.confirm.get("seeds") if isinstance(self.confirm, dict) else None
        return self.n_folds * (len(seeds) if isinstance(seeds, list) else 1)
