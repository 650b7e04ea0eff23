"""The search stage: one trial per setting."""

from __future__ import annotations

from typing import Any

from orchestrator.base.errors import UserError
from orchestrator.search.controller import OBJECTIVE
from orchestrator.search.reuse import earlier, write_families
from orchestrator.search.study import Studies, search_controller
from orchestrator.search.trial import TrialSpec
from orchestrator.search.trial_tables import write_tables
from orchestrator.spec.search_space import Search
from orchestrator.stages.context import Context, Done
from orchestrator.stages.trial_phase import (
    before_trials,
    describe_trial,
    in_store,
    keep,
    note,
    phase_trials,
    ranking,
    reuse,
    run_phase,
    sources,
)
from orchestrator.store.events import (
    PhaseStarted,
)
from orchestrator.store.ledger import TrialRecord


def _best_of(context: Context, variant: str) -> TrialRecord | None:
    """Return the best finished search trial of a variant, ordered as finalists are."""
    done = [
        t
        for t in phase_trials(context, "search")
        if t.variant == variant and t.status == "COMPLETE"
    ]
    return min(done, key=lambda t: (-t.metrics[OBJECTIVE], t.setting), default=None)


def _take_over(context: Context, wanted: Search, families: dict[str, str]) -> None:
    """Write into the ledger what an earlier run of the same study tells, where this one has not begun."""
    if not phase_trials(context, "search"):
        for one in earlier(context.store, families, wanted, besides=context.paths.run_id).values():
            for event in one.events:
                context.ledger.append(event)
            context.reporter.say(
                f"  search: {one.n_trials} trials are taken over from run {one.run_id}"
            )
    write_families(context.paths.root, families)


def search(context: Context) -> Done:
    """Try settings: one trial each, on role train, scored on role val."""
    spec, key = context.experiment.spec, context.keys.search(context.require_catalog())
    reused = reuse(context, "search", key)
    if not reused:
        stands_on = sources(context.experiment)

        def make(trial_id: str, variant: str, point: dict[str, Any]) -> TrialSpec:
            best = _best_of(context, stands_on[variant]) if variant in stands_on else None
            return describe_trial(
                context,
                f"s-{trial_id}" if not trial_id.startswith("s-") else trial_id,
                "search",
                variant,
                point,
                spec.seed,
                None,
                source=best.key if best else None,
            )

        before_trials(context)
        wanted = spec.search or Search(trials=1)
        _take_over(context, wanted, context.keys.families(context.require_catalog()))
        context.ledger.append(PhaseStarted(phase="search"), commit=True)
        variants = list(context.experiment.arms)
        studies = Studies(
            context.paths.run_id, wanted, variants, spec.seed, make, stands_on, context.reporter.say
        )
        durations = {name: arm.train.duration for name, arm in context.experiment.arms.items()}
        controller = search_controller(
            studies,
            context.ledger,
            durations,
            finished=in_store(context),
            gpus_per_trial=spec.resources.per_trial.gpu,
        )
        run_phase(context, controller, "search", sum(map(studies.budget, variants)))
    trials = phase_trials(context, "search")
    write_tables(context)
    if not any(trial.status == "COMPLETE" for trial in trials):
        causes = sorted({str(trial.error or trial.why) for trial in trials})
        raise UserError(
            f"search: at least one finished trial was required, none of {len(trials)} is: {'; '.join(causes[:3])}"
        )
    keep(context, "search", key, {"ranking": [list(row) for row in ranking(trials)]})
    return Done("CACHED" if reused else "SUCCEEDED", note(context, trials))
