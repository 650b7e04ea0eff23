"""How a device computes: the precision of a training, and memory that is kept between steps."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from trainers.model import build
from trainers.settings.model import Model

_BF16_CAPABILITY = 8  # Ampere and later
_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 2**30


def autocast(
    device: str, precision: str, *, keeps_casts: bool = True
) -> AbstractContextManager[Any]:
    """Return the context in which a model computes in a precision; its weights stay float32.

    Args:
        device: where torch computes.
        precision: fp32, bf16 or fp16.
        keeps_casts: a weight that is used twice is cast once.
    """
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    device_type = device.split(":", maxsplit=1)[0]
    return torch.autocast(
        device_type=device_type,
        dtype=dtype,
        enabled=precision != "fp32",
        cache_enabled=keeps_casts,
    )


def set_up_kernels(device: str) -> None:
    """State how cuDNN works, so that no default of a torch version decides it.

    Convolutions may use TF32. Kernels are chosen by a rule and not by a stopwatch, because a
    training that goes on after a kill would else get other ones.
    """
    if device.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = False


def scoring_precision(device: str, precision: str) -> str:
    """Return the precision in which a model is scored and predicts: its training's on a GPU.

    A CPU scores in fp32 whatever the training used, so that its answers do not depend on the kind
    of CPU.
    """
    return precision if device.startswith("cuda") else "fp32"


def choose_precision(network: nn.Module, device: str) -> str:
    """Return the precision that trains a network fastest on a device: fp32 or bf16.

    It is a rule and no measurement: a stopwatch gives another answer on a busy machine (bf16 was
    0.7 to 1.5 times as fast as fp32 for tf_efficientnet_lite0, depending on the neighbours).

    A GPU takes bf16 from compute capability 8.0. A CPU takes bf16 if it has matrix units (AMX) and
    the network has no depthwise convolution. Measured on a Xeon with AMX, speed of bf16 over fp32:
    resnet18 1.9, resnet50 1.9, densenet121 1.7, swin_tiny 3.5, vit_tiny 1.1; with depthwise
    convolutions mobilenetv3 0.6, efficientnet_b0 0.6, tf_efficientnet_lite0 0.7 (the exception is
    convnext_tiny, 1.4). Without AMX bf16 is slower for all of them, 0.4 to 0.9.

    Args:
        network: of modules; its weights do not matter, they may be on the meta device.
        device: where torch computes.
    """
    if device != "cpu":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= _BF16_CAPABILITY else "fp32"
    return "bf16" if _has_amx() and not _has_depthwise_convolution(network) else "fp32"


def choose_precision_for(
    model: Model, label_sizes: Mapping[str, int], *, size: int, device: str
) -> str:
    """Return what `choose_precision` says of the model of a spec; it is built without memory."""
    with torch.device("meta"):
        network = build(model, label_sizes, size=size, pretrained=False)
    return choose_precision(network, device)


def _has_amx() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):
        return False  # an older torch
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def _has_depthwise_convolution(network: nn.Module) -> bool:
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in convolutions)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what a step frees for the next one; return True if it does.

    By default large tensors are mapped anew in each step and given back, and the kernel zeroes
    every page of them on first touch, which costs a good part of a step
    (`make bench ONLY=kept_memory`). The process then holds its peak.
    """
    library = ctypes.util.find_library("c")
    if library is None:
        return False
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None)
    if mallopt is None:
        return False  # another C library
    is_mapped_rarely = bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    return is_mapped_rarely and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES - 1))
