"""Folds as fidelity: a setting is trained fold by fold, and stopped where it loses to the best one.

A fold is a trial of its own, the very training that confirm would ask for. A study hears of a
setting once, with the mean over its folds.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.base.wording import counted
from orchestrator.search.budget import Budget
from orchestrator.search.card_sharing.shares import FixedShare, Shares
from orchestrator.search.controller import Reports, TrialController, Verdict
from orchestrator.search.reuse import fold_suffix
from orchestrator.search.study import Studies, VariantStudy
from orchestrator.search.trial import TrialSpec
from orchestrator.spec.search_space import FoldStep, Point, Wilcoxon
from orchestrator.store.event_types import FOLD_SCORE, Metrics, TrialEnded
from orchestrator.store.ledger import Ledger, TrialRecord


class MakeFold(Protocol):
    """Describes the training of a setting on one fold."""

    def __call__(self, trial_id: str, variant: str, point: Point, step: FoldStep) -> TrialSpec: ...


@dataclass
class Setting:
    """A setting of the search, and its trainings so far."""

    study: VariantStudy
    begin: str  # of the ids of its trials
    point: Point
    asked: Any  # Optuna's trial
    name: str = ""  # its hash, once a training is described
    keys: dict[int, str] = field(default_factory=dict)  # number of a step -> key of its training
    scores: dict[int, float] = field(default_factory=dict)  # likewise, of those that have ended
    is_closed: bool = False  # Optuna knows its result

    @property
    def mean(self) -> float:
        """Return the mean over the folds that have ended."""
        return statistics.fmean(self.scores.values())

    @property
    def is_idle(self) -> bool:
        """Return True if its next fold can be trained."""
        return not self.is_closed and len(self.scores) == len(self.keys)


@dataclass(frozen=True)
class AskedFold:
    """A setting, and the number of one of its steps."""

    setting: Setting
    number: int


class FoldStudies:
    """Studies whose settings are trained on one fold after the other."""

    def __init__(
        self,
        studies: Studies,
        steps: Sequence[FoldStep],
        make_fold: MakeFold,
        measure: Callable[[TrialSpec], Metrics],
    ) -> None:
        """Begin with the studies of all variants.

        Args:
            studies: they propose the settings.
            steps: the trainings of every setting, in their order.
            make_fold: describes a training.
            measure: returns the score of a finished training on its fold, by name, and what else
                the search aims at.
        """
        self.studies = studies
        self.steps = list(steps)
        self.make_fold = make_fold
        self.measure = measure
        self.settings: dict[str, Setting] = {}  # by variant and number of the proposal, in order

    @property
    def n_trials(self) -> int:
        """How many trainings there are at most."""
        return self.studies.n_trials * len(self.steps)

    # -- proposing ---------------------------------------------------------------------------------
    def proposals(self) -> Iterator[tuple[TrialSpec, AskedFold] | None]:
        """Yield the next fold of a setting, else the first one of a new setting; None to wait."""
        while True:
            setting = next((s for s in self.settings.values() if s.is_idle), None)
            study = self.studies.next_study()
            if setting is None and study is not None:
                setting = self._ask(study)
            if setting is not None:
                yield self._describe(setting, len(setting.keys))
            elif self.studies.has_open or not all(s.is_closed for s in self.settings.values()):
                yield None
            else:
                return

    def _ask(self, study: VariantStudy, known: TrialRecord | None = None) -> Setting:
        """Ask a study for a setting; `known` asks again for the one of a trial in the ledger."""
        if known is None:
            begin = f"s-{study.variant}-{study.n_asked:04}"
            draw = study.ask()
            point = draw.point
        else:
            begin = known.trial_id.removesuffix(fold_suffix(known.started))
            draw = study.ask(known.params)
            point = known.params
        setting = Setting(study, begin, point, draw.trial)
        self.settings[begin] = setting
        return setting

    def _describe(self, setting: Setting, number: int) -> tuple[TrialSpec, AskedFold]:
        step = self.steps[number]
        trial_id = setting.begin + fold_suffix(step)
        spec = self.make_fold(trial_id, setting.study.variant, setting.point, step)
        setting.name = spec.setting
        setting.keys[number] = spec.key
        return spec, AskedFold(setting, number)

    def resume(self, record: TrialRecord) -> tuple[TrialSpec, AskedFold]:
        """Describe a trial of the ledger again."""
        begin = record.trial_id.removesuffix(fold_suffix(record.started))
        setting = self.settings.get(begin)
        if setting is None:
            setting = self._ask(self.studies.studies[record.variant], record)
        step = FoldStep(record.started.seed, record.started.fold or 0)
        return self._describe(setting, self.steps.index(step))

    # -- ends --------------------------------------------------------------------------------------
    def judge(self, asked: AskedFold, spec: TrialSpec) -> Verdict:
        """Score a training on its fold, and compare its setting with the best one."""
        metrics = self.measure(spec)
        self._take_score(asked, metrics[FOLD_SCORE])
        return Verdict(metrics, self._reason_to_stop(asked.setting))

    def _take_score(self, asked: AskedFold, score: float) -> None:
        setting = asked.setting
        if asked.number not in setting.scores and not setting.is_closed:
            setting.scores[asked.number] = score
            setting.study.report(setting.asked, asked.number, score)

    def _reason_to_stop(self, setting: Setting) -> str | None:
        scheduler = self.studies.search.scheduler
        n_folds = len(setting.scores)
        if setting.is_closed or n_folds == len(self.steps) or not isinstance(scheduler, Wilcoxon):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SciPy, about few pairs
            if not setting.asked.should_prune():
                return None
        best = setting.study.optuna.best_trial.intermediate_values
        of_best = statistics.fmean(best[number] for number in setting.scores)
        return (
            f"wilcoxon: its setting loses to the best one, {setting.mean:.4f} to {of_best:.4f} over "
            f"the same {counted(n_folds, 'fold')}, p below {scheduler.p:g}"
        )

    def tell(self, asked: AskedFold, end: TrialEnded, _reports: Reports) -> float | None:
        """Take in the end of a training; return the score of its setting where that is known now.

        A setting that is stopped counts in Optuna by the mean over its folds so far, as Optuna
        advises for this pruner.
        """
        setting = asked.setting
        if setting.is_closed:
            return None
        if end.status != "COMPLETE":
            setting.is_closed = True
            setting.study.tell(setting.asked, end.status, {}, end.cause)
            return None
        self._take_score(asked, (end.metrics or {})[FOLD_SCORE])
        is_whole = len(setting.scores) == len(self.steps)
        if not is_whole and end.why is None:
            return None
        setting.is_closed = True
        setting.study.complete(setting.asked, setting.mean, end.metrics)
        return setting.mean if is_whole else None

    def best_key(self, variant: str, step: FoldStep) -> str | None:
        """Return the key of a training of the variant's best setting, ordered as finalists are."""
        whole = []
        for setting in self.settings.values():
            if setting.study.variant == variant and len(setting.scores) == len(self.steps):
                whole.append(setting)
        best = min(whole, key=lambda setting: (-setting.mean, setting.name), default=None)
        return best.keys[self.steps.index(step)] if best else None


def fold_controller(
    studies: FoldStudies,
    ledger: Ledger,
    *,
    finished: Callable[[TrialSpec], list[Metrics] | None] | None = None,
    gpus_per_trial: float = 0.0,
    shares: Shares = FixedShare(),  # noqa: B008 - frozen
    is_lost: Callable[[TrialRecord], bool] = lambda _: False,
) -> TrialController:
    """Return the trial controller of a search that trains folds; `search_controller` says the rest."""
    return TrialController(
        ledger,
        "search",
        studies.proposals(),
        tell=studies.tell,
        judge=studies.judge,
        counts_reports=False,
        resume=studies.resume,
        finished=finished,
        budget=Budget(studies.studies.search.limits, gpus_per_trial),
        shares=shares,
        is_lost=is_lost,
    )
