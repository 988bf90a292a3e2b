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
from xsalt.errors import UserError
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
    between: str = key(
        "source",
        "mix source and switched tokens (the formula), or two switched views of an example, each with draws of its own",
        choices=("source", "views"),
    )
    where: str = key(
        "before",
        "mix word rows before position, type and LayerNorm (assumed), or after: the embedding layer's two outputs",
        choices=("before", "after"),
    )


class Mixup:
    """SALT: mix the embeddings of source and substituted tokens.

    After ``codeswitch`` it mixes what that switched; alone it chooses tokens as ``codeswitch`` would, by its own keys
    (``threshold``, ``ratio``, ...), which count only then. The batch comes back with the source in ``ids_T`` and the
    substitutions in ``mix.other_ids_T``; where nothing was switched, as it is.

    With ``between=views`` the first switched view is in ``ids_T`` and a second one, drawn by the same keys, in
    ``mix.other_ids_T``; a token that only one of them switched is mixed with its source.

    Raises:
        UserError: if it stands before ``codeswitch``.
    """

    Config = MixupConfig
    needs_table = True

    def __init__(self, config: MixupConfig, needs: Needs) -> None:
        self.config = config
        self.width = int(needs.model.config.hidden_size)
        names = list(needs.augmenters)
        self.alone = "codeswitch" not in names
        if not self.alone and "mixup" in names and names.index("mixup") < names.index("codeswitch"):
            raise UserError("augmenter mixup mixes what codeswitch switches: write --augmenter codeswitch,mixup")
        self.switcher: Switcher | None = None
        if self.alone:
            self.switcher = Switcher(config, needs, "mixup")
        elif config.between == "views":
            self.switcher = Switcher(needs.augmenters["codeswitch"], needs, "codeswitch")
        self.table = self.switcher.table if self.switcher else None

    def augment(self, batch: Batch) -> Batch:
        if self.switcher is not None and self.alone and batch.ids_T is batch.source_ids_T:
            batch = self.switcher.switch(batch)
        one = batch.with_(ids_T=batch.source_ids_T)
        other = batch
        if self.switcher is not None and self.config.between == "views":
            one, other = batch, self.switcher.again(batch)
        if one.ids_T is batch.source_ids_T and other.ids_T is batch.source_ids_T:
            return batch
        mix = Mix(other.ids_T, self._draw(batch), self.config.by == "token", self.config.where == "after")
        return batch.with_(ids_T=one.ids_T, language_T=other.language_T, mix=mix)

    def _draw(self, batch: Batch) -> torch.Tensor:
        """r of shape (B, D), (B, 1) or (T, 1): a function of (seed, epoch, example, view, dimension or position)."""
        by, alpha = self.config.by, self.config.alpha
        uid_B, view_B = batch.uid_B.cpu().numpy(), batch.view_B.cpu().numpy()
        if by == "token":
            sequence_T = batch.layout.sequence_T.cpu().numpy()
            position_T = batch.layout.position_T.cpu().numpy()
            r = uniform(batch.seed, batch.epoch, "mixup/token", uid_B[sequence_T], view_B[sequence_T], position_T)[
                :, None
            ]
        elif by == "instance":
            r = uniform(batch.seed, batch.epoch, "mixup/instance", uid_B, view_B)[:, None]
        else:
            dimensions = np.arange(self.width)
            r = uniform(batch.seed, batch.epoch, "mixup/dimension", uid_B[:, None], view_B[:, None], dimensions)
        if alpha != 1.0:  # the inverse of the distribution function: still one draw a number
            r = betaincinv(alpha, alpha, r.astype(np.float64)).astype(np.float32)
        return torch.from_numpy(r).to(batch.ids_T.device)

    def vocabulary_ids(self) -> np.ndarray:
        return self.switcher.vocabulary_ids() if self.switcher and self.alone else np.zeros(0, dtype=np.int64)

    def coverage(self, batch: Batch) -> dict[str, tuple[float, float]]:
        """What can be switched, where this augmenter switches (``Switcher.coverage``)."""
        return self.switcher.coverage(batch) if self.switcher and self.alone else {}
