"""The search: per variant one Optuna study, all variants in one Tune experiment."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.bridge import OBJECTIVE, Bridge, Rungs
from orchestrator.keys import digest
from orchestrator.ledger import TrialState
from orchestrator.space import Search, grid, suggest
from orchestrator.trial import TrialSpec
from trainers.config import Duration

MakeSpec = Callable[[str, str, dict[str, Any]], TrialSpec]
"""(trial_id, variant, point) -> the trial to run."""


@dataclass
class Studies:
    """Optuna in memory. A suggestion depends on the history and its number alone, so no generator's state is saved."""

    run_id: str
    search: Search
    variants: list[str]
    seed: int
    make_spec: MakeSpec
    sources: dict[str, str] = field(default_factory=dict)  # variant -> the variant that must have ended before

    def __post_init__(self) -> None:
        import optuna  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.grid = grid(self.search.space) if self.search.sampler == "grid" else None
        self.studies = {
            name: optuna.create_study(study_name=f"{self.run_id}/{name}", direction="maximize")
            for name in self.variants
        }
        self.asked = dict.fromkeys(self.variants, 0)
        self.ended = dict.fromkeys(self.variants, 0)

    def budget(self) -> int:
        """Return how many trials a variant gets."""
        if not self.search.space:
            return 1
        return min(self.search.trials, len(self.grid)) if self.grid is not None else self.search.trials

    def ask(self, variant: str, known: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return Optuna's next trial and its point; `known` asks for a point that was asked for before."""
        study, number = self.studies[variant], self.asked[variant]
        self.asked[variant] += 1
        fixed = known if known is not None else self.grid[number] if self.grid is not None else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental options of samplers that we name on purpose
            study.sampler = self._sampler(variant, number)
            if fixed:
                study.enqueue_trial({path: self._stored(path, value) for path, value in fixed.items()})
            trial = study.ask()
            return trial, suggest(trial, self.search.space)

    def _stored(self, path: str, value: Any) -> Any:
        """Return a value as Optuna knows it: a choice of lists or maps goes by its place."""
        choices = getattr(self.search.space[path], "choice", None)
        simple = choices is None or all(isinstance(item, str | int | float | bool) for item in choices)
        return value if simple else choices.index(value) if choices else value

    def _sampler(self, variant: str, number: int) -> Any:
        import optuna  # noqa: PLC0415

        seed = int(digest([self.seed, variant, number])[:8], 16)
        fixed_seed = int(digest([self.seed, variant])[:8], 16)
        make: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            "qmc": lambda: optuna.samplers.QMCSampler(seed=fixed_seed, scramble=True),
            "grid": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        return make[self.search.sampler]()

    def tell(self, asked: tuple[str, Any], status: str, reports: dict[int, dict[str, float]]) -> None:
        """Tell a study how a trial ended: intermediate values, and PRUNED as what it is."""
        from optuna.trial import TrialState as State  # noqa: PLC0415

        variant, trial = asked
        self.ended[variant] += 1
        for epoch, metrics in sorted(reports.items()):
            trial.report(metrics[OBJECTIVE], epoch)
        if status == "COMPLETE":
            self.studies[variant].tell(trial, max(metrics[OBJECTIVE] for metrics in reports.values()))
        else:
            self.studies[variant].tell(trial, state=State.PRUNED if status == "PRUNED" else State.FAIL)

    def resume(self, trial: TrialState) -> tuple[TrialSpec, Any]:
        """Ask again for a trial that the ledger knows."""
        variant, point = trial.facts["variant"], trial.facts["params"]
        asked, _ = self.ask(variant, point)
        return self.make_spec(trial.trial_id, variant, point), (variant, asked)

    def proposals(self) -> Iterator[tuple[TrialSpec, Any] | None]:
        """Yield new trials, variant after variant, until each has had its budget; None where all wait for sources."""
        while left := [name for name in self.variants if self.asked[name] < self.budget()]:
            ready = [
                name for name in left if self.ended.get(self.sources.get(name, ""), self.budget()) >= self.budget()
            ]
            if not ready:
                yield None
                continue
            variant = min(ready, key=lambda name: (self.asked[name], self.variants.index(name)))
            trial_id = f"{variant}-{self.asked[variant]:04}"
            asked, point = self.ask(variant)
            yield self.make_spec(trial_id, variant, json.loads(json.dumps(point))), (variant, asked)


def search_bridge(
    studies: Studies, ledger: Any, durations: dict[str, str], progress: Callable[[int, str], None]
) -> Bridge:
    """Return the bridge of a search.

    Args:
        studies: one per variant.
        ledger: open for writing.
        durations: variant -> its `train.duration`.
        progress: told how many trials have ended.
    """
    rungs = {name: Rungs(studies.search.scheduler, _max_epochs(durations[name])) for name in studies.variants}
    return Bridge(
        ledger, "search", studies.proposals(), rungs=rungs, tell=studies.tell, resume=studies.resume, progress=progress
    )


def _max_epochs(duration: str) -> int:
    parsed = Duration.parse(duration)
    return parsed.n if parsed.unit == "epochs" else 10**9
