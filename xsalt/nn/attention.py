"""Self-attention over packed tokens.

Shapes: B sequences, S length of the longest, T packed tokens, D width, H heads, d width of a head.
The projections run on the T packed tokens; only scores and their sums use the padded B x S grid, and that only
when lengths differ.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xsalt.batch import Layout
from xsalt.nn.dropout import KeyedDropout


class _Pad(torch.autograd.Function):
    """x_TX -> padded_(B*S)X with zeros where there is no token."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, padded_T: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(padded_T)
        return x_TX.new_zeros(rows, x_TX.shape[1]).index_copy_(0, padded_T, x_TX)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (padded_T,) = ctx.saved_tensors
        return grad.index_select(0, padded_T), None, None


class _Unpad(torch.autograd.Function):
    """padded_(B*S)X -> x_TX. Its backward copies rows where ``index_select``'s would add them one by one."""

    @staticmethod
    def forward(ctx: Any, x_RX: Tensor, padded_T: Tensor) -> Tensor:
        ctx.save_for_backward(padded_T)
        ctx.rows = len(x_RX)
        return x_RX.index_select(0, padded_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (padded_T,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, padded_T, grad), None


class _Attend(torch.autograd.Function):
    """dropout(softmax(q k' / sqrt(d) + bias)) v, written out.

    PyTorch's fused attention has a slow backward pass on the CPU at the lengths of sentence pairs; the plain products
    are faster there, and doing the element-wise steps in place saves their temporaries.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_BSX: Tensor, heads: int, bias_B11S: Tensor | None, mask: Tensor | None, mask_scale: float
    ) -> Tensor:
        B, S, width = qkv_BSX.shape
        d = width // (3 * heads)
        # One copy brings q, k and v into the order that the batched products read.
        qkv = qkv_BSX.view(B, S, 3, heads, d).permute(2, 0, 3, 1, 4).reshape(3, B * heads, S, d)
        q, k, v = qkv.unbind(0)
        scale = 1.0 / math.sqrt(d)
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
        if bias_B11S is not None:
            scores.view(B, heads, S, S).add_(bias_B11S.to(scores.dtype))
        weights = torch.softmax(scores, -1)
        used = weights if mask is None else weights * mask
        out = torch.bmm(used, v)
        if mask is not None:
            out.mul_(mask_scale)
        ctx.save_for_backward(qkv, weights, mask)
        ctx.shape, ctx.scale, ctx.mask_scale = (B, S, heads, d), scale, mask_scale
        return out.view(B, heads, S, d).transpose(1, 2).reshape(B, S, heads * d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, weights, mask = ctx.saved_tensors
        (B, S, heads, d), scale = ctx.shape, ctx.scale
        q, k, v = qkv.unbind(0)
        grad_out = grad.view(B, S, heads, d).transpose(1, 2).reshape(B * heads, S, d)
        used = weights
        if mask is not None:
            used = weights * mask
            grad_out = grad_out * ctx.mask_scale
        grad_qkv = torch.empty_like(qkv)
        torch.bmm(used.transpose(1, 2), grad_out, out=grad_qkv[2])
        grad_weights = torch.bmm(grad_out, v.transpose(1, 2))
        if mask is not None:
            grad_weights.mul_(mask)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
        torch.bmm(grad_scores, k, out=grad_qkv[0])
        torch.bmm(grad_scores.transpose(1, 2), q, out=grad_qkv[1])
        grad_in = grad_qkv.view(3, B, heads, S, d).permute(1, 3, 0, 2, 4).reshape(B, S, 3 * heads * d)
        return grad_in, None, None, None, None


def key_bias(layout: Layout) -> Tensor | None:
    """bias_B11S: 0 at tokens, -inf-like at padding; None when all sequences have one length. Made once a batch."""
    if layout.equal:
        return None
    lengths_B = torch.from_numpy(layout.lengths_B).to(layout.device)
    padding_BS = torch.arange(layout.longest, device=layout.device) >= lengths_B[:, None]
    bias_BS = torch.zeros(padding_BS.shape, device=layout.device).masked_fill_(padding_BS, -1e9)
    return bias_BS[:, None, None, :]


class SelfAttention(nn.Module):
    """Multi-head self-attention; ``qkv`` holds the rows of query, key and value one below the other, (3D, D)."""

    def __init__(self, width: int, heads: int, dropout: float, site: str) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = KeyedDropout(dropout, f"{site}/attention")

    def forward(self, x_TD: Tensor, layout: Layout, bias_B11S: Tensor | None) -> Tensor:
        """x_TD -> x_TD. ``bias_B11S`` is ``key_bias(layout)``."""
        B, S = layout.size, layout.longest
        qkv_TX: Tensor = self.qkv(x_TD)
        if not layout.equal:
            qkv_TX = _Pad.apply(qkv_TX, layout.padded_T, B * S)  # type: ignore[no-untyped-call]
        context_BSD = self._attend(qkv_TX.view(B, S, -1), bias_B11S)
        context_TD = context_BSD.reshape(B * S, -1)
        if not layout.equal:
            context_TD = _Unpad.apply(context_TD, layout.padded_T)  # type: ignore[no-untyped-call]
        projected: Tensor = self.out(context_TD)
        return projected

    def _attend(self, qkv_BSX: Tensor, bias_B11S: Tensor | None) -> Tensor:
        B, S, width = qkv_BSX.shape
        mask = None
        if self.dropout.active:
            mask = self.dropout.mask((B * self.heads, S, S), qkv_BSX.dtype, qkv_BSX.device)
        if qkv_BSX.is_cuda and mask is None:
            q, k, v = qkv_BSX.view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            bias = None if bias_B11S is None else bias_B11S.to(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(B, S, width // 3)
        context: Tensor = _Attend.apply(qkv_BSX, self.heads, bias_B11S, mask, self.dropout.scale)  # type: ignore[no-untyped-call]
        return context
