"""A stand-in for the copies to a card: they take time, and what is looked at too early is wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from trainers.overlap.device_copies import HostReading, pack


class LateCopies:
    """Copies on a thread of its own; a tensor holds zeros until its copy is waited for or done.

    What tests claim over it: the loop never reads before it waits, keeps its order, and ends with the bits of a training
    without copies. The loop sees copies through `Copies` alone, and one that is not waited for is wrong here too, so this
    holds for a card. Not claimed: that CUDA's streams and events do what `CudaCopies` asks of them, and how fast.
    """

    def __init__(self, seconds=0.002):
        self.seconds = seconds
        self.pool = ThreadPoolExecutor(1)
        self.n_sent = 0
        self.n_buffers = 0
        self.senders = set()
        self.events = []  # ("read", n) when the n-th value sets out, ("wait", n) when it is needed

    def send(self, tensors):
        self.n_sent += 1
        self.senders.add(threading.current_thread().name)
        copies = [torch.zeros_like(tensor) for tensor in tensors]

        def copy():
            time.sleep(self.seconds)
            for target, tensor in zip(copies, tensors, strict=True):
                target.copy_(tensor)

        return _Arrival(copies, self.pool.submit(copy))

    def read(self, value):
        number = sum(kind == "read" for kind, _ in self.events)
        self.events.append(("read", number))
        return _Reading(value.detach().clone(), number, self.events)

    def keep(self, tensors):
        packed = pack(tensors)
        return lambda: packed.unpack(packed.flats)

    def host_buffer(self, shape):
        self.n_buffers += 1
        return torch.full(tuple(shape), 255, dtype=torch.uint8)


class _Arrival:
    def __init__(self, copies, done):
        self.copies, self.done = copies, done

    def tensors(self):
        self.done.result()
        return self.copies


class _Reading(HostReading):
    def __init__(self, value, number, events):
        super().__init__(value)
        self.number, self.events = number, events

    def array(self):
        self.events.append(("wait", self.number))
        return super().array()


def our_threads():
    """Return the names of the threads that a training has started and not ended."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("feeder", "checkpoint"))]
