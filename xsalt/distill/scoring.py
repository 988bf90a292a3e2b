"""Scores of substitutions: probabilities over one language's vocabulary, for all languages from one hidden state.

Shapes: N positions, D width, V vocabulary of one language, L languages, k best.

Two methods, both softmax over V_l only ("predict only tokens of a specific target language", SALT, arXiv 2309.10891):

- ``mlm``: the masked-language-model head of the checkpoint, at positions that are *not* masked (*assumed*).
- ``lens``, for encoders without a head: cosine of an early hidden state with the rows of the embedding table, divided
  by a temperature (ours). Low layers of a multilingual encoder still lie close to their word rows, translations too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt.batch import Batch
from xsalt.config_distill import DistillConfig
from xsalt.text.language_vocab import UNSPACED, LanguageVocabularies, letters_V
from xsalt.text.tokenizer import Tokenizer

TILE = 512
"""Positions scored at a time against one vocabulary: the logits of a tile stay in the processor's cache."""
CUDA_TILE = 8192
"""The same on CUDA, where a tile is to be work for the whole device."""


@dataclass(frozen=True)
class Candidates:
    """What may replace a token in one language: ids, their decoder rows and biases."""

    ids_V: Tensor
    rows_VD: Tensor
    bias_V: Tensor


def best_of(query_ND: Tensor, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable candidates of each position, ids and probabilities (float32), of shape (N, k).

    The softmax runs over all the candidates. Ties go to the lower id. Where there are fewer than k, ids are -1.
    """
    N, V = len(query_ND), len(candidates.ids_V)
    ids_Nk = torch.full((N, k), -1, dtype=torch.int64, device=query_ND.device)
    probability_Nk = torch.zeros((N, k), device=query_ND.device)
    size = CUDA_TILE if query_ND.is_cuda else TILE
    for start in range(0, N if V else 0, size):
        tile = slice(start, start + size)
        logits = F.linear(query_ND[tile], candidates.rows_VD).float()
        logits += candidates.bias_V
        top, column = top_of(logits, min(k, V))
        highest = top[:, :1].clone()
        total = logits.sub_(highest).exp_().sum(1, keepdim=True)
        ids_Nk[tile, : top.shape[1]] = candidates.ids_V[column]
        probability_Nk[tile, : top.shape[1]] = (top - highest).exp() / total
    return ids_Nk, probability_Nk


def top_of(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest logits and their columns, equal ones in the order of the columns."""
    if k == 1:  # much faster than topk
        top, column = logits_NV.max(1, keepdim=True)
        return top, column
    top, column = logits_NV.topk(k, dim=1)
    order = torch.argsort(column, dim=1)  # equal scores by id: first by column, then stably by score
    top, column = top.gather(1, order), column.gather(1, order)
    order = torch.argsort(top, dim=1, descending=True, stable=True)
    return top.gather(1, order), column.gather(1, order)


class Scorer:
    """Scores every word token of a batch in every language.

    Only (parts of) words are scored: pieces with letters and without digits. A piece that starts a word is replaced
    by such pieces only, and a continuation by continuations; languages written without spaces offer all their pieces
    for both.

    Args:
        model: an encoder with word rows at ``model.embeddings.word``, and a head if ``method`` is ``mlm``.
        method: ``mlm`` or ``lens``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        vocabularies: LanguageVocabularies,
        languages: Sequence[str],
        config: DistillConfig,
        method: str,
    ) -> None:
        self.model = model
        self.method = method
        self.config = config
        self.layer = model.mlm_layer if method == "mlm" else config.layer
        self.initial_V = tokenizer.word_initial_V
        self.words_V = letters_V(tokenizer)
        self.device = next(model.parameters()).device
        every = [vocabularies.ids[language].astype(np.int64) for language in languages]
        self.candidates: dict[bool, list[Candidates]] = {
            initial: [
                self._candidates(ids if language in UNSPACED else ids[self.initial_V[ids] == initial])
                for language, ids in zip(languages, every, strict=True)
            ]
            for initial in (True, False)
        }

    def _candidates(self, ids: npt.NDArray[np.int64]) -> Candidates:
        ids_V = torch.from_numpy(ids).to(self.device)
        rows_VD = self.model.embeddings.word.rows(ids_V).float()
        if self.method == "lens":
            return Candidates(ids_V, F.normalize(rows_VD), torch.zeros(len(ids), device=self.device))
        return Candidates(ids_V, rows_VD, self.model.mlm_head.bias[ids_V].float())

    def queries(self, batch: Batch) -> Tensor:
        """What the candidates' rows are multiplied with, (T, D): one pass of the encoder, up to the layer that is
        read."""
        hidden = self.model.encode(self.model.embed(batch), batch.layout, keep=(self.layer,), last=self.layer)
        h_TD = hidden[self.layer]
        if self.method == "lens":
            return F.normalize(h_TD.float()) / self.config.temperature
        return self.model.mlm_transform(h_TD).float()  # type: ignore[no-any-return]

    def scored(self, ids_T: npt.NDArray[np.integer], special_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which tokens are scored."""
        scored_T: npt.NDArray[np.bool_] = self.words_V[ids_T] & ~special_T
        return scored_T

    def score(
        self, ids_T: npt.NDArray[np.integer], special_T: npt.NDArray[np.bool_], query_TD: Tensor
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """Ids (-1: none) and probabilities of shape (T, L, k), from the tokens' queries."""
        scored_T = self.scored(ids_T, special_T)
        L, k = len(self.candidates[True]), self.config.k
        ids_TLk = np.full((len(ids_T), L, k), -1, dtype=np.int32)
        probability_TLk = np.zeros((len(ids_T), L, k), dtype=np.float16)
        for initial in (True, False):
            position_N = np.flatnonzero(scored_T & (self.initial_V[ids_T] == initial))
            if len(position_N) == 0:
                continue
            query_ND = query_TD[torch.from_numpy(position_N).to(self.device)]
            found = [best_of(query_ND, candidates, k) for candidates in self.candidates[initial]]
            if found:  # read from the device once for all languages
                ids_TLk[position_N] = torch.stack([ids for ids, _ in found], 1).cpu().numpy()
                probability_TLk[position_N] = torch.stack([chances for _, chances in found], 1).cpu().numpy()
        return ids_TLk, probability_TLk
