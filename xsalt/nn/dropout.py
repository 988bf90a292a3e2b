"""Dropout whose masks are pure functions of (seed, update, micro-batch, site).

A resumed run therefore drops what the uninterrupted one drops. On the CPU the numbers come from numpy's Philox
generator as 16-bit integers compared with a threshold: PyTorch's ``bernoulli_`` is serial there and slower.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Drop(torch.autograd.Function):
    """x * mask * scale. The scale is a step of its own: rounded to bf16, a mask of 1 / 0.9 would be 0.2 % too small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return (x * mask).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None, None


class KeyedDropout(nn.Module):
    """Inverted dropout with probability ``p``, rounded to a multiple of 2**-16.

    Args:
        site: name of the place in the network; two sites never share a mask.

    Raises ``RuntimeError`` in training if ``set_dropout_key`` was never called: masks would repeat at every update.
    """

    def __init__(self, p: float, site: str) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout probability {p} is not in [0, 1)")
        self.p = p
        self.site = site
        self.key: tuple[int, int, int] | None = None
        self._threshold = min(round(p * 65536), 65535)

    @property
    def scale(self) -> float:
        """1 / (keep probability): what a kept value is multiplied with."""
        return 65536.0 / (65536 - self._threshold)

    @property
    def active(self) -> bool:
        """Whether it drops anything now."""
        return self.training and self._threshold > 0

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A mask of that shape: 0 where dropped, 1 elsewhere."""
        if self.key is None:
            raise RuntimeError(
                f"dropout {self.site!r} has no key: call set_dropout_key(model, seed, update, micro) first"
            )
        seed, update, micro = self.key
        site = zlib.crc32(self.site.encode())
        if device.type == "cpu":
            size = int(np.prod(shape))
            words = (site << 32 | micro & 0xFFFFFFFF, update & 0xFFFFFFFFFFFFFFFF)
            generator = np.random.Philox(
                key=np.array([seed & 0xFFFFFFFFFFFFFFFF, words[0]], np.uint64), counter=[0, 0, words[1], 0]
            )
            draws = generator.random_raw((size + 3) // 4).view(np.uint16)[:size]
            kept = torch.from_numpy(draws >= self._threshold).view(shape)
            return kept.to(dtype)
        mixed = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, update, micro, site]).generate_state(1, np.uint64)
        source = torch.Generator(device).manual_seed(int(mixed[0] >> np.uint64(1)))
        kept = torch.rand(shape, generator=source, device=device) >= self._threshold / 65536
        return kept.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        dropped: Tensor = _Drop.apply(x, self.mask(tuple(x.shape), x.dtype, x.device), self.scale)  # type: ignore[no-untyped-call]
        return dropped

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site!r}"


def set_dropout_key(module: nn.Module, seed: int, update: int, micro: int = 0) -> None:
    """Sets the key of every ``KeyedDropout`` inside: call it before each forward pass in training."""
    for child in module.modules():
        if isinstance(child, KeyedDropout):
            child.key = (seed, update, micro)
