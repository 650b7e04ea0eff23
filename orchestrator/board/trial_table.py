"""The table of trials: filtered, sorted and cut into pages on the server."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from orchestrator.board.live_run_state import LiveRun, LiveTrial
from orchestrator.report.models_section import settings_text

PAGE_ROWS = 50
_MAX_PARAM_COLUMNS = 6
_PARAM = "p."
_MAX_TEXT = 200
_MAX_PAGE = 10**6

Key = Callable[[LiveTrial], Any]


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    name: str  # in the address
    heading: str
    key: Key  # what it is sorted by; None stands last
    is_number: bool = False


_SCORE = Column("score", "score", lambda trial: trial.score, is_number=True)
_COLUMNS = (
    Column("trial", "trial", lambda trial: trial.trial_id),
    Column("variant", "variant", lambda trial: trial.variant),
    Column("phase", "phase", lambda trial: trial.phase),
    Column("status", "status", lambda trial: trial.status),
    _SCORE,
    Column("last", "last epoch", lambda trial: trial.last_score, is_number=True),
    Column("epochs", "epochs", lambda trial: trial.n_epochs, is_number=True),
    Column("wall", "time", lambda trial: trial.wall_s, is_number=True),
    Column("started", "no.", lambda trial: trial.number, is_number=True),
)

_FOLD_SCORE = Column("fold_score", "on its fold", lambda trial: trial.fold_score, is_number=True)


@dataclass(frozen=True)
class Query:
    """What is asked of the table, as its address says it."""

    text: str = ""  # words that stand in a row
    status: str = ""
    variant: str = ""
    phase: str = ""
    sort: str = "score"
    order: str = "desc"  # asc | desc
    page: int = 1

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Query:
        """Return the query of an address; what cannot be used takes its default."""
        page = 1
        if (given := params.get("page", "")).isdecimal() and len(given) < 9:
            page = max(1, min(int(given), _MAX_PAGE))
        return cls(
            text=params.get("text", "")[:_MAX_TEXT].strip(),
            status=params.get("status", ""),
            variant=params.get("variant", ""),
            phase=params.get("phase", ""),
            sort=params.get("sort", "score"),
            order="asc" if params.get("order") == "asc" else "desc",
            page=page,
        )

    def address(self, **changes: Any) -> str:
        """Return the query with changes as an address, without what is the default."""
        changed = replace(self, **changes)
        default = Query()
        parts = {
            name: value for name, value in vars(changed).items() if value != getattr(default, name)
        }
        return "?" + urlencode(parts)

    def sorted_by(self, column: Column) -> str:
        """Return the address that sorts by a column, the other way round at the second time."""
        order = "asc" if self.sort == column.name and self.order == "desc" else "desc"
        return self.address(sort=column.name, order=order, page=1)


@dataclass(frozen=True)
class TrialPage:
    """One page of the table."""

    query: Query
    columns: list[Column]
    params: list[str]  # settings with a column of their own
    has_folds: bool  # the search trains settings on folds, whose scores choose
    rows: list[LiveTrial]
    n: int
    n_matching: int
    n_pages: int
    statuses: list[str]
    variants: list[str]
    phases: list[str]

    @property
    def first(self) -> int:
        """Return the number of the first row of the page, from 1."""
        return (self.query.page - 1) * PAGE_ROWS + 1 if self.rows else 0


class TrialTable:
    """The trials of one run; the last order is kept, so that turning pages sorts nothing."""

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self._asked: object = None
        self._matching: list[LiveTrial] = []

    def page(self, query: Query) -> TrialPage:
        """Return one page of the trials that a query asks for."""
        with self.run.lock:
            matching = self.matching(query)
            n_pages = max(1, -(-len(matching) // PAGE_ROWS))
            query = replace(query, page=min(query.page, n_pages))
            start = (query.page - 1) * PAGE_ROWS
            names = list(self.run.param_names)
            if len(names) > _MAX_PARAM_COLUMNS:
                names = []
            has_folds = self._has_folds()
            columns = list(_COLUMNS)
            if has_folds:
                columns.insert(_COLUMNS.index(_SCORE), _FOLD_SCORE)
            counted = [key for key, n in self.run.counts.items() if n > 0]
            return TrialPage(
                query=query,
                columns=[*columns, *(_param_column(name) for name in names)],
                params=names,
                has_folds=has_folds,
                rows=matching[start : start + PAGE_ROWS],
                n=len(self.run.trials),
                n_matching=len(matching),
                n_pages=n_pages,
                statuses=sorted({status or "RUNNING" for _, status in counted}),
                variants=sorted({trial.variant for trial in self.run.trials.values()}),
                phases=sorted({phase for phase, _ in counted}, reverse=True),
            )

    def _has_folds(self) -> bool:
        return any(trial.fold_score is not None for trial in self.run.trials.values())

    def matching(self, query: Query) -> list[LiveTrial]:
        """Return all trials that a query asks for, in its order."""
        asked = (self.run.version, replace(query, page=1))
        if asked != self._asked:
            self._matching = self._sorted(query, self._filtered(query))
            self._asked = asked
        return self._matching

    def _filtered(self, query: Query) -> list[LiveTrial]:
        trials = list(self.run.trials.values())
        if query.status:
            status = "" if query.status == "RUNNING" else query.status
            trials = [trial for trial in trials if trial.status == status]
        if query.variant:
            trials = [trial for trial in trials if trial.variant == query.variant]
        if query.phase:
            trials = [trial for trial in trials if trial.phase == query.phase]
        for word in query.text.lower().split():
            trials = [trial for trial in trials if _has_word(trial, word)]
        return trials

    def _sorted(self, query: Query, trials: list[LiveTrial]) -> list[LiveTrial]:
        columns = {column.name: column for column in (*_COLUMNS, _FOLD_SCORE)}
        key = _param_column(query.sort.removeprefix(_PARAM)).key
        if not query.sort.startswith(_PARAM):
            key = columns.get(query.sort, columns["score"]).key
        known = [trial for trial in trials if key(trial) is not None]
        unknown = [trial for trial in trials if key(trial) is None]
        is_descending = query.order == "desc"
        try:
            known.sort(key=key, reverse=is_descending)
        except TypeError:  # a setting that is a number in one trial and a word in another
            known.sort(key=lambda trial: str(key(trial)), reverse=is_descending)
        return known + unknown


def _param_column(name: str) -> Column:
    return Column(_PARAM + name, name, lambda trial: trial.params.get(name), is_number=True)


def _has_word(trial: LiveTrial, word: str) -> bool:
    """Return True if a word in lower case stands in a trial's names, settings, status or error."""
    if not trial.words:
        names = f"{trial.trial_id} {trial.variant} {trial.setting}"
        trial.words = f"{names} {settings_text(trial.params)}".lower()
    return word in trial.words or word in trial.status.lower() or word in trial.error.lower()


def as_csv(run: LiveRun, trials: list[LiveTrial]) -> str:
    """Return trials as CSV: a column per fact and per searched setting."""
    names = list(run.param_names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ("trial_id", "variant", "phase", "setting", "seed", "fold")
    writer.writerow([*facts, "status", "epochs", "val_macro_f1", "fold_score", "wall_s", *names])
    for trial in trials:
        cells = [getattr(trial, name) for name in facts]
        cells += [run.shown_status(trial), trial.n_epochs, trial.score, trial.fold_score]
        cells.append(trial.wall_s)
        cells += [trial.params.get(name) for name in names]
        writer.writerow(cells)
    return text.getvalue()
