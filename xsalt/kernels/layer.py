"""A whole Transformer layer on the CPU: both passes written out, as one node of the autograd graph.

Operator by operator, dispatch, casts, graph nodes and the allocator leave the second thread of a small encoder waiting.

Shapes: T packed tokens, R rows that go on after attention (T, or one for each sequence), D width, F width of the
feed-forward layer, H heads, X = 3 D.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F_
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt.batch import Layout
from xsalt.kernels import cpu
from xsalt.kernels.philox import SiteKey

FILLED_TO = 32
"""States are filled up with rows of zeros to a multiple of this. The matrix library compiles a product for each shape,
and packed batches hardly ever have the same number of tokens twice: this way it meets old ones again."""


class LayerWeights(NamedTuple):
    """The parameters of a layer: matrices (out, in), biases, and scale and shift of both norms."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    attention_gamma: Tensor
    attention_beta: Tensor
    ffn_in: Tensor
    ffn_in_bias: Tensor
    ffn_out: Tensor
    ffn_out_bias: Tensor
    ffn_gamma: Tensor
    ffn_beta: Tensor


@dataclass(frozen=True)
class LayerCall:
    """What a call needs besides its tensors.

    Attributes:
        eps: of both norms.
        first_only: whether only the first token of each sequence goes on after attention.
        weights_key, attention_key, ffn_key: for dropout of the attention weights and of what is added to the residual
            stream, there of the R rows alone; None drops nothing.
    """

    layout: Layout
    heads: int
    eps: float
    first_only: bool
    weights_key: SiteKey | None
    attention_key: SiteKey | None
    ffn_key: SiteKey | None

    def attention(self, width: int) -> cpu.AttentionCall:
        layout = self.layout
        d = width // self.heads
        return cpu.AttentionCall(layout.offset_B1, self.heads, layout.longest, d, self.weights_key, self.first_only)


_cast: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None = None


@contextmanager
def weights_stay() -> Iterator[None]:
    """Inside, nothing changes weights: they are cast to bfloat16 once, and laid out as the products of the forward pass
    like them."""
    global _cast
    before, _cast = _cast, {} if _cast is None else _cast
    try:
        yield
    finally:
        _cast = before


def _as(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    if _cast is None or matrix.dtype == dtype:
        return matrix.to(dtype)
    if (id(matrix), dtype) not in _cast:
        _cast[id(matrix), dtype] = (matrix, matrix.t().to(dtype).contiguous().t())  # holds it, so that the id stays its
    return _cast[id(matrix), dtype][1]


def takes(x_TD: Tensor) -> bool:
    """Whether ``encoder_layer`` computes layers with such an input now."""
    autocast = torch.is_autocast_enabled("cpu")
    fits = x_TD.dtype == torch.float32 and (not autocast or torch.get_autocast_dtype("cpu") == torch.bfloat16)
    return fits and cpu.takes(x_TD)


def filled_up(x_TD: Tensor) -> Tensor:
    """The states with rows of zeros after them."""
    missing = -len(x_TD) % FILLED_TO
    return F_.pad(x_TD, (0, 0, 0, missing)) if missing else x_TD


def encoder_layer(
    x_TD: Tensor, low_TD: Tensor | None, weights: LayerWeights, call: LayerCall
) -> tuple[Tensor, Tensor | None]:
    """x = norm(x + dropout(attention(x))); x = norm(x + dropout(ffn(x))), with the exact GELU, for float32 parameters.

    Args:
        x_TD: the residual stream, float32, ``filled_up``.
        low_TD: the same in bfloat16 under autocast if it is there, for the matrix products.

    Returns the same two of the R rows, ``filled_up``; the second is None without autocast.
    """
    out_RD, low_RD = _EncoderLayer.apply(call, x_TD, low_TD, *weights)  # type: ignore[no-untyped-call]
    return out_RD, low_RD


class _EncoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: LayerCall, x_TD: Tensor, low_TD: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        w = LayerWeights(*parameters)
        x_TD = x_TD.contiguous()
        (T, D), F, B = x_TD.shape, len(w.ffn_in), call.layout.size
        R = -(-B // FILLED_TO) * FILLED_TO if call.first_only else T
        low = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        qkv, out, ffn_in, ffn_out = (_as(matrix, low) for matrix in (w.qkv, w.out, w.ffn_in, w.ffn_out))
        input_TD = x_TD.to(low) if low_TD is None else low_TD.contiguous()
        wide = torch.float32
        qkv_TX, context_RD, inner_RD, hidden_RF, sum1_RD, sum2_RD, moments_4R, norm_HR = cpu.uninitialised(
            (T, 3 * D, low), (R, D, low), (R, D, low), (R, F, low), (R, D, wide), (R, D, wide), (4, R, wide),
            (call.heads, B if call.first_only else call.layout.tokens, wide),
        )  # fmt: skip
        y_RD, mid_RD, gelu_RF = cpu.uninitialised((R, D, low), (R, D, wide), (R, F, low))

        torch.addmm(w.qkv_bias.to(low), input_TD, qkv.t(), out=qkv_TX)
        call.attention(D).forward(qkv_TX, context_RD, norm_HR)
        torch.mm(context_RD, out.t(), out=y_RD)
        residual_RD = filled_up(x_TD.index_select(0, call.layout.first_B)) if call.first_only else x_TD
        if low == wide:
            mid_RD = inner_RD
        norm = cpu.NormCall(w.attention_gamma, w.attention_beta, call.eps, call.attention_key, sum1_RD, moments_4R[:2])
        norm.forward(residual_RD, y_RD, w.out_bias, mid_RD, None if low == wide else inner_RD)

        torch.mm(inner_RD, ffn_in.t(), out=hidden_RF)
        cpu.gelu(hidden_RF, w.ffn_in_bias, gelu_RF)
        torch.mm(gelu_RF, ffn_out.t(), out=y_RD)
        out_RD = torch.empty(R, D)
        out_low_RD = None if low == wide else torch.empty(R, D, dtype=low)
        norm = cpu.NormCall(w.ffn_gamma, w.ffn_beta, call.eps, call.ffn_key, sum2_RD, moments_4R[2:])
        norm.forward(mid_RD, y_RD, w.ffn_out_bias, out_RD, out_low_RD)

        ctx.call, ctx.cast = call, low_TD is None
        ctx.save_for_backward(
            *(qkv, out, ffn_in, w.ffn_in_bias, ffn_out),
            *(w.attention_gamma, w.attention_beta, w.ffn_gamma, w.ffn_beta),
            *(input_TD, qkv_TX, context_RD, inner_RD, hidden_RF, sum1_RD, sum2_RD, moments_4R, norm_HR),
        )
        return out_RD, out_low_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor | None, grad_low_RD: Tensor | None) -> tuple[Tensor | None, ...]:
        """GELU and attention weights are computed again; what else is needed was kept."""
        call: LayerCall = ctx.call
        qkv, out, ffn_in, ffn_in_bias, ffn_out, gamma1, beta1, gamma2, beta2, *states = ctx.saved_tensors
        input_TD, qkv_TX, context_RD, inner_RD, hidden_RF, sum1_RD, sum2_RD, moments_4R, norm_HR = states
        (T, D), (R, F), low, wide = input_TD.shape, hidden_RF.shape, input_TD.dtype, torch.float32
        need = LayerWeights(*ctx.needs_input_grad[3:])
        grads: dict[str, Tensor | None] = dict.fromkeys(LayerWeights._fields)
        mid_RD, grad_y_RD, grad_inner_RD, grad_hidden_RF, gelu_RF, grad_qkv_TX = cpu.uninitialised(
            (R, D, wide), (R, D, low), (R, D, low), (R, F, low), (R, F, low), (T, 3 * D, low)
        )

        norm = cpu.NormCall(gamma2, beta2, call.eps, call.ffn_key, sum2_RD, moments_4R[2:])
        given, given_low = (None if grad is None else grad.contiguous() for grad in (grad_RD, grad_low_RD))
        grads["ffn_gamma"], grads["ffn_beta"], grads["ffn_out_bias"] = norm.backward(
            given, given_low, mid_RD, grad_y_RD
        )
        torch.mm(grad_y_RD, ffn_out, out=grad_hidden_RF)
        cpu.gelu_backward(hidden_RF, ffn_in_bias, grad_hidden_RF, gelu_RF)
        grads["ffn_out"] = torch.mm(grad_y_RD.t(), gelu_RF) if need.ffn_out else None
        grads["ffn_in"] = torch.mm(grad_hidden_RF.t(), inner_RD) if need.ffn_in else None
        grads["ffn_in_bias"] = cpu.column_sums(grad_hidden_RF) if need.ffn_in_bias else None
        torch.mm(grad_hidden_RF, ffn_in, out=grad_inner_RD)

        norm = cpu.NormCall(gamma1, beta1, call.eps, call.attention_key, sum1_RD, moments_4R[:2])
        given_low = None if low == wide else grad_inner_RD
        if low == wide:
            mid_RD.add_(grad_inner_RD)
        residual_RD = torch.empty(R, D)
        grads["attention_gamma"], grads["attention_beta"], grads["out_bias"] = norm.backward(
            mid_RD, given_low, residual_RD, grad_y_RD
        )
        grads["out"] = torch.mm(grad_y_RD.t(), context_RD) if need.out else None
        grad_context_RD = torch.mm(grad_y_RD, out, out=grad_inner_RD)
        call.attention(D).backward(qkv_TX, norm_HR, grad_context_RD, grad_qkv_TX)
        grads["qkv"] = torch.mm(grad_qkv_TX.t(), input_TD) if need.qkv else None
        grads["qkv_bias"] = cpu.column_sums(grad_qkv_TX) if need.qkv_bias else None

        grad_low_TD = torch.mm(grad_qkv_TX, qkv) if any(ctx.needs_input_grad[1:3]) else None
        grad_TD = residual_RD
        if call.first_only:
            B = call.layout.size
            grad_TD = residual_RD.new_zeros(T, D).index_copy_(0, call.layout.first_B, residual_RD[:B])
        if ctx.cast and grad_low_TD is not None:
            grad_TD, grad_low_TD = grad_TD.add_(grad_low_TD), None
        return None, grad_TD, grad_low_TD, *grads.values()
