"""Attention over packed tokens: Triton on CUDA, PyTorch elsewhere (the CPU's kernel is part of a whole layer).

Shapes: T packed tokens, B sequences, R rows that come out (T, or B with ``first_only``), H heads, d width of a head,
X = 3 H d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import reference
from xsalt.kernels.philox import SiteKey


def attention(qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None, *, first_only: bool = False) -> Tensor:
    """dropout(softmax(q k' / sqrt(d))) v within each sequence, (R, H d), in the type of ``qkv_TX``.

    Args:
        key: of all T tokens.
        first_only: compute it for the first token of each sequence alone.
    """
    if kernels.uses_triton(qkv_TX):
        if first_only and key is not None:
            key = key.of(layout.first_B)
        context_RD: Tensor = _Attention.apply(qkv_TX, layout, heads, key, first_only)  # type: ignore[no-untyped-call]
        return context_RD
    context_TD = reference.attention(qkv_TX, layout, heads, key)
    return context_TD.index_select(0, layout.first_B) if first_only else context_TD


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None, first_only: bool) -> Tensor:
        from xsalt.kernels.triton.attention import AttentionCall

        qkv_TX = qkv_TX.contiguous()
        ctx.call = AttentionCall(layout.offset_B1, heads, layout.longest, key, first_only)
        rows = layout.size if first_only else layout.tokens
        context_RD = qkv_TX.new_empty(rows, qkv_TX.shape[1] // 3)
        norm_HR = torch.empty(heads, rows, device=qkv_TX.device)
        ctx.call.forward(qkv_TX, context_RD, norm_HR)
        ctx.save_for_backward(qkv_TX, context_RD, norm_HR)
        return context_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        qkv_TX, context_RD, norm_HR = ctx.saved_tensors
        # with ``first_only`` most queries have no gradient, and nothing writes it
        grad_qkv_TX = (torch.zeros_like if ctx.call.first_only else torch.empty_like)(qkv_TX)
        ctx.call.backward(qkv_TX, context_RD, norm_HR, grad_RD.contiguous(), grad_qkv_TX)
        return grad_qkv_TX, None, None, None, None
