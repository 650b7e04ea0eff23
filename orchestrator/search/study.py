"""The search: per variant one Optuna study, all variants in one Tune experiment."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.base.keys import digest
from orchestrator.search.budget import Budget
from orchestrator.search.card_sharing.shares import FixedShare, Shares
from orchestrator.search.controller import Reports, TrialController, Verdict
from orchestrator.search.early_stopping import Rungs
from orchestrator.search.trial import TrialSpec
from orchestrator.spec.search_space import (
    Choice,
    Entry,
    Point,
    Search,
    Wilcoxon,
    grid,
    start_in,
    suggest,
)
from orchestrator.store.event_types import N_PARAMS, Metrics, TrialEnded, objective
from orchestrator.store.ledger import Ledger, TrialRecord
from trainers.settings.duration import Duration

MakeSpec = Callable[[str, str, Point], TrialSpec]
"""Takes a trial's id, variant and point; returns the trial to run."""

_MAX_DRAWS = 256  # until a new point is drawn
_SAMPLER_DRAWS = 4  # of them by the sampler itself


class Draw(NamedTuple):
    """Optuna's trial and its point."""

    trial: Any
    point: Point


class VariantStudy:
    """The Optuna study of one variant, in memory.

    A suggestion depends on the history and its number alone, so no generator's state is saved.
    """

    def __init__(
        self, variant: str, search: Search, run_id: str, seed: int, warn: Callable[[str], None]
    ) -> None:
        import optuna  # noqa: PLC0415

        self.variant = variant
        self.search = search
        self.seed = seed
        self.warn = warn
        self.space = search.space_of(variant)
        self.grid = grid(self.space) if search.sampler == "grid" else []
        self.starts = [start_in(self.space, start) for start in search.start]
        directions = ["maximize", "minimize"] if search.counts_parameters else ["maximize"]
        self.optuna = optuna.create_study(
            study_name=f"{run_id}/{variant}", directions=directions, pruner=_pruner(search)
        )
        self.n_asked = 0
        self.n_ended = 0
        self.points: list[Point] = []  # that were asked for
        self._tried: set[str] = set()  # the same, as texts
        self._is_exhausted = False  # no new point was drawn
        self._last_number = -1  # Optuna's, of the last trial that was asked for

    @property
    def budget(self) -> int:
        """How many trials the variant gets."""
        if not self.space:
            return 1
        if self.grid:
            return min(self.search.trials, len(self.grid))
        return self.search.trials

    def ask(self, known: Point | None = None) -> Draw:
        """Return Optuna's next trial; `known` asks for a point that was asked for before.

        A point that was tried is drawn again: a few times by the sampler, which takes the earlier
        draws for running trials, then at random, because in a small space a sampler may propose
        its favourite for ever. If no draw is new, the last one is returned: the store may have its
        result, or a trial that was pruned early gets another chance.
        """
        from optuna.trial import TrialState as State  # noqa: PLC0415

        number = self.n_asked
        self.n_asked += 1
        # a quasi-random sequence counts its calls, and learns nothing from results
        fixed = known
        if known is None or self.search.sampler == "qmc":
            fixed = self._fixed_point()
        attempt = _MAX_DRAWS - 1 if self._is_exhausted and not fixed else 0
        draws = [self._draw(number, attempt, fixed, is_known=known is not None)]
        while not fixed and self._is_tried(draws[-1].point):
            attempt += 1
            if attempt >= _MAX_DRAWS:
                self._is_exhausted = True
                break
            draws.append(self._draw(number, attempt, None))
        for repeated in draws[:-1]:
            self.optuna.tell(repeated.trial, state=State.FAIL)
        draw = draws[-1]
        self._tried.add(_text(draw.point))
        if self.search.start or self.grid:
            self.points.append(draw.point if known is None else known)
        return draw

    def _draw(
        self, number: int, attempt: int, fixed: Point | None, *, is_known: bool = False
    ) -> Draw:
        from optuna.samplers import RandomSampler  # noqa: PLC0415

        seed_parts = (number, attempt) if attempt else (number,)
        seed = _seed(self.seed, self.variant, *seed_parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the samplers' experimental options are meant
            at_random = is_known or attempt >= _SAMPLER_DRAWS
            self.optuna.sampler = self._sampler(seed, at_random=at_random)
            try:
                draw = self._ask_optuna(fixed)
            except Exception as error:  # noqa: BLE001 - a sampler that fails must not end the study
                self.warn(
                    f"the {self.search.sampler} sampler failed ({type(error).__name__}: {error}); "
                    "such trials are sampled at random"
                )
                self._fail_orphans()
                self.optuna.sampler = RandomSampler(seed=seed)
                draw = self._ask_optuna(fixed)
        self._last_number = draw.trial.number
        return draw

    def _ask_optuna(self, fixed: Point | None) -> Draw:
        if fixed:
            values = {path: _stored(self.space[path], value) for path, value in fixed.items()}
            self.optuna.enqueue_trial(values)
        trial = self.optuna.ask()
        return Draw(trial, suggest(trial, self.space))

    def _fail_orphans(self) -> None:
        """End the trials that a failed sampler left running."""
        from optuna.trial import TrialState as State  # noqa: PLC0415

        for trial in self.optuna.get_trials(deepcopy=False, states=(State.RUNNING,)):
            if trial.number > self._last_number:
                self.optuna.tell(trial.number, state=State.FAIL)

    def _is_tried(self, point: Point) -> bool:
        return bool(self.space) and _text(point) in self._tried

    def _fixed_point(self) -> Point | None:
        """Return what is not left to the sampler: a start point not tried yet, or a grid point."""
        for start in self.starts:
            if start and not any(start.items() <= point.items() for point in self.points):
                return start
        for point in self.grid:
            if point not in self.points:
                return point
        return None

    def _sampler(self, seed: int, *, at_random: bool) -> Any:
        from optuna import samplers  # noqa: PLC0415

        match self.search.sampler:
            case "qmc":
                seed = _seed(self.seed, self.variant)
                return samplers.QMCSampler(seed=seed, scramble=True)
            case "tpe" if not at_random:
                return samplers.TPESampler(
                    seed=seed, multivariate=True, group=True, constant_liar=True
                )
            case "gp" if not at_random:
                return samplers.GPSampler(seed=seed)
        # a known point leaves nothing to sample, and tpe and gp take their time
        return samplers.RandomSampler(seed=seed)

    def tell(
        self,
        trial: Any,
        status: str,
        reports: Reports,
        cause: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Tell Optuna how a trial ended: its intermediate values, and PRUNED as such.

        A point that does not fit into memory violates a constraint, so that the sampler avoids it;
        a failure would be forgotten and proposed again.

        Args:
            trial: Optuna's.
            status: COMPLETE, PRUNED or FAILED.
            reports: of its epochs.
            cause: of a failure, in one word.
            metrics: of its end; needed where parameters are counted.
        """
        from optuna.trial import TrialState as State  # noqa: PLC0415

        self.n_ended += 1
        for epoch, reported in sorted(reports.items()):
            self.report(trial, epoch, objective(reported))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if cause == "memory":
                trial.set_constraint("memory", 1.0)
                self.optuna.tell(trial, state=State.PRUNED)
            elif status == "COMPLETE":
                best = max(map(objective, reports.values()))
                self.optuna.tell(trial, self._values(best, metrics))
            else:
                self.optuna.tell(trial, state=State.PRUNED if status == "PRUNED" else State.FAIL)

    def complete(self, trial: Any, score: float, metrics: Metrics | None) -> None:
        """Tell Optuna the result of a trial whose steps were reported before."""
        self.n_ended += 1
        self.optuna.tell(trial, self._values(score, metrics))

    def report(self, trial: Any, step: int, score: float) -> None:
        """Report an intermediate score, which Optuna takes where there is one objective."""
        if not self.search.counts_parameters:
            trial.report(score, step)

    def _values(self, score: float, metrics: Metrics | None) -> list[float]:
        if self.search.counts_parameters:
            return [score, (metrics or {})[N_PARAMS]]
        return [score]


@dataclass(frozen=True)
class Asked:
    """A trial of Optuna and the study to tell its end to."""

    study: VariantStudy
    trial: Any


@dataclass
class Studies:
    """The studies of all variants; they propose trials in turn."""

    run_id: str
    search: Search
    variants: list[str]
    seed: int
    make_spec: MakeSpec
    sources: dict[str, str] = field(default_factory=dict)  # variant -> one that must end before
    warn: Callable[[str], None] = print
    _has_warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        import optuna  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.studies: dict[str, VariantStudy] = {}
        for name in self.variants:
            self.studies[name] = VariantStudy(
                name, self.search, self.run_id, self.seed, self._warn_once
            )

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self.warn(text)

    @property
    def n_trials(self) -> int:
        """How many trials there are in all."""
        return sum(study.budget for study in self.studies.values())

    def tell(self, asked: Asked, end: TrialEnded, reports: Reports) -> None:
        """Tell a study how a trial ended."""
        asked.study.tell(asked.trial, end.status, reports, end.cause, end.metrics)

    def resume(self, record: TrialRecord) -> tuple[TrialSpec, Asked]:
        """Ask again for a trial of the ledger."""
        study = self.studies[record.variant]
        trial = study.ask(record.params).trial
        spec = self.make_spec(record.trial_id, record.variant, record.params)
        return spec, Asked(study, trial)

    def proposals(self) -> Iterator[tuple[TrialSpec, Asked] | None]:
        """Yield new trials, variant after variant; None if all have to wait for their sources."""
        while True:
            if not self.has_open:
                return
            study = self.next_study()
            if study is None:
                yield None
                continue
            trial_id = f"{study.variant}-{study.n_asked:04}"
            trial, point = study.ask()
            spec = self.make_spec(trial_id, study.variant, json.loads(json.dumps(point)))
            yield spec, Asked(study, trial)

    @property
    def has_open(self) -> bool:
        """Return True if a study has not asked for all its trials yet."""
        return any(study.n_asked < study.budget for study in self.studies.values())

    def next_study(self) -> VariantStudy | None:
        """Return the study that asks next; None if all have asked, or wait for their sources."""
        ready = []
        for study in self.studies.values():
            if study.n_asked < study.budget and self._has_source_ended(study.variant):
                ready.append(study)
        return min(ready, key=lambda study: study.n_asked, default=None)

    def _has_source_ended(self, variant: str) -> bool:
        source = self.sources.get(variant)
        return source is None or self.studies[source].n_ended >= self.studies[source].budget


def _pruner(search: Search) -> Any:
    """Return Optuna's pruner where its scheduler compares folds; `Rungs` compare epochs."""
    from optuna import pruners  # noqa: PLC0415

    if not isinstance(search.scheduler, Wilcoxon):
        return pruners.NopPruner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental, and meant
        return pruners.WilcoxonPruner(p_threshold=search.scheduler.p)


def _seed(*parts: Any) -> int:
    return int(digest(list(parts))[:8], 16)


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _stored(entry: Entry, value: Any) -> Any:
    """Return a value as Optuna stores it: a list or map goes by its index."""
    if isinstance(entry, Choice):
        for choice in entry.choice:
            if not isinstance(choice, str | int | float | bool):
                return entry.choice.index(value)
    return value


def search_controller(
    studies: Studies,
    ledger: Ledger,
    durations: dict[str, str],
    *,
    measure: Callable[[TrialSpec], Metrics] | None = None,
    finished: Callable[[TrialSpec], list[dict[str, float]] | None] | None = None,
    gpus_per_trial: float = 0.0,
    shares: Shares = FixedShare(),  # noqa: B008 - frozen
    is_lost: Callable[[TrialRecord], bool] = lambda _: False,
) -> TrialController:
    """Return the trial controller of a search.

    Args:
        studies: one per variant.
        ledger: open for writing.
        durations: variant -> its `train.duration`.
        measure: returns what is known of a finished training beside its reports.
        finished: looks up the epochs of a trial that is finished in the store.
        gpus_per_trial: for the limit gpu_hours; 0 where each trial has a part of its own.
        shares: which part of a card a trial gets.
        is_lost: returns True for a complete trial whose artifact is no longer in the store.
    """
    scheduler = studies.search.scheduler
    rungs = {name: Rungs(scheduler, _max_epochs(durations[name])) for name in studies.variants}
    return TrialController(
        ledger,
        "search",
        studies.proposals(),
        rungs=rungs,
        tell=studies.tell,
        judge=None if measure is None else lambda _, spec: Verdict(measure(spec)),
        resume=studies.resume,
        finished=finished,
        budget=Budget(studies.search.limits, gpus_per_trial),
        shares=shares,
        is_lost=is_lost,
    )


def _max_epochs(duration: str) -> int:
    """Return the epoch from which on no trial is stopped.

    How many epochs a duration in steps has, only the worker knows; it marks its last report.
    """
    parsed = Duration.parse(duration)
    return parsed.n if parsed.unit == "epochs" else 10**9
