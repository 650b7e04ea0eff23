"""The search: per variant one Optuna study, all variants in one Tune experiment."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.base.keys import digest
from orchestrator.search.budget import Budget
from orchestrator.search.controller import Reports, TrialController
from orchestrator.search.early_stopping import Rungs
from orchestrator.search.trial import TrialSpec
from orchestrator.spec.search_space import Search, grid, suggest
from orchestrator.store.events import OBJECTIVE
from orchestrator.store.ledger import Ledger, TrialRecord
from trainers.config import Duration

MakeSpec = Callable[[str, str, dict[str, Any]], TrialSpec]
"""(trial_id, variant, point) -> the trial to run."""

_DRAWS = 256  # until a new point is found
_OWN_DRAWS = 4  # of them by the sampler itself


@dataclass
class Studies:
    """Optuna in memory. A suggestion depends on the history and its number alone, so no generator's state is saved."""

    run_id: str
    search: Search
    variants: list[str]
    seed: int
    make_spec: MakeSpec
    sources: dict[str, str] = field(
        default_factory=dict
    )  # variant -> the variant that must have ended before
    warn: Callable[[str], None] = print
    _warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        import optuna  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spaces = {name: self.search.space_of(name) for name in self.variants}
        self.grids = (
            {name: grid(space) for name, space in self.spaces.items()}
            if self.search.sampler == "grid"
            else None
        )
        self.studies = {
            name: optuna.create_study(study_name=f"{self.run_id}/{name}", direction="maximize")
            for name in self.variants
        }
        self.asked = dict.fromkeys(self.variants, 0)
        self.ended = dict.fromkeys(self.variants, 0)
        # asked for, where start points or a grid need them
        self.points: dict[str, list[dict[str, Any]]] = {name: [] for name in self.variants}
        self._tried: dict[str, set[str]] = {name: set() for name in self.variants}
        self._exhausted: set[str] = set()
        self._newest = dict.fromkeys(
            self.variants, -1
        )  # Optuna's number of the last trial that was asked for

    def budget(self, variant: str) -> int:
        """Return how many trials a variant gets."""
        if not self.spaces[variant]:
            return 1
        return (
            min(self.search.trials, len(self.grids[variant])) if self.grids else self.search.trials
        )

    def ask(self, variant: str, known: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return Optuna's next trial and its point; `known` asks for a point that was asked for before.

        A point that was tried already is drawn again, a few times by the sampler, which takes the earlier draws for
        running trials, then at random: in a small space a sampler proposes its favourite for ever. Where nothing new is
        found the last draw stands: the store answers it, or a trial that was pruned when little was known gets another
        chance.
        """
        from optuna.trial import TrialState as State  # noqa: PLC0415

        number = self.asked[variant]
        self.asked[variant] += 1
        # a quasi-random sequence counts its calls, and learns nothing from what is told
        fixed = (
            known if known is not None and self.search.sampler != "qmc" else self._fixed(variant)
        )
        at = _DRAWS - 1 if variant in self._exhausted and not fixed else 0
        draws = [self._draw(variant, number, at, fixed, known=known is not None)]
        while not fixed and self._is_tried(variant, draws[-1][1]):
            if (at := at + 1) >= _DRAWS:
                self._exhausted.add(variant)
                break
            draws.append(self._draw(variant, number, at, None))
        for trial, _ in draws[:-1]:
            self.studies[variant].tell(trial, state=State.FAIL)
        trial, point = draws[-1]
        self._tried[variant].add(_text(point))
        if self.search.start or self.grids:
            self.points[variant].append(known if known is not None else point)
        return trial, point

    def _draw(
        self,
        variant: str,
        number: int,
        attempt: int,
        fixed: dict[str, Any] | None,
        *,
        known: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        import optuna  # noqa: PLC0415

        study = self.studies[variant]
        space = self.spaces[variant]
        seed = self._seed(variant, number, attempt) if attempt else self._seed(variant, number)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # experimental options of samplers that we name on purpose
            study.sampler = self._sampler(variant, seed, at_random=known or attempt >= _OWN_DRAWS)
            if fixed:
                study.enqueue_trial(
                    {path: _stored(space[path], value) for path, value in fixed.items()}
                )
            try:
                trial = study.ask()
                point = suggest(trial, space)
            except Exception as error:  # noqa: BLE001 - a sampler that fails must not end the study
                if not self._warned:
                    self._warned = True
                    self.warn(
                        f"the {self.search.sampler} sampler failed ({type(error).__name__}: {error}); "
                        "such trials are sampled at random"
                    )
                for orphan in study.get_trials(
                    deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
                ):
                    if orphan.number > self._newest[variant]:
                        study.tell(orphan.number, state=optuna.trial.TrialState.FAIL)
                study.sampler = optuna.samplers.RandomSampler(seed=seed)
                trial = study.ask()
                point = suggest(trial, space)
        self._newest[variant] = trial.number
        return trial, point

    def _is_tried(self, variant: str, point: dict[str, Any]) -> bool:
        return bool(self.spaces[variant]) and _text(point) in self._tried[variant]

    def _fixed(self, variant: str) -> dict[str, Any] | None:
        """Return what is not left to the sampler: the first starting point that was not tried, then the grid's."""
        space = self.spaces[variant]
        tried = self.points[variant]
        for start in self.search.start:
            own = {path: value for path, value in start.items() if path in space}
            if own and not any(own.items() <= point.items() for point in tried):
                return own
        return (
            next((point for point in self.grids[variant] if point not in tried), None)
            if self.grids
            else None
        )

    def _seed(self, *parts: Any) -> int:
        return int(digest([self.seed, *parts])[:8], 16)

    def _sampler(self, variant: str, seed: int, *, at_random: bool) -> Any:
        import optuna  # noqa: PLC0415

        if at_random and self.search.sampler in {"tpe", "gp"}:
            # what is known leaves nothing to sample, and these two take their time
            return optuna.samplers.RandomSampler(seed=seed)
        make: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            ),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            "qmc": lambda: optuna.samplers.QMCSampler(seed=self._seed(variant), scramble=True),
            "grid": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        return make[self.search.sampler]()

    def tell(
        self, asked: tuple[str, Any], status: str, reports: Reports, cause: str | None = None
    ) -> None:
        """Tell a study how a trial ended: intermediate values, and PRUNED as what it is.

        A setting that does not fit into memory violates a constraint, so that the sampler goes elsewhere; as FAIL it
        would be forgotten and proposed again.
        """
        from optuna.trial import TrialState as State  # noqa: PLC0415

        variant, trial = asked
        study = self.studies[variant]
        self.ended[variant] += 1
        for epoch, metrics in sorted(reports.items()):
            trial.report(metrics[OBJECTIVE], epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if cause == "memory":
                trial.set_constraint("memory", 1.0)
                study.tell(trial, state=State.PRUNED)
            elif status == "COMPLETE":
                study.tell(trial, max(metrics[OBJECTIVE] for metrics in reports.values()))
            else:
                study.tell(trial, state=State.PRUNED if status == "PRUNED" else State.FAIL)

    def resume(self, trial: TrialRecord) -> tuple[TrialSpec, Any]:
        """Ask again for a trial that the ledger knows."""
        variant = trial.variant
        point = trial.params
        asked, _ = self.ask(variant, point)
        return self.make_spec(trial.trial_id, variant, point), (variant, asked)

    def proposals(self) -> Iterator[tuple[TrialSpec, Any] | None]:
        """Yield new trials, variant after variant, until each has had its budget; None where all wait for sources."""
        while left := [name for name in self.variants if self.asked[name] < self.budget(name)]:
            ready = [name for name in left if self._has_ended(self.sources.get(name))]
            if not ready:
                yield None
                continue
            variant = min(ready, key=lambda name: (self.asked[name], self.variants.index(name)))
            trial_id = f"{variant}-{self.asked[variant]:04}"
            asked, point = self.ask(variant)
            yield self.make_spec(trial_id, variant, json.loads(json.dumps(point))), (variant, asked)

    def _has_ended(self, variant: str | None) -> bool:
        return variant is None or self.ended[variant] >= self.budget(variant)


def _text(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _stored(entry: Any, value: Any) -> Any:
    """Return a value as Optuna knows it: a choice of lists or maps goes by its place."""
    choices = getattr(entry, "choice", None)
    simple = choices is None or all(isinstance(item, str | int | float | bool) for item in choices)
    return value if simple else choices.index(value) if choices else value


def search_controller(
    studies: Studies,
    ledger: Ledger,
    durations: dict[str, str],
    *,
    finished: Callable[[TrialSpec], list[dict[str, float]] | None] | None = None,
    gpus_per_trial: float = 0.0,
) -> TrialController:
    """Return the trial controller of a search.

    Args:
        studies: one per variant.
        ledger: open for writing.
        durations: variant -> its `train.duration`.
        finished: looks up the epochs of a trial that is finished in the store.
        gpus_per_trial: what gpu_hours are counted with.
    """
    rungs = {
        name: Rungs(studies.search.scheduler, _max_epochs(durations[name]))
        for name in studies.variants
    }
    return TrialController(
        ledger,
        "search",
        studies.proposals(),
        rungs=rungs,
        tell=studies.tell,
        resume=studies.resume,
        finished=finished,
        budget=Budget(studies.search.limits, gpus_per_trial),
    )


def _max_epochs(duration: str) -> int:
    """Return the epoch at which no rung looks any more.

    How many epochs steps are depends on a trial's photos and batch size, which only its worker counts: with a duration
    in steps a rung may stop a trial that is at its end.
    """
    parsed = Duration.parse(duration)
    return parsed.n if parsed.unit == "epochs" else 10**9
