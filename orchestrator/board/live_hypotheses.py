"""The claims of a spec while confirm still trains: differences as far as they are known."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from orchestrator.base.errors import UserError
from orchestrator.board.live_run_state import LiveRun, LiveTrial
from orchestrator.evaluation.paired_test import PairedTest, paired_difference
from orchestrator.evaluation.predictions import (
    Predictions,
    by_setting,
    group_mean_of,
    groups_of,
    with_group_means,
)
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.report import charts
from orchestrator.report.load import Run
from orchestrator.report.scales import Scale
from orchestrator.spec.claims import Claim, parse
from orchestrator.spec.score import parse_score
from orchestrator.store import tables
from orchestrator.store.artifacts import Store

Part = tuple[int, int | None]  # seed and fold of a training


@dataclass(frozen=True)
class ClaimSoFar:
    """What is known of a claim before its verdict."""

    text: str
    n_trainings: int  # that both arms have finished, of the same seeds and folds
    n_wanted: int
    difference: PairedTest | None = None
    plot: object = ""


class ClaimsSoFar:
    """The claims of one run; they are computed again when another training has ended."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._key: object = None
        self._claims: list[ClaimSoFar] = []

    def of(self, live: LiveRun, run: Run) -> list[ClaimSoFar]:
        """Return the claims in the order of the spec; none where the verdicts are there."""
        if run.hypotheses is not None or not run.resolved.hypotheses:
            return []
        trials = [trial for trial in live.trials.values() if trial.phase == "confirm"]
        finished = [trial for trial in trials if trial.status == "COMPLETE" and trial.checkpoint]
        key = tuple(trial.trial_id for trial in finished)
        if key != self._key:
            self._claims = self._compute(live, run, finished)
            self._key = key
        return self._claims

    def _compute(self, live: LiveRun, run: Run, finished: list[LiveTrial]) -> list[ClaimSoFar]:
        of_setting: dict[str, list[float]] = {}  # one score each, or one per fold
        for trial in live.trials.values():
            if trial.phase == "search" and trial.score is not None:
                of_setting.setdefault(trial.setting, []).append(trial.score)
        scores = {setting: statistics.fmean(values) for setting, values in of_setting.items()}
        arms: dict[str, dict[Part, LiveTrial]] = {}
        for variant in {trial.variant for trial in finished}:
            settings = {trial.setting for trial in finished if trial.variant == variant}
            best = max(sorted(settings), key=lambda setting: scores.get(setting, 0.0))
            arms[variant] = {(t.seed, t.fold): t for t in finished if t.setting == best}
        claims = []
        for text in run.resolved.hypotheses:
            try:
                claims.append(self._claim(text, parse(text, run.resolved.score), arms, run))
            except (UserError, ValueError, OSError):  # such as an artifact that is gone
                claims.append(ClaimSoFar(text, 0, run.resolved.n_trainings))
        return _with_plots(claims)

    def _claim(
        self, text: str, claim: Claim, arms: Mapping[str, Mapping[Part, LiveTrial]], run: Run
    ) -> ClaimSoFar:
        first = arms.get(claim.better, {})
        second = arms.get(claim.worse, {})
        common = first.keys() & second.keys()
        n_wanted = run.resolved.n_trainings
        parts = _whole_seeds(common, run.resolved.n_folds)
        if not parts or run.schema is None:
            return ClaimSoFar(text, len(common), n_wanted)
        groups = groups_of(
            tables.read(run.root / "catalog.parquet", ["sample_id", "group", "label"])
        )
        sizes = dict(zip(run.schema.names, run.schema.sizes, strict=True))
        mean = group_mean_of(run.resolved.vote.group_mean, sizes)
        sides: list[Predictions] = []
        for trials in (first, second):
            rows = pa.concat_tables([self._predictions(trials[part]) for part in parts])
            if mean is not None:
                rows = with_group_means(rows, mean, groups)
            sides += by_setting(rows, run.schema.n_classes, groups).values()
        scorer = scorer_of(parse_score(claim.metric), run.schema)
        tested = paired_difference(*sides, metric=scorer)
        return ClaimSoFar(text, len(common), n_wanted, tested)

    def _predictions(self, trial: LiveTrial) -> pa.Table:
        artifact = self.store.get("trial", trial.checkpoint)
        return tables.read(artifact.file("predictions.parquet"))


def _whole_seeds(parts: Iterable[Part], n_folds: int) -> list[Part]:
    """Return the trainings of the seeds that have all folds; of the first seed where none has."""
    of_seed: dict[int, list[Part]] = {}
    for part in sorted(parts, key=lambda part: (part[0], part[1] or 0)):
        of_seed.setdefault(part[0], []).append(part)
    whole = [group for group in of_seed.values() if len(group) >= n_folds]
    chosen = whole or list(of_seed.values())[:1]
    return [part for group in chosen for part in group]


def _with_plots(claims: list[ClaimSoFar]) -> list[ClaimSoFar]:
    """Draw all differences on one scale around 0."""
    ends: list[float] = []
    for claim in claims:
        if claim.difference is not None:
            known = (claim.difference.low, claim.difference.difference, claim.difference.high)
            ends += [abs(end) for end in known if end is not None]
    reach = 1.1 * max(ends, default=0.0) or 0.1
    drawn = []
    for claim in claims:
        plot: Any = ""
        if claim.difference is not None:
            test = claim.difference
            scale = Scale(-reach, reach)
            plot = charts.interval(test.low, test.difference, test.high, scale, mark=0.0)
        drawn.append(
            ClaimSoFar(claim.text, claim.n_trainings, claim.n_wanted, claim.difference, plot)
        )
    return drawn
