"""Attention within packed sequences for CUDA: softmax over blocks of keys, computed again in the backward pass.

No weight of attention is ever in memory. Which of them stay is, while a pass runs: a bit each, as what Philox gives is
for eight heads at once.

Shapes: T packed tokens, B sequences, R queries (T, or B with ``first_only``), H heads, d width of a head, G groups of
eight heads, S longest sequence, filled up to whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from xsalt.kernels.philox import SiteKey
from xsalt.kernels.triton.philox import RUNTIME, arguments, words

QUERIES, KEYS = 16, 64
"""What a program draws masks for. ``KEYS`` is a multiple of every block of keys."""
SHORT = 64
"""Up to this length, blocks are of 32 tokens: larger ones would mostly be empty."""


@triton.jit
def _two(word, threshold):  # type: ignore[no-untyped-def]
    """A bit for each half of a word: whether it stays."""
    low = ((word & 0xFFFF).to(tl.int32) >= threshold).to(tl.int32)
    high = ((word >> 16).to(tl.int32) >= threshold).to(tl.int32)
    return low | high << 1


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    token, k0, k1, threshold, bits, rows, S, G: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """bits_RGS: bit n of a byte is 1 where the weight of head 8 g + n stays."""
    row = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = row < rows
    g = tl.program_id(1)
    key = tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    c0 = tl.broadcast_to((g << 16 | key)[None, :], (QUERIES, KEYS)).to(tl.uint32)
    c1 = tl.load(token + 3 * row, mask=inside, other=0)[:, None]
    c2 = tl.load(token + 3 * row + 1, mask=inside, other=0)[:, None]
    c3 = tl.load(token + 3 * row + 2, mask=inside, other=0)[:, None]
    w0, w1, w2, w3 = words(c0, c1, c2, c3, k0, k1)
    byte = _two(w0, threshold) | _two(w1, threshold) << 2 | _two(w2, threshold) << 4 | _two(w3, threshold) << 6
    tl.store(bits + (row[:, None] * G + g) * S + key[None, :], byte.to(tl.uint8), mask=inside[:, None])


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    qkv, offset, bits, context, norm, scale, keep_scale, rows, S,
    H: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, DROP: tl.constexpr,
    DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(1)
    start = tl.load(offset + b)
    length = (tl.load(offset + b + 1) - start).to(tl.int32)
    queries, line = length, start
    if FIRST:
        queries, line = tl.minimum(length, 1), start * 0 + b
    if tl.program_id(2) * BM >= queries:
        return
    i = tl.program_id(2) * BM + tl.arange(0, BM)
    c = tl.arange(0, WIDTH)
    own, wide = i < queries, c < HEAD
    stride = 3 * H * HEAD
    at = qkv + start * stride + h * HEAD
    q = tl.load(at + i[:, None] * stride + c[None, :], mask=own[:, None] & wide[None, :], other=0.0).to(DOT)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    sum_ = tl.zeros((BM,), tl.float32)
    out = tl.zeros((BM, WIDTH), tl.float32)
    for begin in range(0, length, BN):
        j = begin + tl.arange(0, BN)
        inside = (j < length)[:, None] & wide[None, :]
        k = tl.load(at + H * HEAD + j[:, None] * stride + c[None, :], mask=inside, other=0.0).to(DOT)
        v = tl.load(at + 2 * H * HEAD + j[:, None] * stride + c[None, :], mask=inside, other=0.0).to(DOT)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where((j < length)[None, :], score, float("-inf"))
        most = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp(score - most[:, None])
        shrink = tl.exp(largest - most)
        sum_ = sum_ * shrink + tl.sum(weight, 1)
        if DROP:
            place = ((line + i)[:, None] * ((H + 7) // 8) + h // 8) * S + j[None, :]
            byte = tl.load(bits + place, mask=own[:, None], other=0).to(tl.int32)
            weight = tl.where((byte >> (h % 8)) & 1 != 0, weight * keep_scale, 0.0)
        out = out * shrink[:, None] + tl.dot(weight.to(DOT), v, input_precision="ieee")
        largest = most
    out = out / sum_[:, None]
    place = (line + i)[:, None] * (H * HEAD) + h * HEAD + c[None, :]
    tl.store(context + place, out.to(context.dtype.element_ty), mask=own[:, None] & wide[None, :])
    tl.store(norm + h * rows + line + i, largest + tl.log(sum_), mask=own)


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _backward_queries(  # type: ignore[no-untyped-def]
    qkv, offset, bits, context, norm, grad, along, grad_qkv, scale, keep_scale, rows, S,
    H: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, DROP: tl.constexpr,
    DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries, and ``along``: the product of context and its gradient for each query and head."""
    b, h = tl.program_id(0), tl.program_id(1)
    start = tl.load(offset + b)
    length = (tl.load(offset + b + 1) - start).to(tl.int32)
    queries, line = length, start
    if FIRST:
        queries, line = tl.minimum(length, 1), start * 0 + b
    if tl.program_id(2) * BM >= queries:
        return
    i = tl.program_id(2) * BM + tl.arange(0, BM)
    c = tl.arange(0, WIDTH)
    own, wide = i < queries, c < HEAD
    stride = 3 * H * HEAD
    at = qkv + start * stride + h * HEAD
    tile = own[:, None] & wide[None, :]
    q = tl.load(at + i[:, None] * stride + c[None, :], mask=tile, other=0.0).to(DOT)
    place = (line + i)[:, None] * (H * HEAD) + h * HEAD + c[None, :]
    do = tl.load(grad + place, mask=tile, other=0.0)
    delta = tl.sum(do.to(tl.float32) * tl.load(context + place, mask=tile, other=0.0).to(tl.float32), 1)
    tl.store(along + h * rows + line + i, delta, mask=own)
    do = do.to(DOT)
    log_sum = tl.load(norm + h * rows + line + i, mask=own, other=0.0)
    dq = tl.zeros((BM, WIDTH), tl.float32)
    for begin in range(0, length, BN):
        j = begin + tl.arange(0, BN)
        inside = (j < length)[:, None] & wide[None, :]
        k = tl.load(at + H * HEAD + j[:, None] * stride + c[None, :], mask=inside, other=0.0).to(DOT)
        v = tl.load(at + 2 * H * HEAD + j[:, None] * stride + c[None, :], mask=inside, other=0.0).to(DOT)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        weight = tl.where((j < length)[None, :], tl.exp(score - log_sum[:, None]), 0.0)
        dw = tl.dot(do, tl.trans(v), input_precision="ieee")
        if DROP:
            spot = ((line + i)[:, None] * ((H + 7) // 8) + h // 8) * S + j[None, :]
            byte = tl.load(bits + spot, mask=own[:, None], other=0).to(tl.int32)
            dw = tl.where((byte >> (h % 8)) & 1 != 0, dw * keep_scale, 0.0)
        ds = weight * (dw - delta[:, None])
        dq += tl.dot(ds.to(DOT), k, input_precision="ieee")
    to = grad_qkv + start * stride + h * HEAD + i[:, None] * stride + c[None, :]
    tl.store(to, (dq * scale).to(grad_qkv.dtype.element_ty), mask=tile)


@triton.jit(do_not_specialize=RUNTIME)  # type: ignore[untyped-decorator]
def _backward_keys(  # type: ignore[no-untyped-def]
    qkv, offset, bits, norm, grad, along, grad_qkv, scale, keep_scale, rows, S,
    H: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, DROP: tl.constexpr,
    DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values. Tiles lie the other way round, (keys, queries)."""
    b, h = tl.program_id(0), tl.program_id(1)
    start = tl.load(offset + b)
    length = (tl.load(offset + b + 1) - start).to(tl.int32)
    queries, line = length, start
    if FIRST:
        queries, line = tl.minimum(length, 1), start * 0 + b
    if tl.program_id(2) * BN >= length:
        return
    j = tl.program_id(2) * BN + tl.arange(0, BN)
    c = tl.arange(0, WIDTH)
    own, wide = j < length, c < HEAD
    stride = 3 * H * HEAD
    at = qkv + start * stride + h * HEAD
    tile = own[:, None] & wide[None, :]
    k = tl.load(at + H * HEAD + j[:, None] * stride + c[None, :], mask=tile, other=0.0).to(DOT)
    v = tl.load(at + 2 * H * HEAD + j[:, None] * stride + c[None, :], mask=tile, other=0.0).to(DOT)
    dk = tl.zeros((BN, WIDTH), tl.float32)
    dv = tl.zeros((BN, WIDTH), tl.float32)
    for begin in range(0, queries, BM):
        i = begin + tl.arange(0, BM)
        asked = i < queries
        inside = asked[:, None] & wide[None, :]
        q = tl.load(at + i[:, None] * stride + c[None, :], mask=inside, other=0.0).to(DOT)
        place = (line + i)[:, None] * (H * HEAD) + h * HEAD + c[None, :]
        do = tl.load(grad + place, mask=inside, other=0.0).to(DOT)
        log_sum = tl.load(norm + h * rows + line + i, mask=asked, other=0.0)
        delta = tl.load(along + h * rows + line + i, mask=asked, other=0.0)
        score = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        weight = tl.where(asked[None, :], tl.exp(score - log_sum[None, :]), 0.0)
        dw = tl.dot(v, tl.trans(do), input_precision="ieee")
        used = weight
        if DROP:
            spot = ((line + i)[None, :] * ((H + 7) // 8) + h // 8) * S + j[:, None]
            byte = tl.load(bits + spot, mask=asked[None, :], other=0).to(tl.int32)
            stays = (byte >> (h % 8)) & 1 != 0
            used = tl.where(stays, weight * keep_scale, 0.0)
            dw = tl.where(stays, dw * keep_scale, 0.0)
        dv += tl.dot(used.to(DOT), do, input_precision="ieee")
        ds = weight * (dw - delta[None, :])
        dk += tl.dot(ds.to(DOT), q, input_precision="ieee")
    to = grad_qkv + start * stride + h * HEAD + j[:, None] * stride + c[None, :]
    tl.store(to + H * HEAD, (dk * scale).to(grad_qkv.dtype.element_ty), mask=tile)
    tl.store(to + 2 * H * HEAD, dv.to(grad_qkv.dtype.element_ty), mask=tile)


_compiled = isinstance(_forward, triton.JITFunction)


@dataclass(frozen=True)
class AttentionCall:
    """A call of the kernels.

    Attributes:
        offset_B1: int64, where the sequences begin, on the device.
        longest: tokens of the longest sequence.
        key: of the R queries; None drops nothing.
        first_only: whether only the first token of each sequence asks.
    """

    offset_B1: Tensor
    heads: int
    longest: int
    key: SiteKey | None
    first_only: bool

    def forward(self, qkv_TX: Tensor, context_RD: Tensor, norm_HR: Tensor) -> None:
        """Fills the context and the logarithm of each softmax's denominator."""
        if len(context_RD):
            bits, *rest = self._arguments(qkv_TX, len(context_RD))
            grid = self._grid(self._queries(), rest[-1]["BM"])
            _forward[grid](qkv_TX, self.offset_B1, bits, context_RD, norm_HR, *rest[:-1], **rest[-1])

    def backward(
        self, qkv_TX: Tensor, context_RD: Tensor, norm_HR: Tensor, grad_RD: Tensor, grad_qkv_TX: Tensor
    ) -> None:
        """Fills the gradient of qkv; where ``first_only``, that of other queries is left as it is."""
        if len(context_RD):
            bits, *rest = self._arguments(qkv_TX, len(context_RD))
            numbers, flags = rest[:-1], rest[-1]
            along_HR = torch.empty_like(norm_HR)
            _backward_queries[self._grid(self._queries(), flags["BM"])](
                qkv_TX, self.offset_B1, bits, context_RD, norm_HR, grad_RD, along_HR, grad_qkv_TX, *numbers, **flags
            )
            _backward_keys[self._grid(self.longest, flags["BN"])](
                qkv_TX, self.offset_B1, bits, norm_HR, grad_RD, along_HR, grad_qkv_TX, *numbers, **flags
            )

    def keep_bits(self, R: int) -> Tensor:
        """bits_RGS: which weights stay, eight heads to a byte."""
        assert self.key is not None
        G, S = triton.cdiv(self.heads, 8), triton.cdiv(self.longest, KEYS) * KEYS
        bits_RGS = torch.empty(R, G, S, dtype=torch.uint8, device=self.offset_B1.device)
        token_T3, k0, k1, threshold, _ = arguments(self.key, bits_RGS)
        _draw[(triton.cdiv(R, QUERIES), G, S // KEYS)](
            token_T3, k0, k1, threshold, bits_RGS, R, S, G=G, QUERIES=QUERIES, KEYS=KEYS
        )
        return bits_RGS

    def _queries(self) -> int:
        return 1 if self.first_only else self.longest

    def _grid(self, tokens: int, block: int) -> tuple[int, int, int]:
        return len(self.offset_B1) - 1, self.heads, triton.cdiv(tokens, block)

    def _arguments(self, qkv_TX: Tensor, R: int) -> tuple[Any, ...]:
        """Bits, scale, scale of what stays, R, S, and what the kernels are compiled for."""
        bits = self.offset_B1 if self.key is None else self.keep_bits(R)
        low, head = qkv_TX.dtype == torch.bfloat16, qkv_TX.shape[1] // (3 * self.heads)
        block = 64 if low and self.longest > SHORT else 32
        flags = {
            "H": self.heads,
            "HEAD": head,
            "WIDTH": max(16, triton.next_power_of_2(head)),
            "FIRST": self.first_only,
            "DROP": self.key is not None,
            "DOT": tl.bfloat16 if low and _compiled else tl.float32,  # the interpreter can't multiply in bfloat16
            "BM": 16 if self.first_only else block,
            "BN": block,
            "num_warps": block // 16,
        }
        S = triton.cdiv(self.longest, KEYS) * KEYS
        return bits, head**-0.5, 1.0 if self.key is None else self.key.scale, R, S, flags
