"""SALT's online self-augmentation: cross-lingual embedding mixup (arXiv 2309.10891).

h_i = r * h_source,i + (1 - r) * h_target,i, where r is a random vector in [0, 1], drawn anew at each training step
for each instance. We mix word rows, before position and type are added (*assumed*; the paper says "embeddings").

Shapes: B sequences, T packed tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from xsalt.augmenters.switching import SwitchConfig, Switcher
from xsalt.batch import Batch, Mix
from xsalt.fields import key
from xsalt.protocols import Needs
from xsalt.randomness import uniform


@dataclass
class MixupConfig(SwitchConfig):
    ratio: float = key(
        1.0, "share of the accepted tokens that is mixed, where codeswitch doesn't choose", at_least=0.0, at_most=1.0
    )
    by: str = key(
        "dimension",
        "r for each instance and dimension (the formula), for each instance, or for each token",
        choices=("dimension", "instance", "token"),
    )
    alpha: float = key(1.0, "r is drawn from Beta(alpha, alpha): 1 is uniform, the paper's", above=0.0)


class Mixup:
    """SALT: mix the embeddings of source and substituted tokens.

    After ``codeswitch`` it mixes what that switched; alone it chooses tokens as ``codeswitch`` would, by its own keys
    (``threshold``, ``ratio``, ...), which count only then. The batch comes back with the source in ``ids_T`` and the
    substitutions in ``mix.other_ids_T``; where nothing was switched, as it is.
    """

    Config = MixupConfig
    needs_table = True

    def __init__(self, config: MixupConfig, needs: Needs) -> None:
        self.by, self.alpha = config.by, config.alpha
        self.width = int(needs.model.config.hidden_size)
        self.switcher = None if "codeswitch" in needs.augmenters else Switcher(config, needs, "mixup")

    def augment(self, batch: Batch) -> Batch:
        if self.switcher is not None and batch.ids_T is batch.source_ids_T:
            batch = self.switcher.switch(batch)
        if batch.ids_T is batch.source_ids_T:
            return batch
        mix = Mix(other_ids_T=batch.ids_T, r=self._draw(batch), by_token=self.by == "token")
        return batch.with_(ids_T=batch.source_ids_T, mix=mix)

    def _draw(self, batch: Batch) -> torch.Tensor:
        """r of shape (B, D), (B, 1) or (T, 1): a function of (seed, epoch, example, view, dimension or position)."""
        uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
        if self.by == "token":
            sequence_T = batch.layout.sequence_T.cpu().numpy()
            position_T = batch.layout.position_T.cpu().numpy()
            r = uniform(batch.seed, batch.epoch, "mixup/token", uid_B[sequence_T], view_B[sequence_T], position_T)[
                :, None
            ]
        elif self.by == "instance":
            r = uniform(batch.seed, batch.epoch, "mixup/instance", uid_B, view_B)[:, None]
        else:
            dimensions = np.arange(self.width)
            r = uniform(batch.seed, batch.epoch, "mixup/dimension", uid_B[:, None], view_B[:, None], dimensions)
        if self.alpha != 1.0:  # the inverse of the distribution function: still one draw a number
            r = betaincinv(self.alpha, self.alpha, r.astype(np.float64)).astype(np.float32)
        return torch.from_numpy(r).to(batch.ids_T.device)

    def vocabulary_ids(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64) if self.switcher is None else self.switcher.vocabulary_ids()
