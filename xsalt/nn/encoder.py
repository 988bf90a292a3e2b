"""The Transformer encoder of the BERT family: post-norm layers over packed tokens.

Shapes: T packed tokens, D width. (Vaswani et al. 2017, section 3.1; Devlin et al. 2019, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.kernels.layer import LayerCall, LayerWeights, encoder_layer, filled_up, takes
from xsalt.kernels.norm import add_and_norm
from xsalt.kernels.philox import SiteKey
from xsalt.nn.attention import SelfAttention
from xsalt.nn.dropout import KeyedDropout
from xsalt.protocols import FIRST


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

    def forward(
        self, x_TD: Tensor, low_TD: Tensor, layout: Layout, *, first_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x_TD twice, in and out: as the residual stream has it, and as the matrix products read it (bf16).

        ``first_only``: out come the states of the first token of each sequence alone, x_BD. Only attention reads
        tokens other than its own, so the rest is computed for those tokens alone.
        """
        if takes(x_TD):
            low = None if low_TD.dtype == x_TD.dtype else low_TD  # by dtype: FSDP hands each on as another tensor
            out_RD, low_RD = encoder_layer(x_TD, low, self._weights(), self._call(layout, first_only))
            return out_RD, out_RD if low_RD is None else low_RD
        attention_key, ffn_key = self._keys(layout, first_only)
        attended_RD = self.attention(low_TD, layout, first_only=first_only)
        x_RD = x_TD.index_select(0, layout.first_B) if first_only else x_TD
        x_RD, low_RD = self._add_and_norm(x_RD, attended_RD, self.attention_norm, attention_key)
        fed_RD = self.ffn_out(F.gelu(self.ffn_in(low_RD)))
        return self._add_and_norm(x_RD, fed_RD, self.ffn_norm, ffn_key)

    @staticmethod
    def _add_and_norm(x_RD: Tensor, y_RD: Tensor, norm: nn.LayerNorm, key: SiteKey | None) -> tuple[Tensor, Tensor]:
        return add_and_norm(x_RD, y_RD, norm.weight, norm.bias, norm.eps, key)

    def _keys(self, layout: Layout, first_only: bool) -> tuple[SiteKey | None, SiteKey | None]:
        """Of what is added to the residual stream after attention and after the feed-forward layer."""
        first, second = (
            dropout.key_of(layout.first_B) if first_only else dropout.key
            for dropout in (self.attention_dropout, self.ffn_dropout)
        )
        return first, second

    def _weights(self) -> LayerWeights:
        parts = (self.attention.qkv, self.attention.out, self.attention_norm, self.ffn_in, self.ffn_out, self.ffn_norm)
        return LayerWeights(*(tensor for part in parts for tensor in (part.weight, part.bias)))

    def _call(self, layout: Layout, first_only: bool) -> LayerCall:
        eps, weights_key = self.ffn_norm.eps, self.attention.dropout.key
        return LayerCall(layout, self.attention.heads, eps, first_only, weights_key, *self._keys(layout, first_only))


class Encoder(nn.Module):
    """A stack of layers that hands out the hidden layers asked for."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, f"layer{i}") for i in range(config.layers))

    def forward(
        self,
        x_TD: Tensor,
        layout: Layout,
        keep: Sequence[int] = (),
        last: int | None = None,
        *,
        first_only: bool = False,
    ) -> dict[int, Tensor]:
        """Layer number -> h_TD for the layers in ``keep`` (0 is the input x_TD) and always the last one.

        Args:
            last: stop after this layer, for those who read none above it (None: run all).
            first_only: unless it is in ``keep``, compute the last layer for the first token of each sequence alone and
                give it as ``FIRST``, h_BD.
        """
        last = len(self.layers) if last is None else last
        wrong = [k for k in keep if not 0 <= k <= last]
        if wrong:
            raise ValueError(f"hidden layers {wrong} asked for, but the encoder has layers 0 to {last}")
        wanted = {*keep, last}
        narrow = last if first_only and last > 0 and last not in keep else None
        hidden = {0: x_TD} if 0 in wanted else {}
        T = len(x_TD)
        x_TD = low_TD = filled_up(x_TD) if takes(x_TD) else x_TD
        for number, layer in enumerate(self.layers[:last], start=1):
            if number == narrow:
                x_BD, _ = layer(x_TD, low_TD, layout, first_only=True)
                hidden[FIRST] = x_BD[: layout.size]
                break
            x_TD, low_TD = layer(x_TD, low_TD, layout)
            if number in wanted:
                hidden[number] = x_TD[:T]
        return hidden

    def weight_products(
        self, layout: Layout, keep: Sequence[int] = (), last: int | None = None, *, first_only: bool = False
    ) -> int:
        """Products of a weight of a matrix and a number of a state that such a ``forward`` computes."""
        last = len(self.layers) if last is None else last
        products = 0
        for number, layer in enumerate(self.layers[:last], start=1):
            sizes = {name: p.numel() for name, p in layer.named_parameters() if p.ndim == 2}
            narrow = first_only and number == last and last not in keep
            products += sum((layout.size if narrow and "qkv" not in n else layout.tokens) * s for n, s in sizes.items())
        return products
