"""The embedding with mixup for CUDA, one program a token; ``TRITON_INTERPRET=1`` runs it on CPU tensors for tests.

``xsalt/kernels/embedding.py`` says what is computed. Gradients of rows that several tokens share are added atomically,
so their last bits can differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from xsalt.kernels.philox import SiteKey


@triton.jit
def _keep(d, token_ptr, k0, k1, threshold):  # type: ignore[no-untyped-def]
    """1 where dimension d of the token stays, else 0: philox.keep_hidden."""
    c1 = tl.load(token_ptr).to(tl.uint32, bitcast=True)
    c2 = tl.load(token_ptr + 1).to(tl.uint32, bitcast=True)
    c3 = tl.load(token_ptr + 2).to(tl.uint32, bitcast=True)
    c0 = (d // 128 * 16 + d % 16).to(tl.uint32)
    zero = c0 * 0
    c1, c2, c3 = zero + c1, zero + c2, zero + c3
    k0, k1 = zero + k0.to(tl.uint32), zero + k1.to(tl.uint32)
    a, b = zero + 0xD2511F53, zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, a), c0 * a
        high1, low1 = tl.umulhi(c2, b), c2 * b
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    word = (d % 128) // 32
    number = tl.where(word == 0, c0, tl.where(word == 1, c1, tl.where(word == 2, c2, c3)))
    number = (number >> ((d % 32) // 16 * 16).to(tl.uint32)) & 0xFFFF
    return (number.to(tl.int32) >= threshold).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    t, d, inside, D, table, row, other, r, r_row, r_width, position, position_row, type_, type_row,
    MIX: tl.constexpr, R_ROW: tl.constexpr,
):  # fmt: skip
    """x, the share of the source row, and whether the token is mixed."""
    own = tl.load(row + t)
    x = tl.load(table + own * D + d, mask=inside, other=0.0).to(tl.float32)
    share = tl.full(d.shape, 1.0, tl.float32)
    if MIX:
        mate = tl.load(other + t)
        if mate != own:
            line = t
            if R_ROW:
                line = tl.load(r_row + t)
            column = tl.where(r_width == 1, 0, d)
            share = tl.load(r + line * r_width + column, mask=inside, other=1.0)
            y = tl.load(table + mate * D + d, mask=inside, other=0.0).to(tl.float32)
            gap = x - y
            x = tl.where(share < 0.5, y + share * gap, x - gap * (1.0 - share))
    x += tl.load(position + tl.load(position_row + t) * D + d, mask=inside, other=0.0)
    x += tl.load(type_ + tl.load(type_row + t) * D + d, mask=inside, other=0.0)
    return x, share


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    table, row, other, r, r_row, r_width, position, position_row, type_, type_row, gamma, beta, eps,
    token, k0, k1, threshold, scale, out, mean, rstd, D,
    BLOCK: tl.constexpr, MIX: tl.constexpr, R_ROW: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    x, _ = _gather(
        t, d, inside, D, table, row, other, r, r_row, r_width, position, position_row, type_, type_row, MIX, R_ROW
    )
    m = tl.sum(tl.where(inside, x, 0.0)) / D
    centred = tl.where(inside, x - m, 0.0)
    s = 1.0 / tl.sqrt(tl.sum(centred * centred) / D + eps)
    y = centred * s * tl.load(gamma + d, mask=inside, other=0.0) + tl.load(beta + d, mask=inside, other=0.0)
    if DROP:
        y *= _keep(d, token + 3 * t, k0, k1, threshold) * scale
    tl.store(out + t * D + d, y, mask=inside)
    tl.store(mean + t, m)
    tl.store(rstd + t, s)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    table, row, other, r, r_row, r_width, position, position_row, type_, type_row, gamma,
    token, k0, k1, threshold, scale, grad, mean, rstd, slot, other_slot,
    grad_table, grad_position, grad_type, grad_gamma, grad_beta, D,
    BLOCK: tl.constexpr, MIX: tl.constexpr, R_ROW: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    x, share = _gather(
        t, d, inside, D, table, row, other, r, r_row, r_width, position, position_row, type_, type_row, MIX, R_ROW
    )
    s = tl.load(rstd + t)
    normed = tl.where(inside, (x - tl.load(mean + t)) * s, 0.0)
    g = tl.load(grad + t * D + d, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        g *= _keep(d, token + 3 * t, k0, k1, threshold) * scale
    tl.atomic_add(grad_gamma + d, g * normed, mask=inside)
    tl.atomic_add(grad_beta + d, g, mask=inside)
    scaled = g * tl.load(gamma + d, mask=inside, other=0.0)
    dx = s * (scaled - tl.sum(scaled) / D - normed * (tl.sum(scaled * normed) / D))
    tl.atomic_add(grad_position + tl.load(position_row + t) * D + d, dx, mask=inside)
    tl.atomic_add(grad_type + tl.load(type_row + t) * D + d, dx, mask=inside)
    tl.atomic_add(grad_table + tl.load(slot + t) * D + d, share * dx, mask=inside)
    if MIX:  # noqa: SIM102 (known at compile time, the other is not)
        if tl.load(other + t) != tl.load(row + t):
            tl.atomic_add(grad_table + tl.load(other_slot + t) * D + d, (1.0 - share) * dx, mask=inside)


def _common(inputs: Sequence[Tensor | None], key: SiteKey | None) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Pointers, the dropout's arguments, and what the programs are specialised to; null pointers become the table."""
    table, row, other, r, r_row, position, position_row, type_, type_row, gamma, beta = inputs
    assert table is not None
    width = 1 if r is None else r.shape[1]
    pointers = [table, row, other, r, r_row, width, position, position_row, type_, type_row, gamma, beta]
    site = [None, 0, 0, 0, 1.0] if key is None else [key.token_T3, key.k0, key.k1, key.threshold, key.scale]
    flags = {
        "BLOCK": triton.next_power_of_2(table.shape[1]),
        "MIX": other is not None,
        "R_ROW": r_row is not None,
        "DROP": key is not None,
    }
    return [table if p is None else p for p in pointers], [table if p is None else p for p in site], flags


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
    if len(grad_TD):
        pointers, site, flags = _common(inputs, key)
        slots = (slot_T, slot_T if other_slot_T is None else other_slot_T)
        _backward[(len(grad_TD),)](
            *pointers[:-1], *site, grad_TD, mean_T, rstd_T, *slots, *out, grad_TD.shape[1], **flags
        )
