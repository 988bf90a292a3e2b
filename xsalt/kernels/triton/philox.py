"""Dropout masks on CUDA, bit for bit those of ``xsalt/kernels/philox.py``."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from xsalt.kernels.philox import SiteKey

RUNTIME = ("k0", "k1", "threshold", "rows", "chunk")
"""Arguments that Triton is not to specialise to."""


@triton.jit
def words(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Four words for counters c0 (uint32); the rest are int32 patterns that broadcast with it."""
    zero = c0 * 0
    c1 = zero + c1.to(tl.uint32, bitcast=True)
    c2 = zero + c2.to(tl.uint32, bitcast=True)
    c3 = zero + c3.to(tl.uint32, bitcast=True)
    k0 = zero + k0.to(tl.uint32, bitcast=True)
    k1 = zero + k1.to(tl.uint32, bitcast=True)
    a, b = zero + 0xD2511F53, zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, a), c0 * a
        high1, low1 = tl.umulhi(c2, b), c2 * b
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator]
def dimensions(BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The dimensions of a row as a tile of (8, BLOCK / 8): those of a column share a counter, one number each."""
    number = tl.arange(0, 8)[:, None]
    column = tl.arange(0, BLOCK // 8)[None, :]
    return column // 16 * 128 + number * 16 + column % 16


@triton.jit  # type: ignore[untyped-decorator]
def keep_hidden(token, k0, k1, threshold, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether each of ``dimensions`` stays; ``token``: where the three words of the row's token lie."""
    counter = tl.arange(0, BLOCK // 8).to(tl.uint32)
    w0, w1, w2, w3 = words(counter, tl.load(token), tl.load(token + 1), tl.load(token + 2), k0, k1)
    number = tl.arange(0, 8)[:, None]
    pair = number // 2
    word = tl.where(
        pair == 0, w0[None, :], tl.where(pair == 1, w1[None, :], tl.where(pair == 2, w2[None, :], w3[None, :]))
    )
    half = (word >> (number % 2 * 16).to(tl.uint32)) & 0xFFFF
    return half.to(tl.int32) >= threshold


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _keep_mask(token, k0, k1, threshold, out, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    d = dimensions(BLOCK)
    tl.store(out + row * N + d, keep_hidden(token + 3 * row, k0, k1, threshold, BLOCK).to(tl.uint8), mask=d < N)


def keep_mask(key: SiteKey, width: int) -> Tensor:
    """``philox.keep_hidden``: keep_TN for N = width."""
    token_T3 = key.token_T3.contiguous()
    keep_TN = torch.empty(len(token_T3), width, dtype=torch.uint8, device=token_T3.device)
    if keep_TN.numel():
        site = arguments(key, token_T3)[:4]
        _keep_mask[(len(token_T3),)](*site, keep_TN, width, BLOCK=block_of(width))
    return keep_TN.view(torch.bool)


def block_of(width: int) -> int:
    """The BLOCK of ``dimensions``: whole Philox counters, a power of two."""
    return max(128, int(triton.next_power_of_2(width)))


def arguments(key: SiteKey | None, instead: Tensor) -> tuple[Any, ...]:
    """token, k0, k1, threshold and scale for a kernel; ``instead`` stands for the tokens where nothing is dropped."""
    if key is None:
        return instead, 0, 0, 0, 1.0
    return key.token_T3.contiguous(), _signed(key.k0), _signed(key.k1), key.threshold, key.scale


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
