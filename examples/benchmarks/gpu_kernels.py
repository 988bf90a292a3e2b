"""The kernels for CUDA against the reference, and their speed against PyTorch's operators. See ``gpu.py``.

Shapes: T packed tokens, B sequences, S longest, R rows, D width, H heads, A rows of the table.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt import kernels
from xsalt.batch import Layout
from xsalt.kernels import embedding, reference
from xsalt.kernels.attention import attention
from xsalt.kernels.embedding import embed
from xsalt.kernels.norm import add_and_norm
from xsalt.kernels.philox import SiteKey, keep_attention, keep_hidden, token_keys

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TYPES = ((torch.float32, 1e-5), (torch.bfloat16, 2e-2))
"""Types, and how far results in them may be from float64."""


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], tiny: bool) -> float:
    """Median over rounds of as many calls as take some 20 ms, after a warm-up."""
    for _ in range(0 if tiny else 3):
        call()
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    once = time.perf_counter() - start
    taken, calls = [once], max(1, min(50, int(0.02 / once)))
    for _ in range(0 if tiny else 6):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise()
        taken.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(taken)


def log_normal_lengths(count: int, mean: float, most: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(np.log(mean) - 0.125, 0.5, count), 8, most).astype(np.int64)


def layout_of(lengths: Any) -> Layout:
    return Layout(np.array(lengths, dtype=np.int64), DEVICE)


def key_of(layout: Layout, p: float) -> SiteKey | None:
    uid_B = np.arange(layout.size) * 1_000_003
    token_T3 = torch.from_numpy(token_keys(uid_B, uid_B * 0, layout.sequences, layout.positions)).to(DEVICE)
    return SiteKey(0x9ABCDEF0, 0x13579BDF, round(p * 65536), token_T3) if p else None


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


@contextmanager
def using(name: str) -> Iterator[None]:
    """The kernels ``triton`` (on the CPU: by its interpreter) or ``reference``."""
    before = kernels.selected(), kernels.triton_or_reference, embedding._kernels_for
    if name == "reference":
        kernels.select(name)
    else:
        kernels.triton_or_reference = lambda device: name
        embedding._kernels_for = lambda weight_AD: name
    try:
        yield
    finally:
        kernels.select(before[0])
        kernels.triton_or_reference, embedding._kernels_for = before[1:]


def distance(mine: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    mine, theirs = mine.detach().double(), theirs.detach().double()
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def distances(mine: list[Tensor], theirs: list[Tensor]) -> list[float]:
    return [distance(*pair) for pair in zip(mine, theirs, strict=True)]


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, leaves, normal(*out.shape, seed=9).to(out.dtype))]


def exact(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


class Embedding:
    """The embedding of a layout with or without mixup, as a kernel and as one writes it in PyTorch."""

    def __init__(self, rows: int, D: int, layout: Layout, mix: bool, key: SiteKey | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        T, self.layout, self.key, self.mix = layout.tokens, layout, key, mix
        self.row_T, self.other_T = (torch.randint(rows, (T,), generator=generator).to(DEVICE) for _ in range(2))
        self.r_BD = torch.rand(layout.size, D, generator=generator).to(DEVICE)
        self.type_T = (layout.position_T > 20).long()
        self.leaves = [normal(rows, D), normal(512, D, seed=1), normal(2, D, seed=2), normal(D, seed=3), normal(D)]
        self.leaves = [leaf.requires_grad_() for leaf in self.leaves]
        self.grad_TD = normal(T, D, seed=4)

    def fused(self) -> list[Tensor]:
        """The output, and the gradients of table, position, type, scale and shift."""
        table, position, types, gamma, beta = self.leaves
        places = (position, self.layout.position_T, types, self.type_T, gamma, beta, 1e-12)
        mix = {"other_T": self.other_T, "r": self.r_BD, "r_row_T": self.layout.sequence_T} if self.mix else {}
        out = embed(table, self.row_T, *places, self.key, **mix)
        return [out, *torch.autograd.grad(out, self.leaves, self.grad_TD)]

    def eager(self) -> list[Tensor]:
        """The same, mixed and without dropout."""
        table, position, types, gamma, beta = self.leaves
        share = self.r_BD[self.layout.sequence_T]
        mixed = share * F.embedding(self.row_T, table) + (1 - share) * F.embedding(self.other_T, table)
        x = mixed + F.embedding(self.layout.position_T, position) + F.embedding(self.type_T, types)
        out = F.layer_norm(x, (x.shape[1],), gamma, beta, 1e-12)
        return [out, *torch.autograd.grad(out, self.leaves, self.grad_TD)]


def _check_attention(layout: Layout, tiny: bool) -> Iterator[tuple[str, Any]]:
    from xsalt.kernels.triton.attention import AttentionCall

    H, key = 12, key_of(layout, 0.1)
    bits_RGS = AttentionCall(layout.offset_B1, H, layout.longest, key, False).keep_bits(layout.tokens)
    head_H = torch.arange(H, device=DEVICE)
    keep_HTS = bits_RGS[:, head_H // 8].permute(1, 0, 2) >> (head_H % 8)[:, None, None] & 1
    assert key is not None
    yield (
        "masks of attention",
        torch.equal(keep_HTS[..., : layout.longest] == 1, keep_attention(key, H, layout.longest)),
    )
    low, wide = torch.bfloat16, torch.float32
    cases = [(32, low, 0.1, False), (32, low, 0.1, True), (32, wide, 0.1, False), (32, wide, 0.1, True)]
    if not tiny:  # every case compiles kernels of its own
        cases += [(32, low, 0.0, False), (32, wide, 0.0, False), (64, low, 0.1, False), (64, low, 0.0, False)]
        cases += [(20, low, 0.1, False), (20, wide, 0.1, False)]
    for d, dtype, p, first in cases:
        qkv, site = normal(layout.tokens, 3 * H * d).to(dtype).requires_grad_(), key_of(layout, p)
        with using("triton"):
            mine = with_gradients(attention(qkv, layout, H, site, first_only=first), [qkv])
        leaves = exact([qkv])
        context = reference.attention(leaves[0], layout, H, site)
        theirs = with_gradients(context[layout.first_B] if first else context, leaves)
        name = f"{layout.longest} tokens, d={d} p={p} {str(dtype)[6:]}{' first tokens' if first else ''}"
        yield f"attention, {name}", [*distances(mine, theirs), dict(TYPES)[dtype]]


def _check_norm(layout: Layout, D: int) -> Iterator[tuple[str, Any]]:
    T, key = layout.tokens, key_of(layout, 0.1)
    assert key is not None
    parts = [normal(T, D), normal(T, D, seed=1), normal(D, seed=2), normal(D, seed=3)]
    for dtype, bound in TYPES:
        leaves = [part.clone().requires_grad_() for part in (parts[0], parts[1].to(dtype), *parts[2:])]
        leaves64 = exact(leaves)
        with using("triton"):
            mine = with_gradients(add_and_norm(*leaves, 1e-12, key)[0], leaves)
        theirs = with_gradients(add_and_norm(*leaves64, 1e-12, key)[0], leaves64)
        yield f"norm D={D} {str(dtype)[6:]}", [*distances(mine, theirs), bound]
    y, one = parts[1].clone().requires_grad_(), torch.ones(D, device=DEVICE)
    with using("triton"):
        _, grad = with_gradients(add_and_norm(parts[0], y, one, one, 1e-12, key)[0], [y])
    yield f"masks of hidden states D={D}", torch.equal(grad != 0, keep_hidden(key, D))


def check(tiny: bool) -> dict[str, Any]:
    """Masks bit for bit, outputs and gradients: distances from the reference, the last number is the bound."""
    found: dict[str, Any] = {}
    layout = layout_of((34, 1) if tiny else (40, 1, 512, 64, 129, 33))
    found.update(_check_attention(layout, tiny))
    if not tiny:
        found.update(_check_attention(layout_of((40, 1, 64, 17)), True))
    for D in (33,) if tiny else (33, 384, 768, 1024):
        found.update(_check_norm(layout, D))
    for D in (33,) if tiny else (33, 384, 768):
        for mix in (False, True):
            case = Embedding(64, D, layout, mix, key_of(layout, 0.1))
            with using("triton"):
                mine = case.fused()
            with using("reference"):
                theirs = case.fused()
            found[f"embedding D={D}{' mixed' if mix else ''}"] = [*distances(mine, theirs), 2e-5]
    failed = [n for n, v in found.items() if v is False or (isinstance(v, list) and not max(v[:-1]) <= v[-1])]
    for name in failed:
        print(f"  FAILED: {name}: {found[name]}", file=sys.stderr)
    return {"failed": failed, **found}


def measure_embedding(tiny: bool) -> dict[str, Any]:
    """Forward and backward with mixup, against eager PyTorch; gradients of the table are dense on both sides."""
    found = {}
    cases = [(2, 300, 64)] if tiny else [(B, A, D) for D in (384, 768) for B in (32, 256) for A in (250_037, 60_000)]
    for B, rows, D in cases:
        case = Embedding(rows, D, layout_of(np.full(B, 2 if tiny else 64)), True)
        name = f"{B} sequences, D={D}, {rows:,} rows"
        with using("triton"):
            found[name] = {"fused ms": milliseconds(case.fused, tiny), "eager ms": milliseconds(case.eager, tiny)}
            case.key = key_of(case.layout, 0.1)
            found[name]["fused with dropout ms"] = milliseconds(case.fused, tiny)
    return found


def _attend(qkv: Tensor, layout: Layout, heads: int, key: SiteKey | None, grad: Tensor) -> object:
    return torch.autograd.grad(attention(qkv, layout, heads, key), qkv, grad)


def _attend_padded(padded: list[Tensor], inside: Tensor, p: float, grad: Tensor) -> object:
    out = F.scaled_dot_product_attention(*padded, attn_mask=inside, dropout_p=p)
    return torch.autograd.grad(out, padded, grad)


def measure_attention(tiny: bool) -> dict[str, Any]:
    """Forward and backward in bfloat16, packed, against SDPA on padded input with a mask."""
    found = {}
    cases = (
        [(3, 9, 2, 16)]
        if tiny
        else [(B, mean, H, d) for H, d in ((12, 32), (12, 64)) for B, mean in ((256, 40), (32, 300))]
    )
    for B, mean, H, d in cases:
        layout = layout_of(log_normal_lengths(B, mean, 512))
        qkv = normal(layout.tokens, 3 * H * d).bfloat16().requires_grad_()
        grad = normal(layout.tokens, H * d).bfloat16()
        padded = [normal(B, H, layout.longest, d, seed=n).bfloat16().requires_grad_() for n in range(3)]
        grad_padded = normal(B, H, layout.longest, d).bfloat16()
        inside = (torch.arange(layout.longest, device=DEVICE) < layout.length_B[:, None])[:, None, None]
        row = found[f"{B} sequences of {mean} tokens on average, {H} heads of {d}"] = {}
        for p in (0.0, 0.1):
            ours = partial(_attend, qkv, layout, H, key_of(layout, p), grad)
            theirs = partial(_attend_padded, padded, inside, p, grad_padded)
            with using("triton"):
                row[f"fused, dropout {p} ms"] = milliseconds(ours, tiny)
            row[f"SDPA padded, dropout {p} ms"] = milliseconds(theirs, tiny)
    return found


def measure_norm(tiny: bool) -> dict[str, Any]:
    """LayerNorm(residual + dropout(y)) with y in bfloat16, forward and backward, against eager PyTorch."""
    found = {}
    for T, D in [(4, 64)] if tiny else [(1_300, 384), (10_000, 384), (10_000, 768)]:
        key = key_of(layout_of(np.full(T, 1)), 0.1)
        leaves = [normal(T, D), normal(T, D, seed=1).bfloat16(), normal(D, seed=2), normal(D, seed=3)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        grad, dropout = normal(T, D, seed=4), nn.Dropout(0.1)

        def ours(leaves: list[Tensor] = leaves, key: SiteKey | None = key, grad: Tensor = grad) -> object:
            out, low = add_and_norm(*leaves, 1e-12, key)
            return torch.autograd.grad([out, low], leaves, [grad, grad.to(low.dtype)])

        def theirs(leaves: list[Tensor] = leaves, dropout: nn.Dropout = dropout, grad: Tensor = grad) -> object:
            out = F.layer_norm(leaves[0] + dropout(leaves[1]), leaves[2].shape, *leaves[2:], 1e-12)
            return torch.autograd.grad([out, out.bfloat16()], leaves, [grad, grad.bfloat16()])

        with using("triton"):
            found[f"{T:,} rows, D={D}"] = {"fused ms": milliseconds(ours, tiny), "eager ms": milliseconds(theirs, tiny)}
    return found
