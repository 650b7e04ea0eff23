"""Study reuse: a search takes over the trials of an earlier run.

That run may differ in the number of trials, the limits and the space. The store's artifacts alone
do not suffice: a pruned trial has none, and in a changed space the sampler proposes other points.
Measured on a toy study with ASHA that goes from 40 to 60 trials: 100 epochs are trained with reuse,
148 with the store alone; in a wider space 40 and 218.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import write_json
from orchestrator.spec.search_space import FoldStep, Search, Space, holds_point
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import (
    EpochReported,
    Event,
    TrialEnded,
    TrialReopened,
    TrialStarted,
)
from orchestrator.store.ledger import LedgerDamaged, TrialRecord, read, replay

FAMILIES = "families.json"


@dataclass(frozen=True)
class Earlier:
    """The events of trials of one variant that need not be trained."""

    run_id: str
    n_trials: int
    events: list[Event]


def earlier(
    store: Store, families: Mapping[str, str], search: Search, *, besides: str
) -> dict[str, Earlier]:
    """Return per variant the trials of the run that has the most usable ones.

    Usable are the trials from the first to the last before one that has not ended or has lost its
    artifact, because the sampler's next suggestion depends on all of them. Trials outside of the
    present space are left out.

    Args:
        store: the runs and artifacts.
        families: variant -> digest of all that decides its trials, except `trials`, limits, space.
        search: the present section of the spec.
        besides: the run that asks.
    """
    longest: dict[str, Earlier] = {}
    for path in sorted((store.root / "runs").glob(f"*/{FAMILIES}")):
        if path.parent.name == besides:
            continue
        try:
            families_there = json.loads(path.read_text(encoding="utf-8"))
            variants = [name for name in families if families_there.get(name) == families[name]]
            events = read(path.parent / "events.jsonl") if variants else []
        except (OSError, ValueError, LedgerDamaged):
            continue  # another run helps, but is not required
        trials = replay(events).trials.values()
        for variant in variants:
            of_variant = [t for t in trials if t.phase == "search" and t.variant == variant]
            names = _new_names(of_variant, search.space_of(variant), search.trials, store)
            n_known = longest[variant].n_trials if variant in longest else 0
            if len(names) > n_known:
                renamed = _renamed(events, names)
                longest[variant] = Earlier(path.parent.name, len(names), renamed)
    return longest


def _new_names(
    trials: list[TrialRecord], space: Space, n_wanted: int, store: Store
) -> dict[str, str]:
    """Return the trials to take over and their new names, in the order of their starts.

    `n_wanted` counts settings; with folds, a setting has several trials.
    """
    names: dict[str, str] = {}
    settings: dict[str, str] = {}  # how the ids of its trials begin -> begin now
    for trial in trials:
        is_lost = trial.status == "COMPLETE" and not store.has("trial", trial.key)
        has_ended = trial.status is not None and not trial.has_transient_failure
        if not has_ended or is_lost:
            break
        end = "" if trial.started.fold is None else fold_suffix(trial.started)
        begin = trial.trial_id.removesuffix(end)
        if begin not in settings:
            if len(settings) >= n_wanted or not holds_point(space, trial.params):
                continue
            settings[begin] = f"s-{trial.variant}-{len(settings):04}"
        names[trial.trial_id] = settings[begin] + end
    return names


def fold_suffix(training: TrialStarted | FoldStep) -> str:
    """Return how the id of a search trial ends where its setting has a trial per fold."""
    return f"-s{training.seed}-f{training.fold}"


def _renamed(events: list[Event], names: dict[str, str]) -> list[Event]:
    """Return the events of the trials that are taken over, with their new names."""
    renamed: list[Event] = []
    numbers = {name: number for number, name in enumerate(names.values())}
    for event in events:
        if not isinstance(event, TrialStarted | EpochReported | TrialEnded | TrialReopened):
            continue
        name = names.get(event.trial_id)
        if name is None:
            continue
        if isinstance(event, TrialStarted):
            renamed.append(replace(event, trial_id=name, number=numbers[name]))
        elif isinstance(event, TrialEnded):
            renamed.append(replace(event, trial_id=name, cached=True))
        else:
            renamed.append(replace(event, trial_id=name))
    return renamed


def write_families(run: Path, families: Mapping[str, str]) -> None:
    """Write down the families of a search, for later runs."""
    write_json(run / FAMILIES, dict(families))
