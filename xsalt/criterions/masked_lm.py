"""Masked language modelling over the whole vocabulary (Devlin et al. 2019, section 3.1), to compare with.

``MaskedLM`` also is what ``target_language_mlm`` builds on: which positions are predicted and masked, in place or in
copies of the sequences.

Shapes: T packed tokens, N predicted positions, D width, V vocabulary that is predicted from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xsalt.batch import IGNORE, MASKED_VIEW, Batch, MLMTargets, join
from xsalt.errors import UserError
from xsalt.fields import key
from xsalt.protocols import Hidden, Loss, Needs
from xsalt.randomness import uniform

MAX_LOGITS = 1 << 25
"""Logits of a batch, all languages together, that are kept for the backward pass (128 MiB): where there are more, they
are made chunk by chunk, and anew in the backward pass."""
MIXED_SHARE = 0.8
"""Share of masked positions where ``positions=mixed`` (*assumed*, after BERT's; none are replaced at random)."""


@dataclass
class MaskedLMConfig:
    weight: float = key(1.0, "factor on the mean loss, beside other criterions", at_least=0.0)
    mask_rate: float = key(0.15, "share of the tokens that are predicted (assumed, BERT's)", above=0.0, at_most=1.0)
    positions: str = key(
        "masked",
        "predict at masked positions, at unmasked ones, or mixed: 80 % masked",
        choices=("masked", "unmasked", "mixed"),
    )


class MaskedLM:
    """Cross-entropy over all V pieces of the vocabulary at some positions, counted by predicted token.

    Every row of the word table is trained. Alone it masks the batch in place and ignores labels. Beside a criterion
    that needs the sequences as they are it appends a masked copy of each, without a label.

    Raises:
        UserError: by ``prepare``, if another such criterion has chosen what the batch predicts.
    """

    Config = MaskedLMConfig
    needs_mlm_head = True

    def __init__(self, config: MaskedLMConfig, needs: Needs) -> None:
        self.weight = config.weight
        self.config = config
        self.alone = needs.alone
        self.mask_id = int(needs.tokenizer.mask_id)
        self.vocab_size = int(needs.tokenizer.vocab_size)
        self.layers: Sequence[int] = (int(needs.model.mlm_layer),)

    def vocabulary_ids(self) -> npt.NDArray[np.int64]:
        return np.arange(self.vocab_size)

    def predictable(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which tokens may be predicted, before special ones are taken out. Shape (T,)."""
        return np.ones(batch.layout.tokens, dtype=np.bool_)

    def groups(
        self, targets: MLMTargets, languages: tuple[str, ...], model: Any
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Predictions that share a vocabulary: their numbers, its ids (None: all) and the targets' places in it.

        ``languages``: what ``language_N`` of the targets indexes.
        """
        yield torch.arange(len(targets.id_N), device=targets.id_N.device), None, targets.id_N

    def count(self, batch: Batch) -> int:
        return 0 if batch.mlm is None else len(batch.mlm.position_N)

    def prepare(self, batch: Batch) -> Batch:
        """Chooses positions, and masks them in place or in copies. Draws depend on (seed, epoch, example, view,
        position)."""
        if batch.mlm is not None:
            raise UserError(
                "criterion: masked_lm and target_language_mlm both choose and mask the tokens to predict, so a run has "
                "one of them: leave the other out"
            )
        if self.alone or self.config.positions == "unmasked":
            at, masked = self._choose(batch, 0)
            return self._masked(batch, masked).with_(mlm=self._targets(batch, at))
        at, masked = self._choose(batch, MASKED_VIEW)
        unlabelled = torch.full_like(batch.label_B, IGNORE)
        copy = self._masked(batch, masked).with_(view_B=batch.view_B + MASKED_VIEW, label_B=unlabelled, log={})
        return join([batch, copy]).with_(mlm=self._targets(batch, at, shift=len(batch.ids_T)))

    def true_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What each token is predicted as: id_T and language_T."""
        return true_ids(batch), batch.language_T

    def _targets(self, batch: Batch, at: Tensor, shift: int = 0) -> MLMTargets:
        id_T, language_T = self.true_tokens(batch)
        return MLMTargets(at + shift, id_T[at], language_T[at])

    def _choose(self, batch: Batch, view: int) -> tuple[Tensor, Tensor]:
        """Positions to predict, and those of them to mask."""
        sequence_T = batch.layout.sequence_T.cpu().numpy()
        position_T = batch.layout.position_T.cpu().numpy()
        uid_T, view_T = batch.uid_B.cpu().numpy()[sequence_T], batch.view_B.cpu().numpy()[sequence_T] + view
        draw_T = uniform(batch.seed, batch.epoch, "mlm/position", uid_T, view_T, position_T)
        possible_T = self.predictable(batch) & ~batch.special_T.cpu().numpy()
        at = np.flatnonzero(possible_T & (draw_T < self.config.mask_rate))
        share = {"masked": 1.0, "unmasked": 0.0, "mixed": MIXED_SHARE}[self.config.positions]
        masked = at[uniform(batch.seed, batch.epoch, "mlm/mask", uid_T[at], view_T[at], position_T[at]) < share]
        device = batch.ids_T.device
        return torch.from_numpy(at).to(device), torch.from_numpy(masked).to(device)

    def _masked(self, batch: Batch, masked: Tensor) -> Batch:
        """The batch with the mask at these positions, on both sides of a mix."""
        if len(masked) == 0:
            return batch
        mix = batch.mix and replace(batch.mix, other_ids_T=batch.mix.other_ids_T.index_fill(0, masked, self.mask_id))
        return batch.with_(ids_T=batch.ids_T.index_fill(0, masked, self.mask_id), mix=mix)

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss:
        h_TD = hidden[self.layers[0]]
        loss = h_TD.sum() * 0.0
        right, targets = torch.zeros((), device=h_TD.device), batch.mlm
        if targets is None or len(targets.position_N) == 0:
            return Loss(loss.float(), {"accuracy": (0.0, 0.0)})
        groups = [
            (members, ids_V, target_N, self.vocab_size if ids_V is None else len(ids_V))
            for members, ids_V, target_N in self.groups(targets, batch.languages, model)
        ]
        many = sum(len(members) * size for members, _, _, size in groups) > MAX_LOGITS
        for members, ids_V, target_N, size in groups:
            position_N = targets.position_N[members]
            chunk = max(1, MAX_LOGITS // size)
            for start in range(0, len(members), chunk):
                h_ND = h_TD[position_N[start : start + chunk]]
                arguments = (model, h_ND, ids_V, target_N[start : start + chunk])
                if many:
                    part, hits = checkpoint(_loss_over, *arguments, use_reentrant=False)
                else:
                    part, hits = _loss_over(*arguments)
                loss = loss + part
                right += hits
        return Loss(loss, {"accuracy": (right, float(len(targets.position_N)))})


def _loss_over(model: Any, h_ND: Tensor, ids_V: Tensor | None, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax over the vocabulary given, and how often the target has the highest logit."""
    logits_NV = model.mlm_logits(h_ND, ids_V)
    return F.cross_entropy(logits_NV, target_N, reduction="sum"), (logits_NV.detach().argmax(-1) == target_N).sum()


def true_ids(batch: Batch) -> Tensor:
    """Ids after code-switching: mixup has moved them to the other side of the mix."""
    return batch.ids_T if batch.mix is None else batch.mix.other_ids_T
