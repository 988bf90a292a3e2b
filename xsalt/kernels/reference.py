"""Embedding mixup in plain PyTorch: what the fused kernels must equal.

Shapes: A rows of the (active) table, D width, T packed tokens, B sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_rows(weight_AD: Tensor, row_T: Tensor, other_T: Tensor, r: Tensor, r_row_T: Tensor | None) -> Tensor:
    """r * weight[row] + (1 - r) * weight[other] for each token: the embedding mixup of SALT (arXiv 2309.10891).

    Args:
        row_T, other_T: rows of the source tokens and of their substitutions.
        r: (B, D) or (B, 1) with ``r_row_T``, the sequence of each token; (T, 1) or (T, D) without it.

    A token that is its own substitution keeps its row bit by bit, whatever r is.
    """
    # One look-up of both: two would each fill a gradient as large as the table.
    source_TD, substitution_TD = F.embedding(torch.cat([row_T, other_T]), weight_AD).chunk(2)
    r_TX = r if r_row_T is None else r[r_row_T]
    return torch.lerp(substitution_TD, source_TD, r_TX.to(weight_AD.dtype).expand_as(source_TD))
