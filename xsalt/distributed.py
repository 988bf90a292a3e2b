"""The only file that imports ``torch.distributed``: ranks, and sums over them. Without a group there is one rank."""

from __future__ import annotations

import torch
import torch.distributed as dist


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _started() else 0


def world_size() -> int:
    return dist.get_world_size() if _started() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """The values added up over all ranks, by one all-reduce in float64."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    result: list[float] = tensor.tolist()
    return result
