"""How fast training goes, and what share of the machine it uses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from xsalt.batch import Batch, Layout

MEASURE_S = 0.1
"""Seconds that measuring the ceiling takes, after the warm-up."""


@cache
def matrix_product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a matrix product of size 1024 (CUDA: 8192) on the device: the ceiling that MFU refers to."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    work, best, began = 2.0 * float(size) ** 3, 0.0, 0.0
    for call in range(1_000):
        if call == 3:  # after the warm-up
            began = time.perf_counter()
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, work / (time.perf_counter() - start))
        if began and time.perf_counter() - began > MEASURE_S:
            break
    return best


def peak_memory_gb(device: torch.device) -> float:
    """Most memory that the process has had so far, in GB (10**9 bytes): resident; on CUDA, allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class Window:
    """What happened since the last logged line: figures of the criterions and augmenters, speed, use of the machine."""

    def __init__(self, flops: Callable[[Layout], float], device: torch.device, precision: str) -> None:
        """``flops``: those of a training step on a batch of this layout."""
        self.flops_of, self.device, self.precision = flops, device, precision
        self.restart()

    def restart(self) -> None:
        self.figures: dict[str, list[float | Tensor]] = {}
        self.tokens = self.grid = self.sequences = 0
        self.flops = self.waited = self.paused = 0.0
        self.began = time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """What happened so far, for a checkpoint: the line that a resumed run logs next is of the whole window."""
        own = {name: getattr(self, name) for name in ("tokens", "grid", "sequences", "flops", "waited", "paused")}
        figures = {name: [float(total), float(count)] for name, (total, count) in self.figures.items()}
        return {**own, "figures": figures, "seconds": time.monotonic() - self.began}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """The reverse of ``as_dict``; nothing stored is an empty window."""
        for name, value in stored.items():
            if name == "seconds":
                self.began = time.monotonic() - value
            else:
                setattr(self, name, value)

    def add_figures(self, more: Mapping[str, tuple[float | Tensor, float | Tensor]]) -> None:
        """Adds (sum, count) figures by name; tensors are not read before ``values``."""
        for name, (value, count) in more.items():
            entry = self.figures.setdefault(name, [0.0, 0.0])
            entry[0] = entry[0] + value  # not in place: it may be somebody's tensor
            entry[1] = entry[1] + count

    def add_update(self, batches: Sequence[Batch], examples: int, waited: float) -> None:
        """``waited``: seconds until the batches were there."""
        self.tokens += sum(batch.layout.tokens for batch in batches)
        self.flops += sum(self.flops_of(batch.layout) for batch in batches)
        self.grid += sum(batch.layout.size * batch.layout.longest for batch in batches)
        self.sequences += examples
        self.waited += waited

    def values(self) -> dict[str, float]:
        """Means of the figures, then ``tokens_per_s``, ``pairs_per_s``, ``mfu``, shares of padding and of waiting."""
        seconds = max(1e-9, time.monotonic() - self.began - self.paused)
        figures = {name: (float(total), float(count)) for name, (total, count) in self.figures.items()}
        values = {name: total / count for name, (total, count) in figures.items() if count}
        return values | {
            "padding": 1 - self.tokens / max(1, self.grid),
            "tokens_per_s": self.tokens / seconds,
            "pairs_per_s": self.sequences / seconds,
            "mfu": self.flops / seconds / matrix_product_flops(self.device, self.precision),
            "data_wait": self.waited / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }
