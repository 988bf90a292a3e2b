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

from xsalt import distributed
from xsalt.batch import Batch, Layout

MEASURE_S = 0.1
"""Seconds that measuring the ceiling takes, after the warm-up."""

COUNTED = ("tokens", "grid", "sequences", "updates", "most_tokens", "flops", "waited", "paused")
"""What a window counts beside figures, traffic and time."""


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
    """What happened since the last logged line: figures of the criterions and augmenters, speed, use of the machine.

    Each rank counts what it does; ``values`` adds up over ranks.
    """

    def __init__(self, flops: Callable[[Layout], float], device: torch.device, precision: str) -> None:
        """``flops``: those of a training step on a batch of this layout."""
        self.flops_of, self.device, self.precision = flops, device, precision
        self.restart()

    def restart(self) -> None:
        self.figures: dict[str, list[float | Tensor]] = {}
        self.tokens = self.grid = self.sequences = self.updates = 0
        self.most_tokens = 0.0
        self.traffic = distributed.traffic.copy()
        self.flops = self.waited = self.paused = 0.0
        self.began = time.monotonic()

    def as_dict(self) -> list[dict[str, Any]]:
        """What happened so far on each rank, for a checkpoint: the line that a resumed run logs next is of the whole
        window. All ranks must call it."""
        own = {name: getattr(self, name) for name in COUNTED}
        figures = {name: [float(total), float(count)] for name, (total, count) in self.figures.items()}
        sent = dict(distributed.traffic - self.traffic)
        seconds = time.monotonic() - self.began
        return distributed.from_all({**own, "figures": figures, "sent": sent, "seconds": seconds})

    def restore(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """The reverse of ``as_dict``. With another number of ranks, rank 0 takes all of it upon itself."""
        if len(stored) == distributed.world_size():
            stored = [stored[distributed.rank()]]
        elif not distributed.is_first():
            stored = ()
        for part in stored:
            for name in COUNTED:
                setattr(self, name, getattr(self, name) + part[name])
            self.add_figures({name: (total, count) for name, (total, count) in part["figures"].items()})
            self.traffic.subtract(part["sent"])
            self.began = min(self.began, time.monotonic() - part["seconds"])

    def add_figures(self, more: Mapping[str, tuple[float | Tensor, float | Tensor]]) -> None:
        """Adds (sum, count) figures by name; tensors are not read before ``values``."""
        for name, (value, count) in more.items():
            entry = self.figures.setdefault(name, [0.0, 0.0])
            entry[0] = entry[0] + value  # not in place: it may be somebody's tensor
            entry[1] = entry[1] + count

    def add_update(
        self, batches: Sequence[Batch], examples: int, waited: float, tokens: Sequence[float] | None = None
    ) -> None:
        """Counts an update that is done.

        Args:
            batches: of this rank.
            examples: of all ranks.
            waited: seconds until the batches were there.
            tokens: of each rank, if there are several.
        """
        self.updates += 1
        self.most_tokens += max(tokens) if tokens else sum(batch.layout.tokens for batch in batches)
        self.tokens += sum(batch.layout.tokens for batch in batches)
        self.flops += sum(self.flops_of(batch.layout) for batch in batches)
        self.grid += sum(batch.layout.size * batch.layout.longest for batch in batches)
        self.sequences += examples
        self.waited += waited

    def values(self) -> dict[str, float]:
        """Means of the figures, then ``tokens_per_s``, ``pairs_per_s``, ``mfu``, shares of padding and of waiting.

        Of several ranks also ``balance`` (tokens of the rank that has most of them, over the mean) and what a rank
        gives to collectives in an update: ``traffic_mb``, and ``word_traffic_mb`` for the word table (10**6 bytes).
        All ranks must call it.
        """
        seconds = max(1e-9, time.monotonic() - self.began - self.paused)
        own = {name: (float(total), float(count)) for name, (total, count) in self.figures.items()}
        ceiling = matrix_product_flops(self.device, self.precision)
        ranks = distributed.from_all((own, {"tokens": (self.tokens, self.grid), "flops": (self.flops, ceiling)}))
        figures, work = _summed([own for own, _ in ranks]), _summed([work for _, work in ranks])
        (tokens, grid), (flops, ceiling) = work["tokens"], work["flops"]
        values = {name: value / count for name, (value, count) in figures.items() if count}
        values |= {
            "padding": 1 - tokens / max(1, grid),
            "tokens_per_s": tokens / seconds,
            "pairs_per_s": self.sequences / seconds,
            "mfu": flops / seconds / ceiling,
            "data_wait": self.waited / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        if len(ranks) > 1:
            sent = distributed.traffic - self.traffic
            values["balance"] = self.most_tokens * len(ranks) / tokens
            values["traffic_mb"] = sent.total() / 1e6 / self.updates
            values["word_traffic_mb"] = sent["rows"] / 1e6 / self.updates
        return values


def _summed(ranks: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """(sum, count) figures by name, added up."""
    total: dict[str, tuple[float, float]] = {}
    for figures in ranks:
        for name, (value, count) in figures.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = before[0] + value, before[1] + count
    return total
