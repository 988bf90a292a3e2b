"""The fused embedding with mixup, forward and backward, against eager PyTorch and the time that its bytes need."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.kernels.embedding import embed
from xsalt.memory import keep_freed_memory

B, S, V = 32, 64, 250_037


def _seconds(call: Callable[[], object], rounds: int) -> float:
    call()
    taken = []
    for _ in range(max(5, rounds)):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _case(D: int, active: int, rounds: int, copy_gb_per_s: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(np.full(B, S))
    T = layout.tokens
    table = nn.Parameter(torch.randn(active, D, generator=generator))
    position, types = nn.Parameter(torch.randn(512, D)), nn.Parameter(torch.randn(2, D))
    norm = nn.LayerNorm(D)
    row_T, other_T = (torch.randint(active, (T,), generator=generator) for _ in range(2))
    r, type_T = torch.rand(B, D, generator=generator), torch.zeros(T, dtype=torch.int64)
    grad_TD = torch.randn(T, D, generator=generator)
    leaves = [table, position, types, norm.weight, norm.bias]

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    def eager() -> Tensor:
        """Two look-ups, as one writes it."""
        clear()
        share = r[layout.sequence_T]
        mixed = share * F.embedding(row_T, table) + (1 - share) * F.embedding(other_T, table)
        x = norm(mixed + F.embedding(layout.position_T, position) + F.embedding(type_T, types))
        x.backward(grad_TD)
        return x

    def fused() -> Tensor:
        clear()
        places = (position, layout.position_T, types, type_T, norm.weight, norm.bias, norm.eps)
        mix = {"other_T": other_T, "r": r, "r_row_T": layout.sequence_T}
        x = embed(table, row_T, *places, None, **mix, sparse=True)
        x.backward(grad_TD)
        return x

    gradients = []
    outputs = []
    for call in (eager, fused):
        outputs.append(call().detach().clone())
        gradients.append(
            [g.to_dense() if g.is_sparse else g.clone() for g in (leaf.grad for leaf in leaves) if g is not None]
        )
    assert torch.allclose(*outputs, atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(*gradients, strict=True))
    touched = len(torch.unique(torch.cat([row_T, other_T])))
    # forward: two rows, position and type read, output written; backward: the same rows read again, the gradient of the
    # output read, the gradients of the rows touched written
    bytes_moved = 4 * D * ((2 + 1) * T + T + (2 + 1) * T + T + touched)
    times = {"eager": _seconds(eager, rounds), "fused": _seconds(fused, 4 * rounds)}
    needed = bytes_moved / (copy_gb_per_s * 1e9)
    print(
        f"  D={D}, {active} rows: {1e3 * times['fused']:.2f} ms, eager {1e3 * times['eager']:.1f} ms", file=sys.stderr
    )
    return {
        "ms": {name: 1e3 * seconds for name, seconds in times.items()},
        "speed_against_eager": times["eager"] / times["fused"],
        "ms_that_the_bytes_need": 1e3 * needed,
        "time_against_the_bytes": times["fused"] / needed,
    }


def measure(rounds: int, copy_gb_per_s: float) -> dict[str, Any]:
    """32 sequences of 64 tokens, both with the whole table and with 60,000 active rows; dropout off."""
    keep_freed_memory()  # as in training: for both contestants
    return {
        f"D={D}, {name}": _case(D, active, rounds, copy_gb_per_s)
        for D in (384, 768)
        for name, active in (("whole table", V), ("60,000 active rows", 60_000))
    }
