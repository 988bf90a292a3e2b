"""Self-attention of packed sequences.

Shapes: B sequences, S longest, T packed tokens, R rows (T or B), H heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt.batch import Layout
from xsalt.kernels import cpu, reference
from xsalt.kernels.philox import SiteKey


class _Attend(torch.autograd.Function):
    """PyTorch's own fused attention has a slow backward pass on the CPU at the lengths of sentence pairs."""

    @staticmethod
    def forward(ctx: Any, qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None, first_only: bool) -> Tensor:
        qkv_TX, d = qkv_TX.contiguous(), qkv_TX.shape[1] // (3 * heads)
        call = cpu.AttentionCall(layout.offset_B1, heads, layout.longest, d, key, first_only)
        context_RX, norm_HR = call.forward(qkv_TX)
        ctx.call = call
        ctx.save_for_backward(qkv_TX, norm_HR)
        return context_RX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RX: Tensor) -> tuple[Tensor | None, ...]:
        qkv_TX, norm_HR = ctx.saved_tensors
        return ctx.call.backward(qkv_TX, norm_HR, grad_RX.contiguous()), None, None, None, None


def attend(qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None, *, first_only: bool = False) -> Tensor:
    """dropout(softmax(q k' / sqrt(d))) v within each sequence: (T, 3 H d) -> (T, H d), as in ``reference.attention``.

    The fused kernel takes over on the CPU for float32 and bfloat16; rows after the last token are zeros in and out
    there.

    Args:
        key: None drops nothing.
        first_only: what the first token of each sequence attends to alone: (B, H d).
    """
    if cpu.takes(qkv_TX):
        context_RX: Tensor = _Attend.apply(qkv_TX, layout, heads, key, first_only)  # type: ignore[no-untyped-call]
        return context_RX
    context_TX = reference.attention(qkv_TX, layout, heads, key)
    return context_TX.index_select(0, layout.first_B) if first_only else context_TX
