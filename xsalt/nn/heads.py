"""What stands on top of the encoder: classifiers and the masked-language-model head.

Shapes: B sequences, T packed tokens, N positions, D width, C classes, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Layout
from xsalt.nn.dropout import KeyedDropout


class FirstTokenClassifier(nn.Module):
    """tanh(dense(h of the first token)), dropout, linear: the classifier of BERT and of XLM-R.

    Args:
        drop_input: drop the first token's state too, as XLM-R does and BERT does not.
    """

    def __init__(self, width: int, classes: int, dropout: float, drop_input: bool) -> None:
        super().__init__()
        self.input_dropout = KeyedDropout(dropout if drop_input else 0.0, "classifier/input")
        self.dense = nn.Linear(width, width)
        self.dropout = KeyedDropout(dropout, "classifier/pooled")
        self.out = nn.Linear(width, classes)

    def forward(self, h_RD: Tensor, layout: Layout) -> Tensor:
        """``h_RD``: states of first tokens (B, D), or of all (T, D)."""
        first_BD = h_RD if len(h_RD) == layout.size else h_RD.index_select(0, layout.first_B)
        pooled_BD = torch.tanh(self.dense(self.input_dropout(first_BD, layout.first_B)))
        logits_BC: Tensor = self.out(self.dropout(pooled_BD, layout.first_B))
        return logits_BC.float()


class MeanClassifier(nn.Module):
    """Dropout and a linear layer on the mean of all tokens of a sequence."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = KeyedDropout(dropout, "classifier/pooled")
        self.out = nn.Linear(width, classes)

    def forward(self, h_TD: Tensor, layout: Layout) -> Tensor:
        logits_BC: Tensor = self.out(self.dropout(mean_over_tokens(h_TD, layout), layout.first_B))
        return logits_BC.float()


def mean_over_tokens(h_TD: Tensor, layout: Layout) -> Tensor:
    """mean_BD of the tokens of each sequence, summed in float32 at least."""
    wide = h_TD.float() if h_TD.dtype in (torch.bfloat16, torch.float16) else h_TD
    sum_BD = wide.new_zeros(layout.size, wide.shape[1]).index_add(0, layout.sequence_T, wide)
    return sum_BD / layout.length_B.to(wide.dtype)[:, None]


class MLMHead(nn.Module):
    """dense, activation, LayerNorm; then the product with the tied word rows plus a bias for every vocabulary id.

    Args:
        activation: ``gelu`` (exact, that of BERT and XLM-R) or ``none``. A new head without one starts with the
            identity as its dense layer: the nearest word row then wins from the first update on.
    """

    def __init__(self, width: int, vocab_size: int, layer_norm_eps: float, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, h_ND: Tensor) -> Tensor:
        """What the decoder multiplies with the word rows, of shape (N, D)."""
        x_ND = self.dense(h_ND)
        transformed_ND: Tensor = self.norm(F.gelu(x_ND) if self.activation == "gelu" else x_ND)
        return transformed_ND

    def decode(self, transformed_ND: Tensor, rows_VD: Tensor, ids_V: Tensor | None) -> Tensor:
        """logits_NV, float32, for the ids whose rows are given (None: all of them in order)."""
        bias_V = self.bias if ids_V is None else F.embedding(ids_V, self.bias[:, None])[:, 0]
        return F.linear(transformed_ND, rows_VD).float() + bias_V
