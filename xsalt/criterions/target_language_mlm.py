"""SALT's modified masked language modelling: predict only tokens of a specific target language (arXiv 2309.10891).

-log softmax over V_l instead of V, where l is the language of the predicted token. Logits outside of V_l are never
computed.

Shapes: B sequences, T packed tokens, N predicted positions, D width, V vocabulary of one language, L languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xsalt.batch import IGNORE, Batch, Layout, Mix, MLMTargets
from xsalt.errors import UserError
from xsalt.fields import key
from xsalt.protocols import Hidden, Loss, Needs
from xsalt.randomness import uniform
from xsalt.text.language_vocab import LanguageVocabularies

MASKED_VIEW = 1024
"""Added to the view of a sequence's masked copy, so that a copy draws other random numbers than its original."""
MAX_LOGITS = 1 << 25
"""Logits that exist at a time (128 MiB): above it, they are made again in the backward pass, chunk by chunk."""
MIXED_SHARE = 0.8
"""Share of masked positions where ``positions=mixed`` (*assumed*, after BERT's)."""


@dataclass
class TargetLanguageMLMConfig:
    weight: float = key(1.0, "factor on the mean loss, beside other criterions", at_least=0.0)
    mask_rate: float = key(0.15, "share of the tokens that are predicted (assumed, BERT's)", above=0.0, at_most=1.0)
    positions: str = key(
        "masked",
        "predict at masked positions, at unmasked ones, or mixed: 80 % masked",
        choices=("masked", "unmasked", "mixed"),
    )


class TargetLanguageMLM:
    """Masked language modelling over the vocabulary of one language.

    A token can be predicted if it is in the vocabulary of its language; code-switched tokens have their target
    language's. Alone it masks the batch in place and ignores labels. Beside a criterion that needs the sequences as
    they are it appends a masked copy of each, without a label. Counted by predicted token.

    Raises:
        UserError: if no language has a vocabulary.
    """

    Config = TargetLanguageMLMConfig
    needs_mlm_head = True
    needs_vocabularies = True

    def __init__(self, config: TargetLanguageMLMConfig, needs: Needs) -> None:
        self.weight = config.weight
        self.config = config
        self.alone = needs.alone
        self.mask_id = int(needs.tokenizer.mask_id)
        self.layers: Sequence[int] = (int(needs.model.mlm_layer),)
        vocabularies: LanguageVocabularies = needs.vocabularies
        self.ids = {language: ids.astype(np.int64) for language, ids in vocabularies.ids.items() if len(ids)}
        if not self.ids:
            raise UserError(
                "criterion target_language_mlm: no language has a vocabulary: give text with vocabulary.text=DIR"
            )
        self.languages = tuple(self.ids)
        self.trained = _languages_in_training(needs) & self.ids.keys()
        self.member_LV = np.zeros(
            (len(self.languages) + 1, needs.tokenizer.vocab_size), dtype=np.bool_
        )  # last: no vocabulary
        for index, language in enumerate(self.languages):
            self.member_LV[index, self.ids[language]] = True
        self._ids_V: dict[tuple[str, str], Tensor] = {}

    def vocabulary_ids(self) -> np.ndarray:
        """The mask and the vocabularies of the languages that training meets; others are only ever evaluated."""
        parts = [self.ids[language] for language in sorted(self.trained)]
        return np.unique(np.concatenate([*parts, np.array([self.mask_id], dtype=np.int64)]))

    def count(self, batch: Batch) -> int:
        return 0 if batch.mlm is None else len(batch.mlm.position_N)

    def prepare(self, batch: Batch) -> Batch:
        """Chooses positions, and masks them in place or in copies. Draws depend on (seed, epoch, example, view,
        position)."""
        if not self.alone and self.config.positions != "unmasked":
            return self._append(batch)
        at, masked = self._choose(batch, 0)
        return self._masked(batch, masked).with_(mlm=self._targets(batch, at))

    def _choose(self, batch: Batch, view: int) -> tuple[Tensor, Tensor]:
        """Positions to predict, and those of them to mask."""
        sequence_T = batch.layout.sequence_T.cpu().numpy()
        position_T = batch.layout.position_T.cpu().numpy()
        uid_T, view_T = batch.uid_B.cpu().numpy()[sequence_T], batch.view_B.cpu().numpy()[sequence_T] + view
        none = len(self.languages)
        index_L = np.array(
            [self.languages.index(x) if x in self.ids else none for x in batch.languages], dtype=np.int64
        )
        known_T = self.member_LV[index_L[batch.language_T.cpu().numpy()], _true_ids(batch).cpu().numpy()]
        draw_T = uniform(batch.seed, batch.epoch, "mlm/position", uid_T, view_T, position_T)
        at = np.flatnonzero(known_T & ~batch.special_T.cpu().numpy() & (draw_T < self.config.mask_rate))
        share = {"masked": 1.0, "unmasked": 0.0, "mixed": MIXED_SHARE}[self.config.positions]
        masked = at[uniform(batch.seed, batch.epoch, "mlm/mask", uid_T[at], view_T[at], position_T[at]) < share]
        device = batch.ids_T.device
        return torch.from_numpy(at).to(device), torch.from_numpy(masked).to(device)

    def _targets(self, batch: Batch, at: Tensor, shift: int = 0) -> MLMTargets:
        return MLMTargets(at + shift, _true_ids(batch)[at], batch.language_T[at])

    def _masked(self, batch: Batch, masked: Tensor) -> Batch:
        """The batch with the mask at these positions, on both sides of a mix."""
        if len(masked) == 0:
            return batch
        mix = batch.mix and Mix(
            batch.mix.other_ids_T.index_fill(0, masked, self.mask_id), batch.mix.r, batch.mix.by_token
        )
        return batch.with_(ids_T=batch.ids_T.index_fill(0, masked, self.mask_id), mix=mix)

    def _append(self, batch: Batch) -> Batch:
        at, masked = self._choose(batch, MASKED_VIEW)
        copy = self._masked(batch, masked)
        lengths_B = np.concatenate([batch.layout.lengths_B, batch.layout.lengths_B])
        mix = None
        if batch.mix is not None and copy.mix is not None:
            other_T = torch.cat([batch.mix.other_ids_T, copy.mix.other_ids_T])
            mix = Mix(other_T, torch.cat([batch.mix.r, batch.mix.r]), batch.mix.by_token)
        twice = {
            name: torch.cat([getattr(batch, name)] * 2)
            for name in ("type_T", "uid_B", "language_T", "special_T", "corpus_T", "source_ids_T")
        }
        return batch.with_(
            **twice,
            ids_T=torch.cat([batch.ids_T, copy.ids_T]),
            view_B=torch.cat([batch.view_B, batch.view_B + MASKED_VIEW]),
            label_B=torch.cat([batch.label_B, torch.full_like(batch.label_B, IGNORE)]),
            layout=Layout(lengths_B, batch.layout.device),
            mix=mix,
            mlm=self._targets(batch, at, shift=len(batch.ids_T)),
        )

    def __call__(self, model: Any, hidden: Hidden, batch: Batch) -> Loss:
        h_TD = hidden[self.layers[0]]
        loss = h_TD.sum() * 0.0
        right, targets = 0.0, batch.mlm
        if targets is None or len(targets.position_N) == 0:
            return Loss(loss.float(), {"accuracy": (0.0, 0.0)})
        language_N = targets.language_N.cpu().numpy()
        for index in np.unique(language_N):
            members = torch.from_numpy(np.flatnonzero(language_N == index)).to(h_TD.device)
            language = batch.languages[index]
            ids_V = self._vocabulary(language, h_TD.device)
            if language not in self.trained and not torch.is_grad_enabled():
                with torch.inference_mode(False):  # the rows are read in training too, if the batch has their ids
                    model.embeddings.word.grow(self.ids[language])
            target_N = torch.searchsorted(ids_V, targets.id_N[members])
            position_N = targets.position_N[members]
            chunk = max(1, MAX_LOGITS // len(ids_V))
            for start in range(0, len(members), chunk):
                h_ND = h_TD[position_N[start : start + chunk]]
                arguments = (model, h_ND, ids_V, target_N[start : start + chunk])
                if len(members) > chunk:
                    part, hits = checkpoint(_loss_over, *arguments, use_reentrant=False)
                else:
                    part, hits = _loss_over(*arguments)
                loss = loss + part
                right += float(hits)
        return Loss(loss, {"accuracy": (right, float(len(language_N)))})

    def _vocabulary(self, language: str, device: torch.device) -> Tensor:
        if (language, str(device)) not in self._ids_V:
            self._ids_V[language, str(device)] = torch.from_numpy(self.ids[language]).to(device)
        return self._ids_V[language, str(device)]


def _languages_in_training(needs: Needs) -> set[str]:
    """Languages that a training batch may hold: those of the data, and those that augmenters switch to."""
    if needs.train is None:
        return set(needs.languages)
    found = {needs.train.languages[int(index)] for index in np.unique(needs.train.language)}
    return found | set(needs.table.languages if needs.table is not None else ())


def _loss_over(model: Any, h_ND: Tensor, ids_V: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax over the vocabulary given, and how often the target has the highest logit."""
    logits_NV = model.mlm_logits(h_ND, ids_V)
    return F.cross_entropy(logits_NV, target_N, reduction="sum"), (logits_NV.detach().argmax(-1) == target_N).sum()


def _true_ids(batch: Batch) -> Tensor:
    """Ids after code-switching: mixup has moved them to the other side of the mix."""
    return batch.ids_T if batch.mix is None else batch.mix.other_ids_T
