"""The precision of a training. `auto` is probed where trials run, once per run, backbone and size."""

from __future__ import annotations

from orchestrator.spec.models import Arm
from orchestrator.stages.context import Context
from orchestrator.store.events import PrecisionChosen


def precision_of(context: Context, arm: Arm) -> str:
    """Return an arm's precision. `auto` is probed once per run, backbone and size, and stands in the ledger."""
    if arm.train.precision != "auto":
        return arm.train.precision
    share = context.experiment.spec.resources.per_trial
    device, model = "cuda" if share.gpu else "cpu", arm.train.model
    asked = (model.backbone, arm.prep.size, device)
    for event in context.ledger.events:
        if isinstance(event, PrecisionChosen) and asked == (
            event.backbone,
            event.size,
            event.device,
        ):
            return event.chosen
    seconds = _probe(context, arm, device)
    chosen = min(seconds, key=lambda name: seconds[name])
    context.ledger.append(
        PrecisionChosen(
            backbone=model.backbone,
            size=arm.prep.size,
            device=device,
            seconds=seconds,
            chosen=chosen,
        ),
        commit=True,
    )
    return chosen


def _probe(context: Context, arm: Arm, device: str) -> dict[str, float]:
    """Time a few steps where trials run."""
    import ray  # noqa: PLC0415

    def run() -> dict[str, float]:
        from trainers.device import probe  # noqa: PLC0415

        return probe(
            arm.train.model,
            dict(zip(schema.names, schema.sizes, strict=True)),
            size=arm.prep.size,
            batch_size=arm.train.micro_batch or arm.train.batch_size,
            device=device,
            threads=max(1, int(share.cpu)),
        )

    share, schema = context.experiment.spec.resources.per_trial, context.schema
    found: dict[str, float] = ray.get(
        ray.remote(num_cpus=share.cpu, num_gpus=share.gpu)(run).remote()
    )
    return found
