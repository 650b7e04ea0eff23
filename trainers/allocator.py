"""Memory between steps: kept, not given back."""

from __future__ import annotations

import ctypes
import ctypes.util

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to keep what a step frees for the next one, and say whether it did.

    By default large tensors are mapped anew each step and given back, and the kernel zeroes every page of them on first
    touch, which costs a good part of a step (`make bench ONLY=kept_memory`). The process then holds its peak.
    """
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    if mallopt is None:
        return False  # another C library
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES - 1)
    )
