"""`plan` over a store where the same study was done with fewer trials."""

from orchestrator.planning.plan import make_plan
from orchestrator.planning.stage_keys import prepare_keys, study_families
from orchestrator.report.command_text.plans_and_runs import plan_lines
from orchestrator.search.reuse import write_families
from orchestrator.spec.load import read
from orchestrator.stages import STAGES
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import Ledger
from tests.orchestrator.planning.test_garbage import begin, make, spec, store

__all__ = ["spec", "store"]  # fixtures


def finish_search(store, spec, rates):
    """Leave a run whose variants have a finished trial for each rate."""
    plan, experiment = begin(store, spec), read(spec)
    run = store.root / "runs" / plan.run_id
    families = study_families(experiment, "content", prepare_keys(experiment, "photos"))
    write_families(run, families)
    (run / "events.jsonl").unlink()
    with Ledger(run) as ledger:
        for variant in families:
            for number, rate in enumerate(rates):
                key, params = f"{variant}-{rate}", {"train.optimizer.lr": rate}
                trial_id = f"s-{variant}-{number:04}"
                ledger.append(
                    TrialStarted(
                        trial_id=trial_id,
                        phase="search",
                        variant=variant,
                        number=number,
                        setting=key,
                        params=params,
                        key=key,
                    )
                )
                ledger.append(TrialEnded(trial_id=trial_id, status="COMPLETE", wall_s=1.0))
                make(store, "trial", key)
    return plan


def test_sixty_after_forty_shows_the_forty_as_cached(store, spec):
    done = finish_search(store, spec, [0.001, 0.002])
    more = make_plan(read(spec, ["search.trials=5"]), store, STAGES)
    assert (4, 10) == (more.n_cached, more.trials["search"])
    assert done.run_id != more.run_id
    lines = "\n".join(plan_lines(more))
    assert "4 trials are in the store and replayed to the sampler, the rest is trained" in lines
    assert "trials at most: 10 search, 4 confirm; 4 of search are cached" in lines


def test_another_range_keeps_what_lies_in_it_and_another_seed_keeps_nothing(store, spec):
    finish_search(store, spec, [0.001, 0.002])
    changes = {
        "search.space={train.optimizer.lr: {float: [1.5e-3, 1.0], log: true}}": 2,
        "search.space={train.optimizer.lr: {float: [1.0e-5, 1.0], log: true}}": 4,
        "search.sampler=tpe": 0,
        "seed=8": 0,
        "train.batch_size=16": 0,
    }
    assert list(changes.values()) == [
        make_plan(read(spec, [change]), store, STAGES).n_cached for change in changes
    ]
