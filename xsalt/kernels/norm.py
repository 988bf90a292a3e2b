"""What follows attention and the feed-forward layer: LayerNorm(residual + dropout(y)). Triton on CUDA, else PyTorch.

Shapes: R rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt import kernels
from xsalt.kernels import reference
from xsalt.kernels.philox import SiteKey


def add_and_norm(
    residual_RD: Tensor, y_RD: Tensor, gamma_D: Tensor, beta_D: Tensor, eps: float, key: SiteKey | None
) -> tuple[Tensor, Tensor]:
    """LayerNorm(residual + dropout(y)) twice: as the residual stream has it, and as matrix products read it.

    Both are one tensor unless y is bfloat16 and the kernel writes both in its pass. ``key``: of the R rows.
    """
    if kernels.uses_triton(y_RD) and residual_RD.dtype == gamma_D.dtype == torch.float32:
        out_RD, low_RD = _AddAndNorm.apply(residual_RD, y_RD, gamma_D, beta_D, eps, key, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
        return out_RD, out_RD if low_RD is None else low_RD
    sum_RD = residual_RD + reference.dropout(y_RD, key)
    out_RD = F.layer_norm(sum_RD, (sum_RD.shape[1],), gamma_D, beta_D, eps)
    return out_RD, out_RD


def dropout(x_TN: Tensor, key: SiteKey | None) -> Tensor:
    """Inverted dropout of hidden states on its own, with nothing after it to be fused with."""
    if key is None or not kernels.uses_triton(x_TN):
        return reference.dropout(x_TN, key)
    from xsalt.kernels.triton.philox import keep_mask

    return x_TN * keep_mask(key, x_TN.shape[1]) * key.scale


class _AddAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual_RD: Tensor,
        y_RD: Tensor,
        gamma_D: Tensor,
        beta_D: Tensor,
        eps: float,
        key: SiteKey | None,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor | None]:
        from xsalt.kernels.triton.norm import norm_forward

        ctx.set_materialize_grads(False)
        ctx.key, ctx.type = key, y_RD.dtype
        out_RD = torch.empty_like(residual_RD, memory_format=torch.contiguous_format)
        low_RD = None if y_RD.dtype == torch.float32 else torch.empty_like(y_RD, memory_format=torch.contiguous_format)
        kept = None
        if differentiable:
            mean_R, rstd_R = out_RD.new_empty(len(out_RD)), out_RD.new_empty(len(out_RD))  # each aligned for vectors
            kept = (torch.empty_like(out_RD), mean_R, rstd_R)
            ctx.save_for_backward(*kept, gamma_D)
        norm_forward(residual_RD.contiguous(), y_RD.contiguous(), gamma_D, beta_D, eps, key, out_RD, low_RD, kept)
        return out_RD, low_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor | None, grad_low_RD: Tensor | None) -> tuple[Tensor | None, ...]:
        from xsalt.kernels.triton.norm import norm_backward

        if grad_RD is None and grad_low_RD is None:
            return (None,) * 7
        sum_RD, mean_R, rstd_R, gamma_D = ctx.saved_tensors
        grad_residual_RD = torch.empty_like(sum_RD)
        grad_y_RD = torch.empty_like(sum_RD, dtype=ctx.type)
        wide, low = (None if grad is None else grad.contiguous() for grad in (grad_RD, grad_low_RD))
        of_gamma, of_beta = norm_backward(
            wide, low, (sum_RD, mean_R, rstd_R), gamma_D, ctx.key, grad_residual_RD, grad_y_RD
        )
        return grad_residual_RD, grad_y_RD, of_gamma, of_beta, None, None, None
