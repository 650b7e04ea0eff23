"""Copies between the host and a device that need not wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_N_IMAGE_DIMS = 4


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

    def keep(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Keep the values of device tensors, which may change as soon as this returns.

        Returns:
            A function that copies them to the host; any thread may call it, once.
        """
        ...

    def host_buffer(self, shape: Sequence[int]) -> Tensor:
        """Return uint8 memory of the host that `send` copies from directly."""
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
                pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
                copies.append(pinned.to(self._device, non_blocking=True))
            arrived: Any = torch.cuda.Event()
            arrived.record(self._stream)
        return _CudaArrival(copies, arrived, self._device)

    def read(self, value: Tensor) -> Reading:
        """Begin to copy a value to page-locked memory, after what the device has to do so far."""
        host = value.detach().to("cpu", non_blocking=True)
        arrived: Any = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self._device))
        return _CudaReading(host, arrived)

    def keep(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Keep values in one tensor per type on the device, a few launches for any number of them."""
        packed = pack(tensors)
        kept: Any = torch.cuda.Event()
        kept.record(torch.cuda.current_stream(self._device))

        def copy_to_host() -> list[Tensor]:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(kept)
                # waits in this thread, without page-locked memory as large as a model
                return packed.unpack([flat.cpu() for flat in packed.flats])

        return copy_to_host

    def host_buffer(self, shape: Sequence[int]) -> Tensor:
        """Return page-locked memory."""
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=True)


@dataclass(frozen=True)
class Packed:
    """Tensors one after another in one flat tensor per type."""

    flats: list[Tensor]
    places: list[_Place]

    def unpack(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors out of copies of the flat ones, each in memory of its own."""
        tensors = []
        for place in self.places:
            flat = flats[place.flat][place.start : place.start + place.shape.numel()]
            # a copy: safetensors refuses tensors that share memory
            tensors.append(flat.clone().as_strided(place.shape, place.stride))
        return tensors


@dataclass(frozen=True)
class _Place:
    flat: int
    start: int
    shape: torch.Size
    stride: tuple[int, ...]


def pack(tensors: Sequence[Tensor]) -> Packed:
    """Copy tensors one after another into one flat tensor per type, in the order of their memory."""
    parts: dict[torch.dtype, list[Tensor]] = {}
    starts: dict[torch.dtype, int] = {}
    places = []
    for tensor in tensors:
        dense = tensor.detach()
        if not _is_dense(dense):
            dense = dense.contiguous()
        in_order = dense.as_strided((dense.numel(),), (1,))
        start = starts.get(dense.dtype, 0)
        parts.setdefault(dense.dtype, []).append(in_order)
        number = list(parts).index(dense.dtype)
        places.append(_Place(number, start, dense.shape, dense.stride()))
        starts[dense.dtype] = start + dense.numel()
    return Packed([torch.cat(of_type) for of_type in parts.values()], places)


def _is_dense(tensor: Tensor) -> bool:
    """Return True if the memory of a tensor has no gap: contiguous, or channels last."""
    is_image = tensor.dim() == _N_IMAGE_DIMS
    return tensor.is_contiguous() or (
        is_image and tensor.is_contiguous(memory_format=torch.channels_last)
    )


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
        tree: dicts, lists and tuples of tensors and plain values. All of it may change as soon as
            this returns.

    Returns:
        A function that waits and returns the tree with its tensors on the host; called once.
    """
    tensors: list[Tensor] = []
    outline = _outlined(tree, tensors)
    if copies is None:
        clones = [tensor.detach().clone() for tensor in tensors]
        return lambda: _filled(outline, clones)
    fetch = copies.keep(tensors)
    return lambda: _filled(outline, fetch())


@dataclass(frozen=True)
class _Slot:
    """Where a tensor was in a tree."""

    number: int


def _outlined(tree: Any, tensors: list[Tensor]) -> Any:
    """Return a copy of a tree with slots for its tensors, which are appended to `tensors`."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _Slot(len(tensors) - 1)
    if isinstance(tree, Mapping):
        return {name: _outlined(value, tensors) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_outlined(value, tensors) for value in tree)
    return tree


def _filled(outline: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(outline, _Slot):
        return tensors[outline.number]
    if isinstance(outline, dict):
        return {name: _filled(value, tensors) for name, value in outline.items()}
    if isinstance(outline, list | tuple):
        return type(outline)(_filled(value, tensors) for value in outline)
    return outline
