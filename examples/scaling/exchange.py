"""Seconds that adding up gradients over ranks of this machine takes, by size; rank 0 prints them as JSON.

One rank under torchrun. Counted are DDP's hook during the backward pass, and what comes after it.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xsalt import parallel
from xsalt.distributed import joined, max_over_ranks, rank
from xsalt.parallel import OneMachine, in_parallel

SIZES = (64 * 1024, 1 << 20, 8 << 20, 32 << 20, 96 << 20)
"""Bytes of gradients."""
WIDTH = 256
LAYERS = 16


class Sum(nn.Module):
    """A step whose gradients are ones: nothing to compute."""

    def __init__(self, size: int) -> None:
        super().__init__()
        rows = size // 4 // WIDTH // LAYERS
        self.weights = nn.ParameterList(torch.zeros(rows, WIDTH) for _ in range(LAYERS))

    def forward(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([weight.sum() for weight in self.weights]).sum(), {}


hook_s: list[float] = []
leave_bucket = parallel._leave_bucket


def timed(*args: Any) -> Any:
    """DDP's hook, which leaves gradients where others find them."""
    began = time.perf_counter()
    done = leave_bucket(*args)
    hook_s.append(time.perf_counter() - began)
    return done


def seconds(step: Any) -> float:
    """Median of some rounds, the slowest rank's. Raises ``SystemExit`` if ranks can't share memory here."""
    if not isinstance(step, OneMachine):
        raise SystemExit("ranks can't share memory on this machine")
    taken: list[float] = []
    for _ in range(12):
        loss, _ = step(True)
        hook_s.clear()
        loss.backward()
        dist.barrier()
        began = time.perf_counter()
        step.finish()
        step.settle()
        taken.append(time.perf_counter() - began + sum(hook_s))
        step.step.zero_grad(set_to_none=True)
    return statistics.median(max_over_ranks(taken[2:]))


def main() -> None:
    parallel._leave_bucket = timed
    with joined():
        found: dict[str, list[float]] = {"none": [], "bf16": []}
        for size in SIZES:
            for compress, dtype in (("none", None), ("bf16", torch.bfloat16)):
                found[compress].append(seconds(in_parallel(Sum(size), None, dtype, share=True)))
        if rank() == 0:
            print(json.dumps({"bytes": SIZES, "seconds": found}))


if __name__ == "__main__":
    main()
