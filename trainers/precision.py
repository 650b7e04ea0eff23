"""Which number format a model trains fastest in, measured and not guessed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from trainers.config import Model
from trainers.model import build

_REPEATS = 3


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a model computes in a precision; its weights stay float32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(
        device_type=device.split(":", maxsplit=1)[0], dtype=dtype, enabled=precision != "fp32"
    )


def probe(
    model: Model,
    label_sizes: Mapping[str, int],
    *,
    size: int,
    batch_size: int,
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, float]:
    """Return seconds per training step for each precision, medians of three after a first one.

    bf16 is three times as fast as fp32 for some models on a CPU, and slower for others.

    Args:
        model: the spec's section; its weights do not matter and are not loaded.
        label_sizes: label name -> number of classes.
        size: of the photos, in pixels.
        batch_size: photos per step; at most 32 are used.
        device: where torch computes.
        threads: of torch on the CPU.
    """
    torch.set_num_threads(threads)
    net = (
        build(model, label_sizes, size=size, pretrained=False)
        .to(device)
        .to(memory_format=torch.channels_last)
    )
    x = (
        torch.randint(0, 255, (min(batch_size, 32), size, size, 3), dtype=torch.uint8)
        .permute(0, 3, 1, 2)
        .to(device)
    )
    took: dict[str, list[float]] = {"fp32": [], "bf16": []}
    if device != "cpu":
        took["fp16"] = []
    for _ in range(_REPEATS + 1):
        for precision, seconds in took.items():  # interleaved, so that a slow moment hits all
            began = time.perf_counter()
            with autocast(device, precision):
                loss = torch.stack([logits.float().sum() for logits in net(x).values()]).sum()
            loss.backward()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return {precision: statistics.median(seconds[1:]) for precision, seconds in took.items()}
