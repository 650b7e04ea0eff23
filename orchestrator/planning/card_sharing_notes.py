"""What a plan says about `resources.per_trial.gpu: auto`."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.connection import local_gpus
from orchestrator.search.card_sharing.capacity import CardUse, TrialSize, size_of
from orchestrator.search.card_sharing.measurements import measured_uses
from orchestrator.spec.models import Experiment
from orchestrator.store.artifacts import Store


def sharing_notes(experiment: Experiment, store: Store) -> list[str]:
    """Say how many trials will share a card, as far as earlier trials of the store have shown it."""
    if experiment.spec.resources.per_trial.gpu != "auto":
        return []
    notes = []
    if not local_gpus():
        notes.append(
            "resources.per_trial.gpu: auto means 0 on this machine, which has no GPU: trials train "
            "on CPUs; with --address the GPUs of that cluster count"
        )
    uses = measured_uses(store)
    sizes = {size_of(arm.train, arm.prep.size) for arm in experiment.arms.values()}
    for size in sorted(sizes, key=str):
        use = _use_of(size, uses)
        if use is not None:
            notes.append(f"{size}: {_sentence(use)}")
        elif local_gpus():
            notes.append(
                f"{size}: not measured yet; the first trial has a card for itself and shows how "
                "many share one"
            )
    return notes


def _use_of(size: TrialSize, uses: dict[TrialSize, CardUse]) -> CardUse | None:
    """Return what is known of a size; precision `auto` is decided where trials run."""
    if size.precision != "auto":
        return uses.get(size)
    for measured, use in uses.items():
        if replace(measured, precision="auto") == size:
            return use
    return None


def _sentence(use: CardUse) -> str:
    n = use.trials_per_card
    sharing = "one trial at a time has" if n == 1 else f"{n} trials share"
    return (
        f"{sharing} a card {use.card} (a trial took {use.peak_bytes / 1e9:.1f} of "
        f"{use.total_bytes / 1e9:.1f} GB and kept it busy {100 * use.busy_share:.0f} % of its time)"
    )
