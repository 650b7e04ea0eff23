"""What a run requires before it starts: code that is allowed, cards and cores, weights."""

from __future__ import annotations

import os

from orchestrator.base.errors import SpecError, UserError
from orchestrator.spec.models import Experiment


def require_code(experiment: Experiment, *, is_allowed: bool) -> None:
    """Refuse code of the user that was not allowed, or that is not what the spec pins.

    Raises:
        SpecError: the command lacks `--allow-code`, or a file is not there.
    """
    if experiment.lost_code:
        names = ", ".join(sorted(set(experiment.lost_code)))
        raise SpecError(
            f"{names}: the version that the spec names by its sha256 was required beside the spec, "
            "found none; remove sha256 from the spec to take the file as it is"
        )
    if experiment.code and not is_allowed:
        names = ", ".join(sorted(experiment.code))
        raise SpecError(
            f"{names} is code that runs with your rights: read it, then give --allow-code"
        )


def refuse_missing_gpus(experiment: Experiment) -> None:
    """Refuse GPUs and cores that a local run cannot have; Tune would wait for them for ever."""
    from orchestrator.cluster.connection import local_gpus  # noqa: PLC0415

    resources = experiment.spec.resources
    wanted = max(resources.per_trial.least_gpu, resources.per_prep_worker.gpu)
    if wanted > local_gpus():
        raise SpecError(
            f"resources: gpu: {wanted:g} was asked for, this machine has {local_gpus()} GPU(s); "
            "set gpu: 0 or auto, or attach to a cluster with --address"
        )
    cpus = os.cpu_count() or 1
    wanted_cpus = max(resources.per_trial.cpu, resources.per_prep_worker.cpu)
    if wanted_cpus > cpus:
        raise SpecError(
            f"resources: cpu: {wanted_cpus:g} was asked for, this machine has {cpus} cores; "
            f"set cpu: {cpus} or less"
        )


def require_weights(experiment: Experiment, *, allow_download: bool) -> None:
    """Find and verify every weight file before Ray starts; workers download nothing."""
    from data_prep.weights.cache import fetch_all, require  # noqa: PLC0415
    from data_prep.weights.registry import WeightsError, known  # noqa: PLC0415

    wanted = set(experiment.backbones())
    for arm in experiment.arms.values():
        wanted |= {step.model for step in arm.prep.steps if step.name == "remove_background"}
        wanted |= {step.detector for step in arm.prep.steps if step.name == "crop_face"}
    try:
        for name in sorted(wanted & set(known())):
            if allow_download:
                fetch_all([name], allow_unpinned=True)
            else:
                require(name)
        for name in sorted(wanted - set(known())):
            from data_prep.weights import hub  # noqa: PLC0415 - imports torch and timm

            (hub.fetch if allow_download else hub.require)(name)
    except WeightsError as error:
        raise UserError(str(error)) from None
