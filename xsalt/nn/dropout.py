"""Dropout whose masks are pure functions of (seed, update, site, example, view, position, dimension).

A resumed run drops what the uninterrupted one drops, and so do other ranks, batches and kernels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from xsalt.batch import Batch, to_device
from xsalt.kernels.norm import dropout
from xsalt.kernels.philox import SiteKey, token_keys
from xsalt.randomness import philox


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
        self.threshold = min(round(p * 65536), 65535)
        self._key: SiteKey | None = None

    @property
    def key(self) -> SiteKey | None:
        """What a fused kernel needs to drop here; None if nothing is dropped now."""
        if not self.training or self.threshold == 0:
            return None
        if self._key is None:
            raise RuntimeError(f"dropout {self.site!r} has no key: call set_dropout_key first")
        return self._key

    def key_of(self, rows: Tensor) -> SiteKey | None:
        """``key`` for states of the tokens numbered in ``rows`` alone."""
        key = self.key
        return key and key.of(rows)

    def forward(self, x_TN: Tensor, rows: Tensor | None = None) -> Tensor:
        """Drops from states of all tokens of the batch, or of those numbered in ``rows``."""
        return dropout(x_TN, self.key if rows is None else self.key_of(rows))

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site!r}"


def set_dropout_key(module: nn.Module, seed: int, update: int, batch: Batch) -> None:
    """Sets the key of every ``KeyedDropout`` inside: call it before each forward pass in training."""
    sites = [child for child in module.modules() if isinstance(child, KeyedDropout) and child.threshold]
    if not sites:
        return
    layout = batch.layout
    uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
    keys = token_keys(uid_B, view_B, layout.sequences, layout.positions)
    token_T3 = to_device(torch.from_numpy(keys), layout.device)
    names = np.array([zlib.crc32(child.site.encode()) for child in sites])
    k0, k1, *_ = philox((update, update >> 32, names, 0), (seed, seed >> 32))
    for child, first, second in zip(sites, k0, k1, strict=True):
        child._key = SiteKey(int(first), int(second), child.threshold, token_T3)
