"""The precision of a training. `auto` is decided once per run, backbone, photo size and device."""

from __future__ import annotations

from data_prep.catalog.label_schema import Schema
from orchestrator.spec.models import Arm, TrialShare
from orchestrator.store.event_types import PrecisionChosen
from orchestrator.store.ledger import Ledger


def choose_precision(arm: Arm, schema: Schema, share: TrialShare, ledger: Ledger) -> str:
    """Return an arm's precision; the ledger records what `auto` stands for.

    Args:
        arm: of the spec.
        schema: the labels.
        share: what a trial gets of the machine.
        ledger: of the run; a choice that it records is used again.
    """
    if arm.train.precision != "auto":
        return arm.train.precision
    backbone = arm.train.model.backbone_text
    size = arm.prep.size
    for event in ledger.events:
        if isinstance(event, PrecisionChosen):
            known = (event.backbone, event.size, event.device)
            if known == (backbone, size, share.device):
                return event.chosen
    chosen = _choose_on_worker(arm, schema, share)
    event = PrecisionChosen(backbone=backbone, size=size, device=share.device, chosen=chosen)
    ledger.append(event, commit=True)
    return chosen


def _choose_on_worker(arm: Arm, schema: Schema, share: TrialShare) -> str:
    """Return what the rule says on a machine where trials run."""
    import ray  # noqa: PLC0415

    def choose() -> str:
        from trainers.compute_settings import choose_precision_for  # noqa: PLC0415

        sizes = dict(zip(schema.names, schema.sizes, strict=True))
        return choose_precision_for(arm.train.model, sizes, size=arm.prep.size, device=share.device)

    task = ray.remote(num_cpus=share.cpu, num_gpus=share.least_gpu)(choose)
    chosen: str = ray.get(task.options(name="precision").remote())
    return chosen
