"""The runs of a store as the first page lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.report import charts
from orchestrator.report.scales import Scale
from orchestrator.store.event_types import FOLD_SCORE, OBJECTIVE, SCORE
from orchestrator.store.run_dir import RunPaths, all_runs, state_of
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.scores import Score
from orchestrator.store.run_files.selection import Selection

_PLOT_WIDTH = 140.0
_NO_SCORE = Score()


@dataclass(frozen=True)
class RunLine:
    """A row of the list of runs."""

    run_id: str
    state: str
    started: str
    wall_s: float
    trials: list[tuple[str, int]]  # status -> how many
    best: float | None  # validation score of the best search trial; of folds, the mean of a setting
    score: Score
    plot: object = ""


class RunList:
    """The runs of a store; a file is read again only when it was written again."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._scores: dict[Path, tuple[int, Selection]] = {}

    def version(self) -> str:
        """Return a text that changes when the list changes."""
        marks = []
        for run in all_runs(self.store):
            is_over = run.summary.exists()
            path = run.summary if is_over else run.events
            marks.append(f"{run.run_id} {_written_ns(path)} {is_over or state_of(run)['state']}")
        return str(hash("\n".join(marks)))

    def lines(self) -> list[RunLine]:
        """Return the rows, the latest started first."""
        lines = [self._line(run) for run in all_runs(self.store)]
        ends: list[float | None] = []
        for line in lines:
            ends += [line.score.low, line.score.estimate, line.score.high]
        scale = Scale.around(ends, 0.02)
        drawn = []
        for line in lines:
            score = line.score
            plot = charts.interval(
                score.low, score.estimate, score.high, scale, strong=True, width=_PLOT_WIDTH
            )
            drawn.append(RunLine(**{**vars(line), "plot": plot}))
        return drawn

    def _line(self, run: RunPaths) -> RunLine:
        facts = _facts(run)
        selection = self._selection(run)
        ensemble = selection.ensemble
        score = ensemble.oof.headline or _NO_SCORE
        if ensemble.corrected is not None and ensemble.corrected.estimate is not None:
            score = ensemble.corrected
        counts = facts.get("trials") or {}
        return RunLine(
            run_id=run.run_id,
            state=str(facts.get("state")),
            started=_day_and_time(_written_ns(run.spec) / 1e9),
            wall_s=facts.get("wall_s") or 0.0,
            trials=[(name, n) for name, n in counts.items() if n],
            best=_score(facts.get("best") or {}),
            score=score,
        )

    def _selection(self, run: RunPaths) -> Selection:
        written = _written_ns(run.selection)
        known = self._scores.get(run.root)
        if known is None or known[0] != written:
            known = (written, _selection_of(run))
            self._scores[run.root] = known
        return known[1]


def _facts(run: RunPaths) -> dict[str, Any]:
    try:
        return state_of(run)
    except (OSError, ValueError):
        return {"state": "UNREADABLE"}


def _score(best: dict[str, Any]) -> float | None:
    for name in (FOLD_SCORE, SCORE, OBJECTIVE):
        if name in best:
            return best[name]
    return None


def _selection_of(run: RunPaths) -> Selection:
    """Return the scores of a run's ensemble; the candidates, which are long, are left out."""
    try:
        value = json.loads(run.selection.read_bytes())
    except (OSError, ValueError):
        return Selection()
    if isinstance(value, dict):
        value.pop("candidates", None)
    return as_record(Selection, value)


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _day_and_time(seconds: float) -> str:
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
