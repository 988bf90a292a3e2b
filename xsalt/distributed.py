"""The only file that imports ``torch.distributed``: ranks, and what they tell each other. Without a group there is one.

``torchrun`` starts the ranks and names them in the environment (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``); ``start``
joins them, gloo on the CPU and nccl on CUDA.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")

PATIENCE = timedelta(days=30)
"""How long ranks wait where one may work alone for hours. A rank that died ends the wait at once: its sockets close."""
_patient: dict[Any, Any] = {}
"""The group -> its twin on gloo with that patience."""


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


def wait_long() -> None:
    """``wait_for_all`` where some rank may take hours; collectives on nccl give up after ten minutes."""
    if not _joined():
        return
    everyone = dist.group.WORLD
    if everyone not in _patient:
        _patient.clear()
        _patient[everyone] = dist.new_group(backend="gloo", timeout=PATIENCE)
    dist.barrier(_patient[everyone])


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """All ranks do what is inside, rank 0 before the others, which then find in a cache what it left there."""
    if not is_first():
        wait_long()
    yield
    if is_first():
        wait_long()


def my_share(weights: Sequence[int]) -> list[int]:
    """Numbers of the pieces of work that are this rank's, in order: each is one rank's, with weights as even as can be.

    The heaviest goes first, each to the rank that has least (Graham 1969). Without a group all pieces are ours.
    """
    if not _joined():
        return list(range(len(weights)))
    loads = [(0, number) for number in range(world_size())]
    mine = []
    for piece in sorted(range(len(weights)), key=lambda piece: -weights[piece]):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + weights[piece], number))
        if number == rank():
            mine.append(piece)
    return sorted(mine)


def is_first_to_fail() -> bool:
    """Whether no other rank has called this. The first to fail says why; the others then only lost their peer."""
    if not _joined():
        return True
    try:
        calls: int = dist.distributed_c10d._get_default_store().add("xsalt/failures", 1)
    except RuntimeError:  # the store's process is gone: it failed before us
        return False
    return calls == 1


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error says that another rank is gone, and nothing of this one."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


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
