"""Code of a user, tried on small inputs in a process of its own before anything is trained.

As a program it reads jobs from standard input and prints a list of problems (null for none).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from trainers.preflight.subprocess_runner import run_apart

_TIMEOUT_S = 300.0
_CRASHED = "one of these files ends the process that tries it; let its code raise an error instead"
_N_FEATURES = 16
_N_CLASSES = 3


class Job(TypedDict):
    """A part, and what it is used for."""

    part: dict[str, Any]  # as the spec has it
    file: str  # its place
    kind: str  # policy | backbone | head | loss
    size: int  # of a photo, in pixels


def own_part_problems(jobs: Sequence[Job]) -> list[str | None]:
    """Return per part why it cannot be used, None where it can."""
    module = "trainers.preflight.own_parts"
    return run_apart(module, jobs, timeout_s=_TIMEOUT_S, crashed=_CRASHED)


def try_part(job: Job) -> str | None:
    """Return why a part cannot be used, None if it can. Its code must be allowed here."""
    from trainers.own_parts import naming_lines  # noqa: PLC0415
    from trainers.settings.loss import OwnLoss  # noqa: PLC0415
    from trainers.settings.own_parts import OwnPart  # noqa: PLC0415

    part = (OwnLoss if job["kind"] == "loss" else OwnPart).model_validate(job["part"])
    tries = {
        "policy": _try_policy,
        "backbone": _try_backbone,
        "head": _try_head,
        "loss": _try_loss,
    }
    try:
        with naming_lines():
            return tries[job["kind"]](part, job["size"])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises
        return str(error) or type(error).__name__


def _try_policy(part: Any, size: int) -> str | None:
    import numpy as np  # noqa: PLC0415

    from trainers.photos.augmentation import build  # noqa: PLC0415

    change = build(part)
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    if change is None:
        return None
    seeds = np.arange(4, dtype=np.uint64)
    first = change(np.stack([photo] * 4), seeds)
    second = change(np.stack([photo] * 4), seeds)
    if not np.array_equal(first, second):
        return (
            f"{part.use}: the same photo and generator were required to give the same result, "
            "they gave two; draw from the generator alone"
        )
    return None


def _try_backbone(part: Any, size: int) -> str | None:
    import torch  # noqa: PLC0415

    from trainers.model import build  # noqa: PLC0415
    from trainers.settings.model import Model  # noqa: PLC0415

    model = build(Model(backbone=part), {"label": 2}, size=size, pretrained=False).eval()
    photos = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    shape = tuple(model.features(photos).shape)
    required = (2, int(getattr(model.backbone, "num_features", 0)))
    if shape != required:
        return f"{part.use}: features of shape {required} were required, found {shape}"
    return None


def _try_head(part: Any, size: int) -> str | None:
    import torch  # noqa: PLC0415

    from trainers.heads import build_head  # noqa: PLC0415

    del size
    head = build_head(part, _N_FEATURES, {"label": _N_CLASSES}).eval()
    shape = tuple(head(torch.zeros(2, _N_FEATURES))["label"].shape)
    if shape != (2, _N_CLASSES):
        return f"{part.use}: logits of shape {(2, _N_CLASSES)} were required, found {shape}"
    return None


def _try_loss(part: Any, size: int) -> str | None:
    import torch  # noqa: PLC0415

    from trainers.own_parts import call  # noqa: PLC0415

    del size
    logits = torch.linspace(-1, 1, 4 * _N_CLASSES).view(4, _N_CLASSES).requires_grad_()
    loss = call(part, logits, torch.arange(4) % _N_CLASSES)
    shape = tuple(loss.shape)
    if shape != (4,):
        return f"{part.use}: one loss per sample, shape (4,), was required, found {shape}"
    loss.mean().backward()
    if logits.grad is None or not torch.isfinite(logits.grad).all():
        return f"{part.use}: a finite gradient of the logits was required, found {logits.grad}"
    return None


def main() -> None:
    """Try the parts on standard input."""
    from trainers.own_parts import allow  # noqa: PLC0415

    jobs: list[Job] = json.load(sys.stdin)
    for job in jobs:
        allow(Path(job["file"]))
    problems = [try_part(job) for job in jobs]
    sys.stdout.write("\n" + json.dumps(problems))


if __name__ == "__main__":
    main()
