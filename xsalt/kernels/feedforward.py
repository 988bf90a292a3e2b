"""The second half of a feed-forward layer: a linear map of the GELU of what the first half gives.

Shapes: T tokens, F width of the hidden layer, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xsalt.kernels import cpu


class _GeluLinear(torch.autograd.Function):
    """Keeps its input alone: the GELU of it is computed again with its derivative in one pass."""

    @staticmethod
    def forward(ctx: Any, x_TF: Tensor, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
        x_TF = x_TF.contiguous()
        low_DF = weight_DF.to(x_TF.dtype)
        ctx.save_for_backward(x_TF, low_DF)
        return torch.addmm(bias_D.to(x_TF.dtype), cpu.gelu(x_TF), low_DF.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_TF, low_DF = ctx.saved_tensors
        grad_TF = torch.mm(grad_TD, low_DF)
        y_TF = cpu.gelu_backward_(x_TF, grad_TF)
        return grad_TF, torch.mm(grad_TD.t(), y_TF), grad_TD.sum(0)


def gelu_linear(x_TF: Tensor, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
    """gelu(x) weight' + bias with the exact GELU: (T, F) -> (T, D).

    The fused kernel takes over on the CPU for float32 and bfloat16, and computes products in the type of x.
    """
    if cpu.takes(x_TF):
        y_TD: Tensor = _GeluLinear.apply(x_TF, weight_DF, bias_D)  # type: ignore[no-untyped-call]
        return y_TD
    return F.linear(F.gelu(x_TF), weight_DF, bias_D)
