"""Steps of a training that are compiled, or recorded and replayed as CUDA graphs.

A small batch of a deep network is launched more slowly than a GPU computes it. A recording launches its
kernels at once and changes no bit; compiled kernels are fewer and take minutes to make.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.compute_settings import autocast
from trainers.preflight.step_times import DEFAULT, GRAPHS, RECORDED, StepTimes, fastest_mode

_STEPS_THAT_REPAY = 100  # a recording takes as long as some ten steps


@dataclass(frozen=True)
class Compiled:
    """A network with compiled or recorded steps, and the batches that they are for."""

    net: nn.Module
    is_graphed: bool = False

    def takes(self, n_photos: int, *, micro: int, n_batch: int) -> bool:
        """Return True if so many photos of a batch go through it.

        Another size would be compiled anew. Gradients of a graph lie where its next replay writes,
        so they cannot be added up over the parts of a batch.
        """
        return n_photos == micro and not (self.is_graphed and n_photos < n_batch)


class _Graphed(nn.Module):
    """Says where a step begins, so that torch reuses the memory of the step before."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return self.net(x)


def compiled_net(network: nn.Module, mode: str) -> nn.Module:
    """Return a network that torch compiles on first use; it shares the parameters of `network`.

    Compiled code is kept in torch's own cache, where other trainings on the node find it.
    """
    net: Any = torch.compile(network, dynamic=False, mode=mode)
    return _Graphed(net) if mode == GRAPHS else net


class _Recorded(nn.Module):
    """A network without its hooks and its mode, as torch records it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def recorded_net(network: nn.Module, x: Tensor, device: str, precision: str) -> nn.Module:
    """Record what a network does to a batch as CUDA graphs: forward, and in train mode backward.

    Each kernel is launched by the driver alone from then on, on the memory of the recording. The
    parameters are those of `network`, which computes as before.

    Args:
        network: on the device, in the mode to be recorded. Its buffers keep their values.
        x: a batch on the device; only such batches are replayed. In eval mode smaller ones too.
        device: where torch computes.
        precision: of the training.

    Raises:
        RuntimeError: an operation of the network cannot be recorded.
        torch.OutOfMemoryError: the recording does not fit beside the network.
    """
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    # made here, they take gradients on this stream and not on the one that records
    is_trained = network.training
    sinks = []
    if is_trained:
        sinks = [_gradient_sink(p) for p in network.parameters() if p.requires_grad]
    with autocast(device, precision, keeps_casts=False), torch.set_grad_enabled(is_trained):
        recorded: Any = torch.cuda.make_graphed_callables(
            _Recorded(network).train(is_trained), (x,), allow_unused_input=True
        )
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(buffers[name])  # the passes before a recording move BatchNorm's statistics
    torch.cuda.empty_cache()
    return _Replayed(network, recorded, x, sinks)


def _gradient_sink(parameter: nn.Parameter) -> Any:
    """Return the node that adds gradients to a parameter; it is kept only while something refers to it."""
    view: Any = parameter.view_as(parameter)
    return view.grad_fn.next_functions[0][0]


class _Replayed(nn.Module):
    """Sends batches of one type, shape and layout through a recording, and others the plain way."""

    def __init__(
        self, network: nn.Module, recorded: nn.Module, x: Tensor, sinks: list[Any]
    ) -> None:
        super().__init__()
        self.network = network
        self.recorded = recorded
        self.is_trained = network.training
        self.kind = _kind(x)
        self.n = len(x)
        self.sinks = sinks

    def forward(self, x: Tensor) -> Any:
        if len(x) < self.n and not self.is_trained:
            return self._filled_up(x)
        return self.recorded(x) if _kind(x) == self.kind else self.network(x)

    def _filled_up(self, x: Tensor) -> Any:
        """Repeat the last photo up to a whole batch; each is answered for itself."""
        dtype, shape, stride = self.kind
        if (x.dtype, x.shape[1:]) != (dtype, shape[1:]):
            return self.network(x)
        filled = torch.empty_strided(shape, stride, dtype=dtype, device=x.device)
        filled[: len(x)].copy_(x)
        filled[len(x) :].copy_(x[-1:])
        logits = self.recorded(filled)
        return {name: values[: len(x)] for name, values in logits.items()}


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.stride()


def mode_of(
    wanted: str,
    device: str,
    n_steps: int,
    times: StepTimes | None = None,
    *,
    is_split: bool = False,
) -> str | None:
    """Return the mode of a training's steps, None for plain ones.

    On a GPU steps are recorded whatever is wanted: that changes no bit of the results.

    Args:
        wanted: whether torch compiles: `on`, `off`, or `auto`: where it repays.
        device: where torch computes.
        n_steps: of the training.
        times: of such steps on this kind of device, for `auto`; None: they are not known.
        is_split: its batches are split, and the gradients of graphs cannot be added up.
    """
    if wanted == "on":
        return DEFAULT
    if not device.startswith("cuda"):
        return None
    mode = None
    if wanted == "auto" and times is not None:
        mode = fastest_mode(n_steps, times)
    elif n_steps >= _STEPS_THAT_REPAY:
        mode = RECORDED
    return None if is_split and mode != DEFAULT else mode


def compiled(
    network: nn.Module, mode: str | None, sample: Callable[[], Tensor], device: str, precision: str
) -> Compiled | None:
    """Return the network through which whole batches go, None where that is the plain one.

    Args:
        network: on the device, in train mode.
        mode: of its steps.
        sample: returns a whole batch on the device.
        device: where torch computes.
        precision: of the training.
    """
    if mode is None:
        return None
    if mode != RECORDED:
        return Compiled(compiled_net(network, mode), is_graphed=mode == GRAPHS)
    recorded = recorded_or_plain(network, sample, device, precision)
    return None if recorded is network else Compiled(recorded, is_graphed=True)


def recorded_or_plain(
    network: nn.Module, sample: Callable[[], Tensor], device: str, precision: str
) -> nn.Module:
    """Return a network's recording, or itself, with a line on stderr, where that is not possible."""
    try:
        return recorded_net(network, sample(), device, precision)
    except Exception as error:  # noqa: BLE001 - whatever torch raises: the training does without
        torch.cuda.empty_cache()
        first_line = str(error).partition("\n")[0]
        sys.stderr.write(f"not recorded as a CUDA graph: {first_line}\n")
        return network
