"""Seconds of an all-reduce by size, as one rank under torchrun; rank 0 prints them as JSON."""

from __future__ import annotations

import json
import time

import torch
import torch.distributed as dist

SIZES = (8, 64 * 1024, 1 << 20, 8 << 20, 32 << 20, 96 << 20)
"""Bytes."""


def seconds(size: int) -> float:
    """Median of some rounds, the slowest rank's."""
    tensor = torch.zeros(size // 4)
    rounds = 30 if size <= 1 << 20 else 7
    taken = []
    for _ in range(rounds + 2):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        taken.append(time.perf_counter() - began)
    slowest = torch.tensor(taken[2:], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest.median())


def main() -> None:
    dist.init_process_group("gloo")
    found = [seconds(size) for size in SIZES]
    if dist.get_rank() == 0:
        print(json.dumps({"bytes": SIZES, "seconds": found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
