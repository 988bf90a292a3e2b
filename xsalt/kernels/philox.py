"""Dropout masks from a counter-based generator: the definition that every kernel follows bit for bit.

Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as 1, 2, 3*, SC 2011). The key is that of
a dropout site at one update; the counter is (block, position and view, example number), so a mask depends on which
token it is for and never on the batch, the rank or the padding. A call gives eight 16-bit numbers:

- hidden states: of 128 dimensions from 128 c on, the first 16 have number 0 of the blocks 16 c to 16 c + 15, the
  next 16 have number 1 of the same blocks, and so on;
- attention: number h % 8 of block (h // 8) << 16 | key position is that of head h.

An element is kept if its number is at least ``threshold`` = p * 65536.

Shapes: T tokens, N elements of a row, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class SiteKey:
    """What a dropout site needs at one update.

    Attributes:
        k0, k1: the generator's key, 32 bits each.
        threshold: of the 65,536 numbers, those below it drop an element; 0 is no dropout.
        token_T3: int32 bit patterns of the counter's last three words, a row for each token.
    """

    k0: int
    k1: int
    threshold: int
    token_T3: Tensor

    @property
    def scale(self) -> float:
        """1 / (keep probability): what a kept value is multiplied with."""
        return 65536.0 / (65536 - self.threshold)

    def of(self, rows: Tensor) -> SiteKey:
        """The key for the tokens numbered in ``rows`` alone."""
        return replace(self, token_T3=self.token_T3.index_select(0, rows))


def token_keys(uid_B: np.ndarray, view_B: np.ndarray, sequence_T: np.ndarray, position_T: np.ndarray) -> np.ndarray:
    """(T, 3) int32: position | view << 16, low and high word of the example number."""
    uid_T, view_T = uid_B.astype(np.uint64)[sequence_T], view_B.astype(np.uint64)[sequence_T]
    words = (position_T.astype(np.uint64) | view_T << np.uint64(16), uid_T, uid_T >> np.uint64(32))
    return np.stack(words, axis=1).astype(np.uint32).view(np.int32)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], k0: int, k1: int) -> list[Tensor]:
    """Four int64 tensors of 32-bit words for counters (int64, below 2**32) that broadcast; on any device."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32) & _WORD ^ c1 ^ k0,
            p1 & _WORD,
            (p0 >> 32) & _WORD ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]  # after two rounds every word has the common shape


def _numbers(block: Tensor, key: SiteKey) -> Tensor:
    """(T, blocks, 8) 16-bit numbers as int64, for block numbers of shape (blocks,)."""
    words_T3 = key.token_T3.to(torch.int64) & _WORD
    c1, c2, c3 = (words_T3[:, None, i] for i in range(3))
    words = philox((block[None, :], c1, c2, c3), key.k0, key.k1)
    return torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=-1)


def keep_hidden(key: SiteKey, width: int) -> Tensor:
    """keep_TN for N = width: True where a value of a hidden state stays."""
    block = torch.arange((width + 127) // 128 * 16, device=key.token_T3.device)
    numbers = _numbers(block, key)
    return numbers.view(len(numbers), len(block) // 16, 16, 8).transpose(2, 3).flatten(1)[:, :width] >= key.threshold


def keep_attention(key: SiteKey, heads: int, keys: int) -> Tensor:
    """keep_HTN for N = keys, positions in the token's own sequence: True where an attention weight stays."""
    device = key.token_T3.device
    group = torch.arange((heads + 7) // 8, device=device)
    block = (group[:, None] << 16 | torch.arange(keys, device=device)).flatten()
    numbers = _numbers(block, key).view(-1, len(group), keys, 8)
    return numbers.permute(1, 3, 0, 2).flatten(0, 1)[:heads] >= key.threshold
