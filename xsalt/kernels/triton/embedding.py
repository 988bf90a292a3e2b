"""The embedding with mixup for CUDA. ``xsalt/kernels/embedding.py`` says what is computed.

Gradients of rows that several tokens share are added atomically, so their last bits can differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from xsalt.kernels.philox import SiteKey
from xsalt.kernels.triton.philox import RUNTIME, arguments, block_of, dimensions, keep_hidden

PROGRAMS = 1024
"""Programs of the backward pass. Each takes neighbouring tokens, and adds up what all of them share by itself."""


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    t, d, inside, D, table, row, other, r, r_row, position, position_row, type_, type_row,
    BLOCK: tl.constexpr, MIX: tl.constexpr, R_ROW: tl.constexpr, R_ONE: tl.constexpr,
):  # fmt: skip
    """x, the share of the source row, and whether the token is mixed."""
    own = tl.load(row + t)
    x = tl.load(table + own * D + d, mask=inside, other=0.0).to(tl.float32)
    share = tl.full((8, BLOCK // 8), 1.0, tl.float32)
    if MIX:
        mate = tl.load(other + t)
        if mate != own:
            line = t
            if R_ROW:
                line = tl.load(r_row + t)
            if R_ONE:
                share = share * tl.load(r + line)
            else:
                share = tl.load(r + line * D + d, mask=inside, other=1.0)
            y = tl.load(table + mate * D + d, mask=inside, other=0.0).to(tl.float32)
            gap = x - y
            x = tl.where(share < 0.5, y + share * gap, x - gap * (1.0 - share))
    x += tl.load(position + tl.load(position_row + t) * D + d, mask=inside, other=0.0)
    x += tl.load(type_ + tl.load(type_row + t) * D + d, mask=inside, other=0.0)
    return x, share


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    table, row, other, r, r_row, position, position_row, type_, type_row, gamma, beta, eps,
    token, k0, k1, threshold, scale, out, mean, rstd, D,
    BLOCK: tl.constexpr, MIX: tl.constexpr, R_ROW: tl.constexpr, R_ONE: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = dimensions(BLOCK)
    inside = d < D
    x, _ = _gather(
        t,
        d,
        inside,
        D,
        table,
        row,
        other,
        r,
        r_row,
        position,
        position_row,
        type_,
        type_row,
        BLOCK,
        MIX,
        R_ROW,
        R_ONE,
    )
    m = tl.sum(tl.where(inside, x, 0.0)) / D
    centred = tl.where(inside, x - m, 0.0)
    s = 1.0 / tl.sqrt(tl.sum(centred * centred) / D + eps)
    y = centred * s * tl.load(gamma + d, mask=inside, other=0.0) + tl.load(beta + d, mask=inside, other=0.0)
    if DROP:
        y = tl.where(keep_hidden(token + 3 * t, k0, k1, threshold, BLOCK), y * scale, 0.0)
    tl.store(out + t * D + d, y, mask=inside)
    tl.store(mean + t, m)
    tl.store(rstd + t, s)


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    table, row, other, r, r_row, position, position_row, type_, type_row, gamma,
    token, k0, k1, threshold, scale, grad, mean, rstd, slot, other_slot,
    grad_table, grad_position, grad_type, partial, rows, chunk, D,
    BLOCK: tl.constexpr, MIX: tl.constexpr, R_ROW: tl.constexpr, R_ONE: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = program.to(tl.int64) * chunk
    count = tl.minimum(chunk, rows - program * chunk)
    d = dimensions(BLOCK)
    inside = d < D
    weight = tl.load(gamma + d, mask=inside, other=0.0)
    of_gamma = tl.zeros((8, BLOCK // 8), tl.float32)
    of_beta = tl.zeros((8, BLOCK // 8), tl.float32)
    of_type = tl.zeros((8, BLOCK // 8), tl.float32)
    kind = tl.load(type_row + first)
    for i in range(count):
        t = first + i
        x, share = _gather(
            t,
            d,
            inside,
            D,
            table,
            row,
            other,
            r,
            r_row,
            position,
            position_row,
            type_,
            type_row,
            BLOCK,
            MIX,
            R_ROW,
            R_ONE,
        )
        s = tl.load(rstd + t)
        normed = tl.where(inside, (x - tl.load(mean + t)) * s, 0.0)
        g = tl.load(grad + t * D + d, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            g = tl.where(keep_hidden(token + 3 * t, k0, k1, threshold, BLOCK), g * scale, 0.0)
        of_gamma += g * normed
        of_beta += g
        scaled = g * weight
        dx = s * (scaled - tl.sum(scaled) / D - normed * (tl.sum(scaled * normed) / D))
        tl.atomic_add(grad_position + tl.load(position_row + t) * D + d, dx, mask=inside, sem="relaxed")
        tl.atomic_add(grad_table + tl.load(slot + t) * D + d, share * dx, mask=inside, sem="relaxed")
        if MIX:  # noqa: SIM102 (known at compile time, the other is not)
            if tl.load(other + t) != tl.load(row + t):
                tl.atomic_add(
                    grad_table + tl.load(other_slot + t) * D + d, (1.0 - share) * dx, mask=inside, sem="relaxed"
                )
        now = tl.load(type_row + t)
        if now != kind:  # neighbours mostly have one type: an addition for each run of them
            tl.atomic_add(grad_type + kind * D + d, of_type, mask=inside, sem="relaxed")
        of_type = tl.where(now != kind, dx, of_type + dx)
        kind = now
    tl.atomic_add(grad_type + kind * D + d, of_type, mask=inside, sem="relaxed")
    tl.store(partial + program * 2 * D + d, of_gamma, mask=inside)
    tl.store(partial + program * 2 * D + D + d, of_beta, mask=inside)


def _common(inputs: Sequence[Tensor | None], key: SiteKey | None) -> tuple[list[Any], tuple[Any, ...], dict[str, Any]]:
    """Pointers, the dropout's arguments, and what the programs are compiled for; null pointers become the table."""
    table, _, other, r, r_row = inputs[:5]
    assert table is not None
    flags = {
        "BLOCK": block_of(table.shape[1]),
        "MIX": other is not None,
        "R_ROW": r_row is not None,
        "R_ONE": r is not None and r.shape[1] == 1,
        "DROP": key is not None,
    }
    return [table if p is None else p for p in inputs], arguments(key, table), flags


def embed_forward(
    inputs: Sequence[Tensor | None], eps: float, key: SiteKey | None, out_TD: Tensor, mean_T: Tensor, rstd_T: Tensor
) -> None:
    """Fills the outputs; ``inputs`` as ``xsalt::embed`` takes them, from the table to beta, all contiguous."""
    if len(out_TD):
        pointers, site, flags = _common(inputs, key)
        _forward[(len(out_TD),)](*pointers, eps, *site, out_TD, mean_T, rstd_T, out_TD.shape[1], **flags)


def embed_backward(
    inputs: Sequence[Tensor | None],
    key: SiteKey | None,
    mean_T: Tensor,
    rstd_T: Tensor,
    grad_TD: Tensor,
    slot_T: Tensor,
    other_slot_T: Tensor | None,
    out: Sequence[Tensor],
) -> None:
    """Adds the gradients of table, position, type, gamma and beta to ``out``."""
    T, D = grad_TD.shape
    if T == 0:
        return
    pointers, site, flags = _common(inputs, key)
    slots = (slot_T, slot_T if other_slot_T is None else other_slot_T)
    chunk = triton.cdiv(T, PROGRAMS)
    programs = triton.cdiv(T, chunk)
    partial_P2D = mean_T.new_empty(programs, 2, D)
    _backward[(programs,)](
        *pointers[:-1], *site, grad_TD, mean_T, rstd_T, *slots, *out[:3], partial_P2D, T, chunk, D, **flags
    )
    of_gamma, of_beta = partial_P2D.sum(0)
    out[3].add_(of_gamma)
    out[4].add_(of_beta)
