"""The Transformer encoder of the BERT family: post-norm layers over packed tokens.

Shapes: T packed tokens, D width. (Vaswani et al. 2017, section 3.1; Devlin et al. 2019, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.kernels import cpu
from xsalt.kernels.feedforward import gelu_linear
from xsalt.kernels.norm import dropout_add_norm
from xsalt.nn.attention import SelfAttention
from xsalt.nn.dropout import KeyedDropout

FILLED_TO = 32
"""On the CPU, tokens are filled up with rows of zeros to a multiple of this. The matrix library compiles a product for
each shape, and packed batches hardly ever have the same number of tokens twice: this way it meets old ones again."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder.

    Attributes:
        max_positions: how many positions a sequence may use. The table has ``position_offset`` rows more.
        position_offset: row of the first position: 0 in BERT, padding id + 1 in XLM-R.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    ffn_size: int
    max_positions: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_id: int
    position_offset: int
    dropout: float = 0.1
    attention_dropout: float = 0.1


class EncoderLayer(nn.Module):
    """x = norm(x + dropout(attention(x))); x = norm(x + dropout(ffn(x))), with the exact GELU."""

    def __init__(self, config: EncoderConfig, site: str) -> None:
        super().__init__()
        D = config.hidden_size
        self.attention = SelfAttention(D, config.heads, config.attention_dropout, site)
        self.attention_dropout = KeyedDropout(config.dropout, f"{site}/attention_output")
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(D, config.ffn_size)
        self.ffn_out = nn.Linear(config.ffn_size, D)
        self.ffn_dropout = KeyedDropout(config.dropout, f"{site}/ffn_output")
        self.ffn_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)

    def forward(self, x_TD: Tensor, low_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """x_TD twice, in and out: as the residual stream has it, and as the matrix products read it (bf16)."""
        attended_TD = self.attention(low_TD, layout)
        x_TD, low_TD = _add_norm(x_TD, attended_TD, self.attention_norm, self.attention_dropout)
        fed_TD = gelu_linear(self.ffn_in(low_TD), self.ffn_out.weight, self.ffn_out.bias)
        return _add_norm(x_TD, fed_TD, self.ffn_norm, self.ffn_dropout)


def _add_norm(x_TD: Tensor, y_TD: Tensor, norm: nn.LayerNorm, dropout: KeyedDropout) -> tuple[Tensor, Tensor]:
    return dropout_add_norm(x_TD, y_TD, norm.weight, norm.bias, norm.eps, dropout.key)


class Encoder(nn.Module):
    """A stack of layers that hands out the hidden layers asked for."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, f"layer{i}") for i in range(config.layers))

    def forward(
        self, x_TD: Tensor, layout: Layout, keep: Sequence[int] = (), last: int | None = None
    ) -> dict[int, Tensor]:
        """Layer number -> h_TD for the layers in ``keep`` (0 is the input x_TD) and always the last one.

        ``last``: stop after this layer, for those who read none above it (None: run all).
        """
        last = len(self.layers) if last is None else last
        wrong = [k for k in keep if not 0 <= k <= last]
        if wrong:
            raise ValueError(f"hidden layers {wrong} asked for, but the encoder has layers 0 to {last}")
        wanted = {*keep, last}
        hidden = {0: x_TD} if 0 in wanted else {}
        T = len(x_TD)
        if cpu.takes(x_TD) and T % FILLED_TO:
            x_TD = F.pad(x_TD, (0, 0, 0, -T % FILLED_TO))
        low_TD = x_TD
        for number, layer in enumerate(self.layers[:last], start=1):
            x_TD, low_TD = layer(x_TD, low_TD, layout)
            if number in wanted:
                hidden[number] = x_TD[:T]
        return hidden
