"""How the process gets and gives back memory."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Lets glibc keep large freed blocks for the next step rather than return them to the system.

    By default every tensor above some megabytes is mapped anew and its pages are zeroed one by one as they are touched;
    a training step allocates the same sizes again and again. Returns whether the allocator is glibc's and took it.
    The price is memory: what is freed stays resident until it is used again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST), (_M_TRIM_THRESHOLD, LARGEST), (_M_TOP_PAD, 64 << 20))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
