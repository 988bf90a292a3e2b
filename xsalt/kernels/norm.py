"""LayerNorm(residual + dropout(y)): the end of both halves of a Transformer layer, in one pass over memory each way.

Shapes: T packed tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt.kernels import cpu, reference
from xsalt.kernels.philox import SiteKey


class _DropoutAddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual_TD: Tensor, y_TD: Tensor, gamma_D: Tensor, beta_D: Tensor, eps: float, key: SiteKey | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        low = y_TD.dtype == torch.bfloat16
        out_TD, out16_TD, sum_TD, mean_T, rstd_T = cpu.norm_forward(
            residual_TD.contiguous(), y_TD.contiguous(), gamma_D, beta_D, eps, key, low
        )
        ctx.save_for_backward(sum_TD, mean_T, rstd_T, gamma_D)
        ctx.eps, ctx.key, ctx.y_dtype = eps, key, y_TD.dtype
        return out_TD, out16_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor | None, grad16_TD: Tensor | None) -> tuple[Tensor | None, ...]:
        sum_TD, mean_T, rstd_T, gamma_D = ctx.saved_tensors
        grads = cpu.norm_backward(
            None if grad_TD is None else grad_TD.contiguous(),
            None if grad16_TD is None else grad16_TD.contiguous(),
            sum_TD,
            mean_T,
            rstd_T,
            gamma_D,
            ctx.eps,
            ctx.key,
            ctx.y_dtype,
        )
        return (*grads, None, None)


def dropout_add_norm(
    residual_TD: Tensor, y_TD: Tensor, gamma_D: Tensor, beta_D: Tensor, eps: float, key: SiteKey | None
) -> tuple[Tensor, Tensor]:
    """LayerNorm(residual + dropout(y)) twice: in the residual's type, and in y's for the product that comes next.

    ``key``: None drops nothing. The fused kernel takes over on the CPU for a float32 residual and y in float32 or
    bfloat16; ``reference.dropout_add_norm`` defines the result.
    """
    if residual_TD.dtype == gamma_D.dtype == torch.float32 and cpu.takes(y_TD):
        out_TD, low_TD = _DropoutAddNorm.apply(residual_TD, y_TD, gamma_D, beta_D, eps, key)  # type: ignore[no-untyped-call]
        return out_TD, out_TD if low_TD is None else low_TD
    out_TD = reference.dropout_add_norm(residual_TD, y_TD, gamma_D, beta_D, eps, key)
    return out_TD, out_TD
