"""Self-attention over packed tokens.

Shapes: B sequences, T packed tokens, R rows (T or B), D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.kernels.attention import attention
from xsalt.nn.dropout import KeyedDropout


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
        """x_TD -> x_TD, or x_BD of the first token of each sequence."""
        context_RD = attention(self.qkv(x_TD), layout, self.heads, self.dropout.key, first_only=first_only)
        projected_RD: Tensor = self.out(context_RD)
        return projected_RD
