"""Whether compiled steps repay, for `train.compile: auto`: timed once per run and size of a training."""

from __future__ import annotations

from dataclasses import asdict

from data_prep.catalog.label_schema import Schema
from orchestrator.search.card_sharing.capacity import TrialSize, size_of
from orchestrator.spec.models import Arm, TrialShare
from orchestrator.store.event_types import StepsTimed
from orchestrator.store.ledger import Ledger
from trainers.config import Train
from trainers.preflight.step_times import ModeTimes, StepTimes
from trainers.settings.duration import Duration

_WORTH_A_PROBE = 10_000  # steps; compiling takes minutes, and saves a hundredth of a second each


def time_steps(
    arm: Arm, precision: str, schema: Schema, share: TrialShare, ledger: Ledger, *, n_photos: int
) -> None:
    """Time the steps of an arm on a worker and write them into the ledger, where that may pay.

    It does not on a CPU, for a frozen backbone, and for a short training. What is compiled stays in
    the cache of that node. Batch sizes and heads of a search space have sizes of their own that
    are not timed; there the number of steps alone decides.

    Args:
        arm: of the spec.
        precision: what its own stands for.
        schema: the labels.
        share: what a trial gets of the machine.
        ledger: of the run; what it has is not timed again.
        n_photos: that a training learns from at most.
    """
    train = arm.train.model_copy(update={"precision": precision})
    is_wanted = train.compile == "auto" and share.device.startswith("cuda")
    steps_per_epoch = n_photos // train.batch_size + 1
    n_steps = Duration.parse(train.duration).steps(steps_per_epoch)
    if not is_wanted or train.model.freeze is not None or n_steps < _WORTH_A_PROBE:
        return
    size = size_of(train, arm.prep.size)
    if known_times(size, share.device, ledger) is not None:
        return
    times = _time_on_worker(train, schema, arm.prep.size, share)
    event = StepsTimed(size=asdict(size), device=share.device, times=asdict(times))
    ledger.append(event, commit=True)


def known_times(size: TrialSize, device: str, ledger: Ledger) -> StepTimes | None:
    """Return what the ledger knows of steps of a size, None where they were not timed."""
    for event in ledger.events:
        if isinstance(event, StepsTimed) and event.device == device:
            if TrialSize(**event.size) != size:
                continue
            modes = {mode: ModeTimes(**of_mode) for mode, of_mode in event.times["modes"].items()}
            return StepTimes(event.times["eager_s"], modes, event.times["refused"])
    return None


def _time_on_worker(train: Train, schema: Schema, pixels: int, share: TrialShare) -> StepTimes:
    """Time steps on a card that no trial is on yet."""
    import ray  # noqa: PLC0415

    def measure() -> StepTimes:
        from trainers.preflight.step_times import measure_step_times  # noqa: PLC0415

        sizes = dict(zip(schema.names, schema.sizes, strict=True))
        return measure_step_times(train, sizes, size=pixels, device=share.device)

    # a whole card, also where trials share one: nothing else may compute on it meanwhile
    task = ray.remote(num_cpus=share.cpu, num_gpus=1)(measure)
    times: StepTimes = ray.get(task.options(name="step times").remote())
    return times
