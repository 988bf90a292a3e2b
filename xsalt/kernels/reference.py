"""The kernels in plain PyTorch: what every faster implementation must equal.

Shapes: A rows of the (active) table, D width, T packed tokens, B sequences, S longest, H heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt.batch import Layout
from xsalt.kernels.philox import SiteKey, keep_attention, keep_hidden


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


def dropout(x_TN: Tensor, key: SiteKey | None) -> Tensor:
    """Inverted dropout of hidden states. The scale is a step of its own: in bfloat16 1 / 0.9 is 0.2 % small."""
    if key is None:
        return x_TN
    return x_TN * keep_hidden(key, x_TN.shape[-1]).to(x_TN.dtype) * key.scale


def attention(qkv_TX: Tensor, layout: Layout, heads: int, key: SiteKey | None) -> Tensor:
    """dropout(softmax(q k' / sqrt(d))) v within each sequence: (T, 3 H d) -> (T, H d).

    On CUDA without dropout PyTorch's fused attention does it.
    """
    B, S, d = layout.size, layout.longest, qkv_TX.shape[1] // (3 * heads)
    padded = qkv_TX
    if not layout.equal:
        padded = qkv_TX.new_zeros(B * S, qkv_TX.shape[1]).index_copy(0, layout.padded_T, qkv_TX)
    q, k, v = padded.view(B, S, 3, heads, d).permute(2, 0, 3, 1, 4).unbind(0)
    inside_B11S = (torch.arange(S, device=qkv_TX.device) < layout.length_B[:, None])[:, None, None, :]
    if qkv_TX.is_cuda and key is None:
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=None if layout.equal else inside_B11S)
    else:
        scores = torch.matmul(q, k.transpose(-1, -2)) * d**-0.5
        weights = torch.softmax(scores.masked_fill(~inside_B11S, float("-inf")), -1)
        if key is not None:
            keep_HTS = keep_attention(key, heads, S)
            keep_HRS = keep_HTS
            if not layout.equal:
                keep_HRS = keep_HTS.new_zeros(heads, B * S, S).index_copy(1, layout.padded_T, keep_HTS)
            weights = weights * keep_HRS.view(heads, B, S, S).transpose(0, 1).to(weights.dtype) * key.scale
        context = torch.matmul(weights, v)
    context_RX = context.transpose(1, 2).reshape(B * S, heads * d)
    return context_RX if layout.equal else context_RX.index_select(0, layout.padded_T)
