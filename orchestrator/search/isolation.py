"""Whether a process is as it was before a trial: what one trial leaves behind must not reach the next.

The state of random generators is set for every trial. Everything else is only compared: a process that differs is
given up, and the next trial gets a new one. That is simpler than putting things back, and misses nothing it looks at.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from orchestrator.search.memory import private_bytes

GROWTH_BYTES = (
    512 * 2**20
)  # of one process over its trials, what malloc keeps of it for the next one included
_OWN = ("orchestrator", "trainers", "data_prep", "__main__")
_WATCHED = (
    "builtins",
    "os",
    "random",
    "numpy",
    "numpy.random",
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "timm",
)


class Slate:
    """The state of this process, taken before its first trial."""

    def __init__(self, body_globals: dict[str, Any] | None = None, *, trims: bool = False) -> None:
        """Remember everything.

        Args:
            body_globals: what the trial's function calls its module, which may be no real one.
            trims: freed memory is given back after every trial; otherwise only where it has become too much.
        """
        self.body_globals = body_globals or {}
        self.trims = trims
        self.facts = _facts()
        self.names = self._names()
        self.private_bytes = private_bytes(os.getpid())

    def differences(self) -> list[str]:
        """Say what is not as it was; empty where the next trial may come."""
        gc.collect()
        found = [name for name, value in _facts().items() if self.facts.get(name, value) != value]
        for place, names in self._names().items():
            before = self.names.get(place)
            if before is not None:
                found += [
                    f"{place}.{name}" for name, value in names.items() if before.get(name) != value
                ]
                found += [f"{place}.{name}" for name in before if name not in names]
        grown = self._grown()
        return [*found, f"memory grown by {grown / 1e6:.0f} MB"] if grown > GROWTH_BYTES else found

    def _grown(self) -> int:
        """Return how much memory the process has more than before, in bytes."""
        grown = private_bytes(os.getpid()) - self.private_bytes
        if self.trims or grown > GROWTH_BYTES:
            _trim()  # not always: the next trial would have to fault in every page that is given back
            grown = private_bytes(os.getpid()) - self.private_bytes
        return grown

    def _names(self) -> dict[str, dict[str, Any]]:
        """Return, per module that a trial might write to, what stands under each name."""
        places = {
            place: vars(module)
            for place, module in list(sys.modules.items())
            if isinstance(module, ModuleType) and (place in _WATCHED or place.split(".")[0] in _OWN)
        }
        places["globals"] = self.body_globals
        return {
            place: {
                name: _mark(value)
                for name, value in list(names.items())
                # a submodule appears beside the names when it is first imported, and lazy things hide their state
                if not isinstance(value, ModuleType)
                and not (place in _WATCHED and name.startswith("_"))
            }
            for place, names in places.items()
        }


def seed_everything(seed: int, threads: int) -> None:
    """Set every global random generator and torch's threads."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one, because a trial may use it
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(threads)


def make_ready(device: str) -> None:
    """Begin what a device needs once per process, so that it is not taken for what a trial has left behind."""
    if not device.startswith("cpu") and (torch := sys.modules.get("torch")) is not None:
        x = torch.ones(8, 8, device=device)
        (x @ x).sum().item()


def _facts() -> dict[str, Any]:
    """Return what a process has one of."""
    facts: dict[str, Any] = {
        "environment": dict(os.environ),
        "working directory": Path.cwd(),
        "module path": list(sys.path),
        "threads": threading.active_count(),
        "trace hook": (sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook),
        "signal handlers": [
            signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        ],
        "recursion limit": sys.getrecursionlimit(),
    }
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_num_threads"):
        hooks = vars(torch.nn.modules.module)
        facts |= {
            "torch hooks": {
                name: len(value)
                for name, value in hooks.items()
                if name.startswith("_global_") and value
            },
            "torch threads": torch.get_num_threads(),
            "torch default type": torch.get_default_dtype(),
            "torch gradients": torch.is_grad_enabled(),
            "torch determinism": torch.are_deterministic_algorithms_enabled(),
            "torch precision": torch.get_float32_matmul_precision(),
            "torch cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        }
    return facts


def _mark(value: Any) -> Any:
    """Return what tells a value from another one, and a container from itself with other content."""
    if isinstance(value, list | dict | set):
        return id(value), len(value), hash(repr(value)) if len(value) < 100 else 0
    return id(value)


def _trim() -> None:
    """Give freed memory back to the system, so that what is left is what was kept."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
