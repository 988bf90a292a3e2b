"""LayerNorm(residual + dropout(y)) for CUDA, one pass over memory each way."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from xsalt.kernels.philox import SiteKey
from xsalt.kernels.triton.philox import RUNTIME, arguments, block_of, dimensions, keep_hidden

PROGRAMS = 1024
"""Programs of the backward pass; each adds up the gradients of scale and shift of its own rows."""


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    residual, y, gamma, beta, eps, token, k0, k1, threshold, scale, out, low, total, mean, rstd, D,
    BLOCK: tl.constexpr, DROP: tl.constexpr, LOW: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = dimensions(BLOCK)
    inside = d < D
    added = tl.load(y + row * D + d, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        added = tl.where(keep_hidden(token + 3 * row, k0, k1, threshold, BLOCK), added * scale, 0.0)
    x = tl.load(residual + row * D + d, mask=inside, other=0.0) + added
    m = tl.sum(x) / D  # 0 outside
    centred = tl.where(inside, x - m, 0.0)
    s = 1.0 / tl.sqrt(tl.sum(centred * centred) / D + eps)
    normed = centred * s * tl.load(gamma + d, mask=inside, other=0.0) + tl.load(beta + d, mask=inside, other=0.0)
    tl.store(out + row * D + d, normed, mask=inside)
    if LOW:
        tl.store(low + row * D + d, normed.to(low.dtype.element_ty), mask=inside)
    if KEEP:
        tl.store(total + row * D + d, x, mask=inside)
        tl.store(mean + row, m)
        tl.store(rstd + row, s)


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad, grad_low, total, mean, rstd, gamma, token, k0, k1, threshold, scale,
    grad_residual, grad_y, partial, rows, chunk, D,
    BLOCK: tl.constexpr, DROP: tl.constexpr, WIDE: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = program.to(tl.int64) * chunk
    count = tl.minimum(chunk, rows - program * chunk)
    d = dimensions(BLOCK)
    inside = d < D
    weight = tl.load(gamma + d, mask=inside, other=0.0)
    of_gamma = tl.zeros((8, BLOCK // 8), tl.float32)
    of_beta = tl.zeros((8, BLOCK // 8), tl.float32)
    for i in range(count):
        row = first + i
        g = tl.zeros((8, BLOCK // 8), tl.float32)
        if WIDE:
            g += tl.load(grad + row * D + d, mask=inside, other=0.0)
        if LOW:
            g += tl.load(grad_low + row * D + d, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(rstd + row)
        x = tl.load(total + row * D + d, mask=inside, other=0.0)
        normed = tl.where(inside, (x - tl.load(mean + row)) * s, 0.0)
        of_gamma += g * normed
        of_beta += g
        scaled = g * weight
        dx = s * (scaled - tl.sum(scaled) / D - normed * (tl.sum(scaled * normed) / D))
        tl.store(grad_residual + row * D + d, dx, mask=inside)
        if DROP:
            dx = tl.where(keep_hidden(token + 3 * row, k0, k1, threshold, BLOCK), dx * scale, 0.0)
        tl.store(grad_y + row * D + d, dx.to(grad_y.dtype.element_ty), mask=inside)
    tl.store(partial + program * 2 * D + d, of_gamma, mask=inside)
    tl.store(partial + program * 2 * D + D + d, of_beta, mask=inside)


def norm_forward(
    residual_RD: Tensor,
    y_RD: Tensor,
    gamma_D: Tensor,
    beta_D: Tensor,
    eps: float,
    key: SiteKey | None,
    out_RD: Tensor,
    low_RD: Tensor | None,
    kept: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    """Fills the outputs.

    Args:
        low_RD: gets the output in its own type too, if it is there.
        kept: get what ``norm_backward`` reads, if they are there: the sum (R, D), its mean and 1 / deviation (R).
    """
    R, D = residual_RD.shape
    if R:
        _forward[(R,)](
            residual_RD, y_RD, gamma_D, beta_D, eps, *arguments(key, out_RD), out_RD,
            out_RD if low_RD is None else low_RD, *((out_RD,) * 3 if kept is None else kept), D,
            BLOCK=block_of(D), DROP=key is not None, LOW=low_RD is not None, KEEP=kept is not None,
        )  # fmt: skip


def norm_backward(
    grad_RD: Tensor | None,
    grad_low_RD: Tensor | None,
    kept: tuple[Tensor, Tensor, Tensor],
    gamma_D: Tensor,
    key: SiteKey | None,
    grad_residual_RD: Tensor,
    grad_y_RD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fills the gradients of residual and y, and gives those of gamma and beta."""
    R, D = grad_residual_RD.shape
    if R == 0:
        return gamma_D.new_zeros(D), gamma_D.new_zeros(D)
    chunk = triton.cdiv(R, PROGRAMS)
    programs = triton.cdiv(R, chunk)
    partial_P2D = grad_residual_RD.new_empty(programs, 2, D)
    total_RD = kept[0]
    _backward[(programs,)](
        total_RD if grad_RD is None else grad_RD, total_RD if grad_low_RD is None else grad_low_RD, *kept, gamma_D,
        *arguments(key, total_RD), grad_residual_RD, grad_y_RD, partial_P2D, R, chunk, D,
        BLOCK=block_of(D), DROP=key is not None, WIDE=grad_RD is not None, LOW=grad_low_RD is not None,
    )  # fmt: skip
    of_gamma, of_beta = partial_P2D.sum(0).unbind(0)
    return of_gamma, of_beta
