"""Study reuse: a search takes over the finished trials of an earlier run.

It needs a run that differs only in the number of trials, the limits or the space. The store's answers by key are not
enough: a pruned trial leaves no artifact, and in a changed space the sampler proposes other points. Measured on a toy
study with ASHA that goes from 40 to 60 trials: 100 epochs are trained with reuse and 148 with the store alone; in a
wider space 40 and 218.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import write_json
from orchestrator.spec.search_space import Search, holds_point
from orchestrator.store.artifacts import Store
from orchestrator.store.events import (
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
    """Trials of one variant that need not be trained, as the events that tell of them."""

    run_id: str
    n_trials: int
    events: list[Event]


def earlier(
    store: Store, families: Mapping[str, str], search: Search, *, besides: str
) -> dict[str, Earlier]:
    """Return per variant what the run with the most usable trials tells.

    Usable are the trials from the first on, up to one that has not ended or whose artifact is gone: what the sampler
    suggests next rests on all of them. Trials whose point lies outside the space now are left out.

    Args:
        store: where runs and artifacts are.
        families: variant -> digest of all that decides a trial of it, except `trials`, limits and space.
        search: as it is wanted now.
        besides: the run that asks.
    """
    found: dict[str, Earlier] = {}
    for path in sorted((store.root / "runs").glob(f"*/{FAMILIES}")):
        if path.parent.name == besides:
            continue
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            shared = [name for name, family in families.items() if theirs.get(name) == family]
            events = read(path.parent / "events.jsonl") if shared else []
        except (OSError, ValueError, LedgerDamaged):
            continue  # what another run tells is a help, not a need
        trials = replay(events).trials
        for variant in shared:
            names = _usable([t for t in trials.values() if _is_of(t, variant)], search, store)
            if len(names) > (found[variant].n_trials if variant in found else 0):
                found[variant] = Earlier(path.parent.name, len(names), _renamed(events, names))
    return found


def _is_of(trial: TrialRecord, variant: str) -> bool:
    return trial.phase == "search" and trial.variant == variant


def _usable(trials: list[TrialRecord], search: Search, store: Store) -> dict[str, str]:
    """Return the trials to take over and the names they get, in the order they were started."""
    names: dict[str, str] = {}
    for trial in trials:
        variant = trial.variant
        key = trial.key
        space = search.space_of(variant)
        lost = (
            trial.status == "COMPLETE"
            and not (store.root / "trial" / key / "manifest.json").is_file()
        )
        if (
            trial.status is None
            or lost
            or trial.has_transient_failure
            or len(names) >= search.trials
        ):
            break
        if holds_point(space, trial.params):
            names[trial.trial_id] = f"s-{variant}-{len(names):04}"
    return names


def _renamed(events: list[Event], names: dict[str, str]) -> list[Event]:
    """Return the events of the trials that are taken over, with the names they get."""
    renamed: list[Event] = []
    for event in events:
        if not isinstance(event, TrialStarted | EpochReported | TrialEnded | TrialReopened):
            continue
        name = names.get(event.trial_id)
        if name is None:
            continue
        if isinstance(event, TrialStarted):
            number = int(name.rsplit("-", 1)[1])
            renamed.append(replace(event, trial_id=name, number=number))
        elif isinstance(event, TrialEnded):
            renamed.append(replace(event, trial_id=name, cached=True))
        else:
            renamed.append(replace(event, trial_id=name))
    return renamed


def write_families(run: Path, families: Mapping[str, str]) -> None:
    """Leave word of a search's families, for runs to come."""
    write_json(run / FAMILIES, dict(families))
