"""Whether compiled steps repay the time of compiling them: measured once, before any training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainers.config import Train

if TYPE_CHECKING:
    from torch import Tensor, nn

RECORDED = "recorded"
"""The kernels of a plain step, recorded once as a CUDA graph: nothing is compiled."""
DEFAULT = "default"
GRAPHS = "reduce-overhead"
"""Modes of torch.compile; the second one replays a step as one CUDA graph, where torch can."""

_N_STEPS = 20
_N_LAST = 5  # steps whose loss is compared
_WORSE = 1.25  # times the loss of eager steps: another order of sums stays far below
_LR = 1e-3  # so that the loss of one batch falls within the steps


@dataclass(frozen=True)
class ModeTimes:
    """Seconds of one mode."""

    compile_s: float  # until its first step has ended
    step_s: float  # each later one


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step, plain and in each mode."""

    eager_s: float
    modes: Mapping[str, ModeTimes] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # mode -> why it cannot be used


def fastest_mode(n_steps: int, times: StepTimes) -> str | None:
    """Return the mode in which a training ends first, None where that is by plain steps.

    Each training is charged the whole time of compiling, although a later one on the same node
    finds the code in torch's cache.
    """
    fastest = None
    least_s = n_steps * times.eager_s
    for mode, of_mode in times.modes.items():
        seconds = of_mode.compile_s + n_steps * of_mode.step_s
        if seconds < least_s:
            fastest = mode
            least_s = seconds
    return fastest


def measure_step_times(
    config: Train, label_sizes: Mapping[str, int], *, size: int, device: str
) -> StepTimes:
    """Train on one batch of noise: by plain steps, and in each mode.

    A mode counts only if its loss falls as that of eager steps does. A graph that is replayed with
    old gradients, or that torch cannot record, is so found here and not in a training.

    Args:
        config: the spec's section, its precision resolved.
        label_sizes: label name -> number of classes.
        size: of the photos, in pixels.
        device: where torch computes; nothing else should compute there meanwhile.
    """
    eager = _train(config, label_sizes, size, device, mode=None)
    modes = {}
    refused = {}
    for mode in (RECORDED, GRAPHS, DEFAULT):
        if mode == DEFAULT and GRAPHS in modes:
            break  # it compiles the same kernels again, and launches them one by one
        if mode != DEFAULT and config.photos_at_once < config.batch_size:
            refused[mode] = "the gradients of a split batch cannot be added up"
            continue
        try:
            compiled = _train(config, label_sizes, size, device, mode=mode)
        except Exception as error:  # noqa: BLE001 - whatever torch raises: trainings do without
            refused[mode] = f"{type(error).__name__}: {error}"[:300]
            continue
        if compiled.loss <= _WORSE * eager.loss:
            modes[mode] = ModeTimes(compiled.first_s, compiled.step_s)
        else:
            refused[mode] = f"its loss fell to {compiled.loss:.3g}, without it to {eager.loss:.3g}"
    return StepTimes(eager.step_s, modes, refused)


@dataclass(frozen=True)
class _Trained:
    first_s: float
    step_s: float  # mean of the later half
    loss: float  # mean of the last steps


def _train(
    config: Train, label_sizes: Mapping[str, int], size: int, device: str, *, mode: str | None
) -> _Trained:
    import torch  # noqa: PLC0415 - seconds

    from trainers.finetuning.optim import make_optimizer  # noqa: PLC0415
    from trainers.model import build  # noqa: PLC0415
    from trainers.overlap.compiled_steps import compiled_net, recorded_net  # noqa: PLC0415

    torch.manual_seed(0)
    model = build(config.model, label_sizes, size=size, pretrained=False)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(config.optimizer, model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = _LR
    shape = (config.photos_at_once, size, size, 3)
    photos = torch.randint(0, 256, shape, dtype=torch.uint8)
    x = photos.to(device).permute(0, 3, 1, 2)
    began = time.perf_counter()
    net: nn.Module = model
    if mode == RECORDED:
        net = recorded_net(model, x, device, config.precision)
    elif mode is not None:
        net = compiled_net(model, mode)
    record_s = time.perf_counter() - began

    def train_steps(n: int) -> tuple[float, list[float]]:
        began = time.perf_counter()
        losses = []
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(net, x, device, config.precision)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values = torch.stack(losses).tolist()  # waits for the device, once
        return time.perf_counter() - began, values

    half = _N_STEPS // 2
    first_s, _ = train_steps(1)
    train_steps(half - 1)  # a graph is recorded at its second or third step
    later_s, losses = train_steps(half)
    return _Trained(record_s + first_s, later_s / half, statistics.fmean(losses[-_N_LAST:]))


def _loss(net: nn.Module, x: Tensor, device: str, precision: str) -> Tensor:
    """Return the cross entropy, summed over branches; each photo has its place as its class."""
    import torch  # noqa: PLC0415

    from trainers.compute_settings import autocast  # noqa: PLC0415

    with autocast(device, precision):
        logits = net(x)
    places = torch.arange(len(x), device=device)
    terms = [
        torch.nn.functional.cross_entropy(branch.float(), places % branch.shape[1])
        for branch in logits.values()
    ]
    return torch.stack(terms).sum()
