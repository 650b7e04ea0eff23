"""Process isolation: what one trial leaves behind must not reach the next.

The random generators are seeded before each trial. All other state is only compared: a process that
has changed is given up, and the next trial gets a new one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from orchestrator.search.process_memory import private_bytes

MAX_GROWTH_BYTES = (
    512 * 2**20
)  # of a process over all its trials, memory that malloc keeps included
MAX_CARD_GROWTH_BYTES = 64 * 2**20  # libraries' workspaces come and go
_PROJECT_PACKAGES = ("orchestrator", "trainers", "data_prep", "__main__")
_WATCHED_MODULES = (
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
Names = dict[str, Any]
"""Name -> what identifies its value."""


class ProcessState:
    """The state of this process before its first trial."""

    def __init__(
        self,
        body_globals: Names | None = None,
        *,
        trims: bool = False,
        card_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Record the state.

        Args:
            body_globals: the global names of the trial's function; they may belong to no module.
            trims: give freed memory back after each trial, not only after a large growth.
            card_bytes: measures what this process keeps on its GPU; None on a CPU.
        """
        self.body_globals = body_globals or {}
        self.trims = trims
        self.settings = _process_settings()
        self.modules = self._module_names()
        self.private_bytes = private_bytes()
        self.card_bytes = card_bytes
        self.kept_on_card = card_bytes() if card_bytes else 0
        # the first trial on a GPU loads kernels, which stay for the next ones
        self._is_loading = card_bytes is not None

    def differences(self) -> list[str]:
        """Return the names of all that has changed; empty if the next trial may use the process."""
        gc.collect()
        changed = _changed_names(self.settings, _process_settings(), are_fixed=True)
        for module, names in self._module_names().items():
            if module in self.modules:  # a new module is no change: it was imported
                changes = _changed_names(self.modules[module], names)
                changed += [f"{module}.{name}" for name in changes]
        growth_bytes = self._growth_bytes()
        if growth_bytes > MAX_GROWTH_BYTES:
            changed.append(f"memory grown by {growth_bytes / 1e6:.0f} MB")
        if self.card_bytes is not None:
            card_growth_bytes = self.card_bytes() - self.kept_on_card
            if card_growth_bytes > MAX_CARD_GROWTH_BYTES:
                changed.append(f"the GPU's memory grown by {card_growth_bytes / 1e6:.0f} MB")
        return changed

    def _growth_bytes(self) -> int:
        if self._is_loading:
            self._is_loading = False
            self.private_bytes = max(self.private_bytes, private_bytes())
        growth_bytes = private_bytes() - self.private_bytes
        if self.trims or growth_bytes > MAX_GROWTH_BYTES:
            # not always: the next trial would have to fault in each page that is given back
            _give_back_memory()
            growth_bytes = private_bytes() - self.private_bytes
        return growth_bytes

    def _module_names(self) -> dict[str, Names]:
        """Return the names of each module that a trial might write to."""
        modules = {"globals": _identify(self.body_globals)}
        for name, module in list(sys.modules.items()):
            if not isinstance(module, ModuleType):
                continue
            if name in _WATCHED_MODULES:
                modules[name] = _identify(vars(module), only_public=True)
            elif name.split(".")[0] in _PROJECT_PACKAGES:
                modules[name] = _identify(vars(module))
        return modules


def _changed_names(before: Names, now: Names, *, are_fixed: bool = False) -> list[str]:
    """Return the names whose value differs; with `are_fixed`, only those that were there before."""
    changed = [name for name in before if name in now and now[name] != before[name]]
    if not are_fixed:
        changed += before.keys() ^ now.keys()
    return changed


def _identify(names: Names, *, only_public: bool = False) -> Names:
    """Return name -> identity of its value, without submodules, which appear when imported.

    Private names of foreign modules are left out, because they hold caches.
    """
    identities = {}
    for name, value in list(names.items()):
        if not isinstance(value, ModuleType) and not (only_public and name.startswith("_")):
            identities[name] = _identity(value)
    return identities


def _identity(value: Any) -> Any:
    """Return what differs for another object, and for a container with other content."""
    if isinstance(value, list | dict | set):
        content = hash(repr(value)) if len(value) < 100 else 0
        return id(value), len(value), content
    return id(value)


def _process_settings() -> Names:
    """Return the settings that a process has once."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    settings: Names = {
        "environment": dict(os.environ),
        "working directory": Path.cwd(),
        "module path": list(sys.path),
        "threads": threading.active_count(),
        "trace hook": (sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook),
        "signal handlers": [signal.getsignal(number) for number in handled],
        "recursion limit": sys.getrecursionlimit(),
    }
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):  # not, or not yet, imported
        return settings
    hooks = {}
    for name, value in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and value:
            hooks[name] = len(value)
    return settings | {
        "torch hooks": hooks,
        "torch threads": torch.get_num_threads(),
        "torch default type": torch.get_default_dtype(),
        "torch gradients": torch.is_grad_enabled(),
        "torch determinism": torch.are_deterministic_algorithms_enabled(),
        "torch precision": torch.get_float32_matmul_precision(),
        "torch cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def seed_everything(seed: int, threads: int) -> None:
    """Set each global random generator, and torch's number of threads."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one, because a trial may use it
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(threads)


def warm_up(device: str) -> None:
    """Start what a device needs once per process, so that no trial seems to leave it behind."""
    torch = sys.modules.get("torch")
    if torch is not None and not device.startswith("cpu"):
        x = torch.ones(8, 8, device=device)
        (x @ x).sum().item()


def memory_on_card() -> int:
    """Give back what no tensor needs on this process's GPU; return the bytes that tensors keep."""
    torch = sys.modules["torch"]
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


def _give_back_memory() -> None:
    """Give freed memory back to the system, so that only memory in use is counted."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
