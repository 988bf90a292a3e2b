"""The embedding of packed tokens with mixup, as one operator: ``torch.ops.xsalt.embed``.

dropout(LayerNorm(mix + position + type)) with mix = r * weight[row] + (1 - r) * weight[other] (arXiv 2309.10891), in
one pass over memory each way: rows are gathered and mixed again in the backward pass and dropout masks drawn again, so
no (T, D) tensor lives but the output.

Shapes: A rows of the (active) table, D width, T packed tokens, B sequences, P positions, Y types, U distinct rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt import kernels
from xsalt.kernels import cpu, reference
from xsalt.kernels.philox import SiteKey

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def embed(
    weight_AD: Tensor,
    row_T: Tensor,
    position_PD: Tensor,
    position_T: Tensor,
    type_YD: Tensor,
    type_T: Tensor,
    gamma_D: Tensor,
    beta_D: Tensor,
    eps: float,
    key: SiteKey | None = None,
    *,
    other_T: Tensor | None = None,
    r: Tensor | None = None,
    r_row_T: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """x_TD, float32.

    Args:
        weight_AD: float32 or bfloat16. row_T: int64 rows of the tokens.
        position_PD, type_YD, gamma_D, beta_D: float32. position_T, type_T: int64 rows.
        key: of the dropout; None drops nothing.
        other_T: rows of the substitutions; None mixes nothing. A token that is its own substitution keeps its row.
        r: float32, (B, D) or (B, 1) with ``r_row_T``, the sequence of each token; (T, D) or (T, 1) without. It gets no
            gradient.
        sparse: give the gradient of ``weight_AD`` as a sparse tensor of the rows touched. It is float32 then, and only
            for float32 tables.
    """
    k0, k1, threshold, token_T3 = (0, 0, 0, None) if key is None else (key.k0, key.k1, key.threshold, key.token_T3)
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.xsalt.embed(
        weight_AD, row_T, other_T, r, r_row_T, position_PD, position_T, type_YD, type_T, gamma_D, beta_D, eps,
        token_T3, k0, k1, threshold, sparse,
    )  # fmt: skip
    return out[0]


def _site(token_T3: Tensor | None, k0: int, k1: int, threshold: int) -> SiteKey | None:
    return None if token_T3 is None or threshold == 0 else SiteKey(k0, k1, threshold, token_T3)


def _kernels_for(weight_AD: Tensor) -> str:
    if kernels.selected() == "reference" or weight_AD.dtype not in (torch.float32, torch.bfloat16):
        return "reference"
    if weight_AD.device.type == "cpu":
        return "cpu" if cpu.library()[0] is not None else "reference"
    return kernels.triton_or_reference(weight_AD.device)


@torch.library.custom_op("xsalt::embed", mutates_args=())
def _embed(
    weight_AD: Tensor,
    row_T: Tensor,
    other_T: Tensor | None,
    r: Tensor | None,
    r_row_T: Tensor | None,
    position_PD: Tensor,
    position_T: Tensor,
    type_YD: Tensor,
    type_T: Tensor,
    gamma_D: Tensor,
    beta_D: Tensor,
    eps: float,
    token_T3: Tensor | None,
    k0: int,
    k1: int,
    threshold: int,
    sparse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_TD, and the mean and 1 / standard deviation of each token before LayerNorm."""
    key = _site(token_T3, k0, k1, threshold)
    which = _kernels_for(weight_AD)
    inputs = (weight_AD, row_T, other_T, r, r_row_T, position_PD, position_T, type_YD, type_T, gamma_D, beta_D)
    if which == "reference":
        with torch.no_grad():
            x_TD = _sum(weight_AD, row_T, other_T, r, r_row_T, position_PD, position_T, type_YD, type_T)
            mean_T = x_TD.mean(-1)
            rstd_T = torch.rsqrt((x_TD - mean_T[:, None]).square().mean(-1) + eps)
            out_TD = F.layer_norm(x_TD, (x_TD.shape[1],), gamma_D, beta_D, eps)
            return reference.dropout(out_TD, key).clone(), mean_T, rstd_T
    out_TD = torch.empty(len(row_T), weight_AD.shape[1], dtype=gamma_D.dtype, device=weight_AD.device)
    mean_T, rstd_T = out_TD.new_empty(len(row_T)), out_TD.new_empty(len(row_T))
    contiguous = tuple(None if t is None else t.contiguous() for t in inputs)
    if which == "triton":
        from xsalt.kernels.triton import embedding as triton

        triton.embed_forward(contiguous, eps, key, out_TD, mean_T, rstd_T)
    else:
        cpu.EmbedCall(contiguous, eps, key, mean_T, rstd_T).forward(out_TD)
    return out_TD, mean_T, rstd_T


@_embed.register_fake
def _(weight_AD: Tensor, row_T: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    out_TD = torch.empty(len(row_T), weight_AD.shape[1], dtype=rest[8].dtype, device=weight_AD.device)
    return out_TD, out_TD.new_empty(len(row_T)), out_TD.new_empty(len(row_T))


def _sum(
    weight_AD: Tensor,
    row_T: Tensor,
    other_T: Tensor | None,
    r: Tensor | None,
    r_row_T: Tensor | None,
    position_PD: Tensor,
    position_T: Tensor,
    type_YD: Tensor,
    type_T: Tensor,
) -> Tensor:
    """mix + position + type in the type of the norm."""
    if other_T is None or r is None:
        word_TD = F.embedding(row_T, weight_AD)
    else:
        word_TD = reference.mix_rows(weight_AD.to(position_PD.dtype), row_T, other_T, r, r_row_T)
    return word_TD.to(position_PD.dtype) + F.embedding(position_T, position_PD) + F.embedding(type_T, type_YD)


@torch.library.custom_op("xsalt::embed_backward", mutates_args=())
def _embed_backward(
    grad_TD: Tensor,
    mean_T: Tensor,
    rstd_T: Tensor,
    slot_T: Tensor,
    other_slot_T: Tensor | None,
    slots: int,
    all_touched: bool,
    weight_AD: Tensor,
    row_T: Tensor,
    other_T: Tensor | None,
    r: Tensor | None,
    r_row_T: Tensor | None,
    position_PD: Tensor,
    position_T: Tensor,
    type_YD: Tensor,
    type_T: Tensor,
    gamma_D: Tensor,
    beta_D: Tensor,
    token_T3: Tensor | None,
    k0: int,
    k1: int,
    threshold: int,
) -> Grads:
    """Gradients of the table (at the slots, of which there are ``slots``), position, type, gamma and beta.

    ``all_touched``: every slot belongs to a token, so that nothing needs to be zeroed.
    """
    key = _site(token_T3, k0, k1, threshold)
    which = _kernels_for(weight_AD)
    unwritten = slots if all_touched and which == "cpu" else 0
    table = (gamma_D.new_empty if unwritten else gamma_D.new_zeros)(slots, weight_AD.shape[1])
    position, type_, gamma, beta = (torch.zeros_like(t) for t in (position_PD, type_YD, gamma_D, beta_D))
    out = (table, position, type_, gamma, beta)
    if which == "reference":
        x_TD = _sum(weight_AD, row_T, other_T, r, r_row_T, position_PD, position_T, type_YD, type_T)
        normed_TD = (x_TD - mean_T[:, None]) * rstd_T[:, None]
        grad_TD = reference.dropout(grad_TD, key)
        scaled_TD = grad_TD * gamma_D
        along_T1 = (scaled_TD * normed_TD).mean(-1, keepdim=True)
        dx_TD = rstd_T[:, None] * (scaled_TD - scaled_TD.mean(-1, keepdim=True) - normed_TD * along_T1)
        if other_T is None or other_slot_T is None or r is None:
            table.index_add_(0, slot_T, dx_TD)
        else:
            r_TX = (r if r_row_T is None else r[r_row_T]).to(dx_TD.dtype)
            share_TX = torch.where((other_T == row_T)[:, None], torch.ones_like(r_TX), r_TX)
            table.index_add_(0, slot_T, share_TX * dx_TD)
            table.index_add_(0, other_slot_T, (1 - share_TX) * dx_TD)
        out[1].index_add_(0, position_T, dx_TD)
        out[2].index_add_(0, type_T, dx_TD)
        out[3].add_((grad_TD * normed_TD).sum(0))
        out[4].add_(grad_TD.sum(0))
        return out
    inputs = (weight_AD, row_T, other_T, r, r_row_T, position_PD, position_T, type_YD, type_T, gamma_D, beta_D)
    contiguous = tuple(None if t is None else t.contiguous() for t in inputs)
    if which == "triton":
        from xsalt.kernels.triton import embedding as triton

        triton.embed_backward(contiguous, key, mean_T, rstd_T, grad_TD.contiguous(), slot_T, other_slot_T, out)
    else:
        call = cpu.EmbedCall(contiguous, 0.0, key, mean_T, rstd_T)
        call.backward(grad_TD.contiguous(), slot_T, other_slot_T, unwritten, *out)
    return out


@_embed_backward.register_fake
def _(
    grad_TD: Tensor, mean_T: Tensor, rstd_T: Tensor, slot_T: Tensor, other: Tensor | None, slots: int, *rest: Any
) -> Grads:
    position_PD, type_YD, gamma_D = rest[6], rest[8], rest[10]
    position, type_, gamma, beta = (torch.empty_like(t) for t in (position_PD, type_YD, gamma_D, gamma_D))
    return gamma_D.new_empty(slots, grad_TD.shape[1]), position, type_, gamma, beta


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, token_T3 = inputs[:11], inputs[12]
    ctx.site, ctx.sparse = inputs[13:16], inputs[16]
    ctx.save_for_backward(*tensors, token_T3, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Any, grad_TD: Tensor, *unused: Any) -> tuple[Any, ...]:
    *tensors, token_T3, mean_T, rstd_T = ctx.saved_tensors
    weight_AD, row_T, other_T = tensors[:3]
    slot_T, other_slot_T, slots, touched_U = row_T, other_T, len(weight_AD), None
    if ctx.sparse:
        both = row_T if other_T is None else torch.cat([row_T, other_T])
        on_cpu = _kernels_for(weight_AD) == "cpu"
        touched_U, slot = cpu.distinct(both, slots) if on_cpu else torch.unique(both, return_inverse=True)
        slots, slot_T = len(touched_U), slot[: len(row_T)].contiguous()
        other_slot_T = None if other_T is None else slot[len(row_T) :].contiguous()
    table, position, type_, gamma, beta = torch.ops.xsalt.embed_backward(
        grad_TD, mean_T, rstd_T, slot_T, other_slot_T, slots, ctx.sparse, *tensors, token_T3, *ctx.site
    )
    if touched_U is not None:
        table = torch.sparse_coo_tensor(
            touched_U[None], table, tuple(weight_AD.shape), is_coalesced=True, check_invariants=False
        )
    weight = table.to(weight_AD.dtype)
    return (weight, None, None, None, None, position, None, type_, None, gamma, beta, *(None,) * 6)


_embed.register_autograd(_backward, setup_context=_setup)
