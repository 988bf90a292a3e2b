"""Self-attention of packed sequences.

Shapes: B sequences, S longest, T packed tokens, H heads, d width of a head.
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
    def forward(ctx: Any, qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None) -> Tensor:
        qkv_TX = qkv_TX.contiguous()
        call = cpu.AttentionCall(layout.offset_B1, heads, layout.longest, qkv_TX.shape[1] // (3 * heads), key)
        context_TX, norm_HT = call.forward(qkv_TX)
        ctx.call = call
        ctx.save_for_backward(qkv_TX, norm_HT)
        return context_TX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TX: Tensor) -> tuple[Tensor, None, None, None]:
        qkv_TX, norm_HT = ctx.saved_tensors
        return ctx.call.backward(qkv_TX, norm_HT, grad_TX.contiguous()), None, None, None


def attend(qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None) -> Tensor:
    """dropout(softmax(q k' / sqrt(d))) v within each sequence: (T, 3 H d) -> (T, H d), as in ``reference.attention``.

    ``key``: None drops nothing. The fused kernel takes over on the CPU for float32 and bfloat16; rows after the last
    token are zeros in and out there.
    """
    if cpu.takes(qkv_TX):
        context_TX: Tensor = _Attend.apply(qkv_TX, layout, heads, key)  # type: ignore[no-untyped-call]
        return context_TX
    return reference.attention(qkv_TX, layout, heads, key)
