"""The memory that a process takes."""

from __future__ import annotations

import psutil


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use, 0 if there is no such process."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def private_bytes() -> int:
    """Return this process's memory without the libraries and files that it maps."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)
