"""Whether a backbone takes photos of a size: tried once, before anything is prepared.

Convolutional networks take any size from 32 pixels on, so that they need no try. As a program it
reads [{"backbone": name, "size": n}, ...] from standard input and prints a list of problems.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from trainers.preflight.subprocess_runner import run_apart

if TYPE_CHECKING:
    from torch import nn

_TIMEOUT_S = 300.0
_ANY_SIZE = re.compile(
    r"(test_|tf_)?(efficientnet|efficientnetv2|resnet|mobilenetv[1-4]|convnext|regnet)\w*"
)
_SMALLEST = 32  # five halvings leave one pixel


class Job(TypedDict):
    """A backbone of timm, the side of its photos in pixels, and a file of weights for it."""

    backbone: str
    size: int
    weights: NotRequired[str]


def needs_try(job: Job) -> bool:
    """Return False for networks that take any size."""
    return job["size"] < _SMALLEST or _ANY_SIZE.match(job["backbone"]) is None


def backbone_problems(jobs: Sequence[Job]) -> list[str | None]:
    """Return per job why the backbone cannot be trained on that size, None where it can."""
    return run_apart("trainers.preflight.backbones", jobs, timeout_s=_TIMEOUT_S)


def try_backbone(backbone: str, size: int, weights: str | None = None) -> str | None:
    """Build a backbone, show it two photos, and compare it with the tensors of a file."""
    import torch  # noqa: PLC0415 - seconds

    from trainers.model import build  # noqa: PLC0415
    from trainers.settings.model import Model  # noqa: PLC0415

    model = Model(backbone=backbone, pretrained=False)
    # on the device meta nothing is computed; what fails there is tried with numbers
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                classifier = build(model, {"label": 2}, size=size)
                classifier(torch.zeros(2, 3, size, size, dtype=torch.uint8))
        except Exception as error:  # noqa: BLE001 - whatever the libraries raise
            first_line = str(error).strip().partition("\n")[0]
            continue
        return None if weights is None else _misfit(classifier.backbone, Path(weights))
    own_size = _own_size(backbone)
    do = f"its own size is {own_size}" if own_size else "it needs larger photos"
    return (
        f"{backbone} cannot be used on photos of {size} x {size} pixels: {do}; "
        f"change resize in prep.steps, or the backbone ({first_line})"
    )


def _misfit(backbone: nn.Module, weights: Path) -> str | None:
    from trainers.finetuning.own_weights import misfit, shapes_of  # noqa: PLC0415

    try:
        problem = misfit(backbone, shapes_of(weights))
    except ValueError as error:
        return str(error)
    return problem and f"{weights}: {problem}"


def _own_size(backbone: str) -> int | None:
    from data_prep.timm_without_wandb import timm  # noqa: PLC0415

    config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else None


def main() -> None:
    """Try the backbones on standard input."""
    jobs: list[Job] = json.load(sys.stdin)
    problems = [try_backbone(job["backbone"], job["size"], job.get("weights")) for job in jobs]
    sys.stdout.write("\n" + json.dumps(problems))


if __name__ == "__main__":
    main()
