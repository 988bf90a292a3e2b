"""How the process keeps its memory small."""

from __future__ import annotations

import ctypes
import os
import platform

PRIMITIVES = 64
"""Compiled matrix products that oneDNN keeps; a step of a BERT-like encoder needs some twenty."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def limit_primitive_cache() -> None:
    """Has oneDNN keep fewer compiled matrix products, unless ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says how many.

    There is one for each shape, and packed batches have many numbers of tokens: the 1,024 that oneDNN keeps by default
    take some 0.2 GB more. Call it before the first matrix product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def keep_freed_memory() -> None:
    """Has the allocator keep what is freed, where it is glibc's, until ``give_back_freed_memory`` is called.

    A step frees all of its activations and the next one needs as much again. By default they go back to the system in
    between, and its fresh pages cost the main thread some 3 % of the time of a step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def give_back_freed_memory() -> None:
    """Returns what is free in the allocator to the system, where the allocator is glibc's.

    Batches differ in size, so over thousands of updates free blocks of ever other sizes pile up.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
