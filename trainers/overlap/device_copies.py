"""Copies between the host and a device that need not wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Arrival(Protocol):
    """Tensors on their way to the device."""

    def tensors(self) -> list[Tensor]:
        """Return the copies; what the device does with them from now on comes after the copy."""
        ...


class Reading(Protocol):
    """A value on its way to the host."""

    def array(self) -> NDArray[Any]:
        """Wait for the value and return it."""
        ...


class Copies(Protocol):
    """How tensors come to a device and values come back."""

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Begin to copy host tensors to the device; they must not be written to afterwards."""
        ...

    def read(self, value: Tensor) -> Reading:
        """Begin to copy a value of the device to the host."""
        ...


class CudaCopies:
    """Copies over page-locked memory on a stream of their own.

    torch keeps page-locked blocks for the next copy and knows when a copy out of one has ended, so
    two batches on their way have two buffers.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream: Any = torch.cuda.Stream(self._device)

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Begin to copy host tensors to the device."""
        with torch.cuda.stream(self._stream):
            copies = []
            for tensor in tensors:
                copies.append(tensor.pin_memory().to(self._device, non_blocking=True))
            arrived: Any = torch.cuda.Event()
            arrived.record(self._stream)
        return _CudaArrival(copies, arrived, self._device)

    def read(self, value: Tensor) -> Reading:
        """Begin to copy a value to page-locked memory, after what the device has to do so far."""
        host = value.detach().to("cpu", non_blocking=True)
        arrived: Any = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self._device))
        return _CudaReading(host, arrived)


class _CudaArrival:
    def __init__(self, copies: list[Tensor], arrived: Any, device: torch.device) -> None:
        self._copies = copies
        self._arrived = arrived
        self._device = device

    def tensors(self) -> list[Tensor]:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._arrived)
        for copy in self._copies:
            copy.record_stream(stream)  # their memory belongs to the other stream
        return self._copies


class _CudaReading:
    def __init__(self, host: Tensor, arrived: Any) -> None:
        self._host = host
        self._arrived = arrived

    def array(self) -> NDArray[Any]:
        self._arrived.synchronize()
        array: NDArray[Any] = self._host.numpy()
        return array


class HostReading:
    """A value that is on the host already."""

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach()

    def array(self) -> NDArray[Any]:
        """Return the value."""
        array: NDArray[Any] = np.asarray(self._value)
        return array


def read(copies: Copies | None, value: Tensor) -> Reading:
    """Begin to read a value; without copies it is on the host."""
    return HostReading(value) if copies is None else copies.read(value)


def read_all(copies: Copies | None, tree: Any) -> Callable[[], Any]:
    """Begin to read every tensor of nested dicts and lists.

    Args:
        copies: of the device; None: the tensors are on the host, and are copied there.
        tree: dicts, lists and tuples of tensors and plain values. The tensors may change as soon as
            this returns.

    Returns:
        A function that waits and returns the tree with its tensors on the host.
    """
    if isinstance(tree, Tensor):
        if copies is None:
            copied = tree.detach().clone()
            return lambda: copied
        reading = copies.read(tree)
        return lambda: torch.as_tensor(reading.array())
    if isinstance(tree, Mapping):
        by_name = {name: read_all(copies, value) for name, value in tree.items()}
        return lambda: {name: wait() for name, wait in by_name.items()}
    if isinstance(tree, list | tuple):
        kind = type(tree)
        values = [read_all(copies, value) for value in tree]
        return lambda: kind(wait() for wait in values)
    return lambda: tree
