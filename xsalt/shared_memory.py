"""Memory that ranks of one machine share, where sockets would copy each byte through the kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from xsalt.distributed import from_all, from_first, max_over_ranks, rank, world_size

ALIGNED = 64
"""Bytes at a multiple of which tensors begin: a cache line."""

Like = tuple[Sequence[int], torch.dtype]
"""A tensor's shape and type."""


def shared_tensors(wanted: Sequence[Like]) -> list[Tensor] | None:
    """Tensors of zeros that all ranks read and write, for which all must ask alike.

    They are there as long as one of the processes is, and leave nothing when the last one is killed. None if the ranks
    are not all on one machine, or if it lends no memory in this way.
    """
    starts, size = [], 0
    for shape, dtype in wanted:
        starts.append(size)
        size += _nbytes(shape, dtype)
        size += -size % ALIGNED
    machines = from_all(_machine())
    if len(set(machines)) > 1 or machines[0] is None:
        return None
    file = _made(size) if rank() == 0 else -1
    owner, number = from_first((os.getpid(), file))
    memory_S = None
    with suppress(RuntimeError):
        if number >= 0:
            memory_S = torch.from_file(f"/proc/{owner}/fd/{number}", shared=True, size=size, dtype=torch.uint8)
    (missing,) = max_over_ranks([float(memory_S is None)])
    if file >= 0:
        os.close(file)  # what is mapped stays
    if missing or memory_S is None:
        return None
    return [
        memory_S[start : start + _nbytes(shape, dtype)].view(dtype).view(*shape)
        for start, (shape, dtype) in zip(starts, wanted, strict=True)
    ]


def own_rows(rows: int) -> slice:
    """Those of so many rows that are this rank's work."""
    ranks, own = world_size(), rank()
    return slice(rows * own // ranks, rows * (own + 1) // ranks)


def _nbytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _machine() -> tuple[str, str] | None:
    """What processes have in common that see each other's files in ``/proc``; None where there is no such thing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _made(size: int) -> int:
    """A file without a name, in memory, of ``size`` bytes that are there; -1 if the system has none."""
    try:
        file = os.memfd_create("xsalt")
    except (AttributeError, OSError):
        return -1
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        os.close(file)
        return -1
    return file
