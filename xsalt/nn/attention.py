"""Self-attention over packed tokens.

Shapes: B sequences, T packed tokens, R rows (T or B), D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.kernels import cpu
from xsalt.kernels.attention import attend
from xsalt.nn.dropout import KeyedDropout

FILLED_TO = 32
"""On the CPU, tokens are filled up with rows of zeros to a multiple of this. The matrix library compiles a product for
each shape, and packed batches hardly ever have the same number of tokens twice: this way it meets old ones again."""


def filled_up(x_TD: Tensor) -> Tensor:
    """The states with rows of zeros after them, where that helps the matrix library."""
    missing = -len(x_TD) % FILLED_TO if cpu.takes(x_TD) else 0
    return F.pad(x_TD, (0, 0, 0, missing)) if missing else x_TD


class SelfAttention(nn.Module):
    """Multi-head self-attention; ``qkv`` holds the rows of query, key and value one below the other, (3D, D)."""

    def __init__(self, width: int, heads: int, dropout: float, site: str) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = KeyedDropout(dropout, f"{site}/attention")

    def forward(self, x_TD: Tensor, layout: Layout, *, first_only: bool = False) -> Tensor:
        """x_TD -> x_TD, or x_BD of the first token of each sequence, filled up."""
        context_RD = attend(self.qkv(x_TD), layout, self.heads, self.dropout.key, first_only=first_only)
        projected_RD: Tensor = self.out(filled_up(context_RD))
        return projected_RD
