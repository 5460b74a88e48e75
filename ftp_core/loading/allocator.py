"""Keeps freed memory in the process, so that intermediate results do not go back to the system each time."""

from __future__ import annotations

import ctypes
import platform

# <malloc.h> of glibc. 32 MiB is the highest threshold that it accepts on 64 bits.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 2**31 - 1


def return_freed_memory() -> None:
    """Gives memory that is free by now back to the system, on Linux with glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory(largest_bytes: int = LARGEST_KEPT_BYTES) -> None:
    """Lets the allocator reuse large buffers, on Linux with glibc; elsewhere nothing happens.

    A block allocates the same few megabytes in every forward pass. By default glibc maps and unmaps them; the page
    faults take a quarter of a small model's prefill on a CPU, and how many there are depends on what the process did
    before, so that a latency profiled early would not be the one measured late.

    Args:
        largest_bytes: Size from which buffers go back to the system all the same, at most `LARGEST_KEPT_BYTES`. What is
            kept lies in pieces in the end; where buffers have many sizes, as in training, few of the largest fit into
            what others left.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, largest_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
