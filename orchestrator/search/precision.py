"""The precision of a training. `auto` is probed once per run, backbone and size."""

from __future__ import annotations

from data_prep.catalog.labels import Schema
from orchestrator.spec.models import Arm, TrialShare
from orchestrator.store.events import PrecisionChosen
from orchestrator.store.ledger import Ledger


def choose_precision(arm: Arm, schema: Schema, share: TrialShare, ledger: Ledger) -> str:
    """Return an arm's precision. What `auto` chose stands in the ledger.

    Args:
        arm: of the spec.
        schema: the labels.
        share: what a trial gets of the machine.
        ledger: of the run.
    """
    if arm.train.precision != "auto":
        return arm.train.precision
    device = share.device
    backbone = arm.train.model.backbone
    size = arm.prep.size
    for event in ledger.events:
        if isinstance(event, PrecisionChosen):
            known = (event.backbone, event.size, event.device)
            if known == (backbone, size, device):
                return event.chosen
    seconds = _probe(arm, schema, share)
    chosen = min(seconds, key=seconds.__getitem__)
    event = PrecisionChosen(
        backbone=backbone, size=size, device=device, seconds=seconds, chosen=chosen
    )
    ledger.append(event, commit=True)
    return chosen


def _probe(arm: Arm, schema: Schema, share: TrialShare) -> dict[str, float]:
    """Return precision -> seconds of a step, measured where trials run."""
    import ray  # noqa: PLC0415

    def measure() -> dict[str, float]:
        from trainers.device import probe  # noqa: PLC0415

        return probe(
            arm.train.model,
            dict(zip(schema.names, schema.sizes, strict=True)),
            size=arm.prep.size,
            batch_size=arm.train.micro_batch or arm.train.batch_size,
            device=share.device,
            threads=max(1, int(share.cpu)),
        )

    task = ray.remote(num_cpus=share.cpu, num_gpus=share.gpu)(measure)
    seconds: dict[str, float] = ray.get(task.remote())
    return seconds
