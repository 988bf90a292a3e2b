"""Self-attention of packed sequences: the matrix products are the library's, all else is one pass each.

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
        call = cpu.AttentionCall(layout.offset_B1, heads, layout.longest, qkv_TX.shape[1] // (3 * heads), key)
        q, k, v = qkv = call.pad(qkv_TX.contiguous(), 3)
        weight, used = call.softmax(torch.bmm(q, k.transpose(1, 2)))
        ctx.save_for_backward(qkv, weight, used)
        ctx.call = call
        return call.pack(torch.bmm(used, v), 1, len(qkv_TX))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TX: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, weight, used = ctx.saved_tensors
        q, k, v = qkv
        grad_out = ctx.call.pad(grad_TX.contiguous(), 1)[0]
        grad_qkv = torch.empty_like(qkv)
        torch.bmm(used.transpose(1, 2), grad_out, out=grad_qkv[2])
        grad_score = ctx.call.softmax_backward_(weight, torch.bmm(grad_out, v.transpose(1, 2)))
        torch.bmm(grad_score, k, out=grad_qkv[0])
        torch.bmm(grad_score.transpose(1, 2), q, out=grad_qkv[1])
        return ctx.call.pack(grad_qkv, 3, len(grad_TX)), None, None, None


def attend(qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None) -> Tensor:
    """dropout(softmax(q k' / sqrt(d))) v within each sequence: (T, 3 H d) -> (T, H d), as in ``reference.attention``.

    ``key``: None drops nothing. The kernels for the CPU take over for float32 and bfloat16; rows after the last token
    are zeros in and out there.
    """
    if cpu.takes(qkv_TX):
        context_TX: Tensor = _Attend.apply(qkv_TX, layout, heads, key)  # type: ignore[no-untyped-call]
        return context_TX
    return reference.attention(qkv_TX, layout, heads, key)
