"""How the process keeps its memory small."""

from __future__ import annotations

import ctypes
import os
import platform

PRIMITIVES = 256
"""Compiled matrix products that oneDNN keeps; a step of a BERT-like encoder needs some twenty."""


def limit_primitive_cache() -> None:
    """Has oneDNN keep fewer compiled matrix products, unless ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says how many.

    There is one for each shape, and packed batches have many numbers of tokens: the 1,024 that oneDNN keeps by default
    take some 0.2 GB more. Call it before the first matrix product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def give_back_freed_memory() -> None:
    """Returns what is free in the allocator to the system, where the allocator is glibc's.

    Batches differ in size, so over thousands of updates free blocks of ever other sizes pile up.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
