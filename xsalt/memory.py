"""How the process gets and gives back memory."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Gives back what is free now; from then on lets glibc keep large freed blocks for the next step.

    By default every tensor above some megabytes is mapped anew and its pages are zeroed one by one as they are touched;
    a training step allocates the same sizes again and again. Call it when everything is prepared, so that what the
    preparation freed does not stay. Returns whether the allocator is glibc's and took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return False
    trim(ctypes.c_size_t(0))
    settings = ((_M_MMAP_THRESHOLD, LARGEST), (_M_TRIM_THRESHOLD, LARGEST), (_M_TOP_PAD, 64 << 20))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
