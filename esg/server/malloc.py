"""Lets a worker keep free memory for its next requests, instead of returning it to the system.

By default glibc returns free memory at the end of the heap above 128 KiB, and asks the system for
each block of 128 KiB or more. A worker that reads and frees large bodies may then spend a lot of
time on page faults, depending on the layout of its heap. See mallopt(3).
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

_VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
)
"""Variables in which an operator may have chosen otherwise; see mallopt(3) and ld.so(8)."""

_LARGEST_MMAP_THRESHOLD = 32 << 20
"""The largest value that glibc accepts for M_MMAP_THRESHOLD."""


def keep_free_memory(size: int) -> None:
    """Let this process keep `size` bytes at the end of its heap; 0 changes nothing.

    It also changes nothing if libc isn't glibc, or if one of malloc's variables is set.
    """
    if not size or any(name in os.environ for name in _VARIABLES):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    size = min(size, 2**31 - 1)
    libc.mallopt(_M_TRIM_THRESHOLD, size)
    libc.mallopt(_M_MMAP_THRESHOLD, min(size // 2, _LARGEST_MMAP_THRESHOLD))
