"""The only file that imports ``torch.distributed``: ranks, and what they tell each other. Without a group there is one.

``torchrun`` starts the ranks and names them in the environment (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``); ``start``
joins them, gloo on the CPU and nccl on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within, this process is one rank of the group that ``torchrun`` started; alone it is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0; known before the group is joined."""
    return dist.get_rank() if _joined() else int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of its machine: the CUDA device that it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Ranks; known before the group is joined."""
    return dist.get_world_size() if _joined() else int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is rank 0, which alone logs and writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Returns when every rank has come here."""
    if _joined():
        dist.barrier()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The values added up over all ranks, by one all-reduce in float64."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks, by one all-reduce in float64."""
    return _reduced(values, dist.ReduceOp.MAX)


def from_first(value: Value) -> Value:
    """Rank 0's value on every rank (a small picklable one: it goes over the ranks' own sockets)."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Value) -> list[Value]:
    """Every rank's value, in the order of the ranks, on every rank (small picklable ones)."""
    if not _joined():
        return [value]
    found: list[Value] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def _reduced(values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not _joined():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    result: list[float] = tensor.tolist()
    return result
