"""Scores of substitutions: probabilities over one language's vocabulary, for all languages from one hidden state.

Shapes: N positions, D width, V vocabulary of one language, L languages, k best.

Three methods, all softmax over V_l only ("predict only tokens of a specific target language", SALT, arXiv 2309.10891):

- ``mlm``: the masked-language-model head of the checkpoint, at positions that are *not* masked (*assumed*).
- ``lens``, for encoders without a head: cosine of an early hidden state with the rows of the embedding table, divided
  by a temperature (ours). Low layers of a multilingual encoder still lie close to their word rows, translations too.

- ``anchors``, likewise: cosine with the mean states of the candidates in plain text, see ``anchors.py``.

A substitution that is the token itself, in whatever case, means "leave it as it is". Into a source language the
candidates are synonyms: there the token itself keeps its share of the softmax but is never chosen.
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
from xsalt.distill.anchors import ROWS, Anchors
from xsalt.distill.words import spellings, stands_alone, starts_word_V, whole_words_T
from xsalt.text.language_vocab import UNSPACED, LanguageVocabularies, letters_V
from xsalt.text.tokenizer import Tokenizer

TILE = 512
"""Positions scored at a time against one vocabulary: the logits of a tile stay in the processor's cache."""
CUDA_TILE = 8192
"""The same on CUDA, where a tile is to be work for the whole device."""


@dataclass(frozen=True)
class Candidates:
    """What may replace a token in one language: ids, their decoder rows and biases.

    Attributes:
        spelling_V: numbers of their spellings, see ``spellings``.
        synonyms: the language is a source language, so that a token is no candidate for itself, in whatever case.
    """

    ids_V: Tensor
    spelling_V: Tensor
    rows_VD: Tensor
    bias_V: Tensor
    synonyms: bool = False


def best_of(query_ND: Tensor, spelling_N: Tensor, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable candidates of each position, ids and probabilities (float32), of shape (N, k).

    The softmax runs over all the candidates. Ties go to the lower id. Where there are fewer than k, ids are -1.

    Args:
        spelling_N: numbers of the spellings of the tokens themselves.
    """
    N, V = len(query_ND), len(candidates.ids_V)
    ids_Nk = torch.full((N, k), -1, dtype=torch.int64, device=query_ND.device)
    probability_Nk = torch.zeros((N, k), device=query_ND.device)
    size = CUDA_TILE if query_ND.is_cuda else TILE
    for start in range(0, N if V else 0, size):
        tile = slice(start, min(start + size, N))
        rows = tile.stop - start
        logits = F.linear(F.pad(query_ND[tile], (0, 0, 0, -rows % ROWS)), candidates.rows_VD).float()
        logits += candidates.bias_V
        if candidates.synonyms:
            own = torch.zeros_like(logits, dtype=torch.bool)
            own[:rows] = candidates.spelling_V == spelling_N[tile, None]
            top, column = top_of(logits.masked_fill(own, -torch.inf), min(k, V))
            highest = logits.amax(1, keepdim=True)
        else:
            top, column = top_of(logits, min(k, V))
            highest = top[:, :1].clone()
        total = logits.sub_(highest).exp_().sum(1, keepdim=True)
        places = min(k, V)
        ids_Nk[tile, :places] = candidates.ids_V[column].masked_fill(top == -torch.inf, -1)[:rows]
        probability_Nk[tile, :places] = ((top - highest).exp() / total)[:rows]
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
    top, column = top.gather(1, order), column.gather(1, order)
    tied_N = (logits_NV >= top[:, -1:]).sum(1) > k  # topk takes any of those that tie for the last place
    if bool(tied_N.any()):
        column[tied_N] = logits_NV[tied_N].argsort(dim=1, descending=True, stable=True)[:, :k]
    return top, column


class Scorer:
    """Scores every word token of a batch in every language.

    Only (parts of) words are scored: pieces with letters and without digits. A piece that starts a word is replaced
    by such pieces only, and a continuation by continuations; languages written without spaces offer all their pieces
    for both. With ``distill.whole_words`` only words of one piece are scored, against pieces that are words alone.

    Args:
        model: an encoder with word rows at ``model.embeddings.word``, and a head if ``method`` is ``mlm``.
        languages: those of the table, in its order.
        source: which of them are source languages, for synonyms.
        method: ``mlm``, ``lens`` or ``anchors``; the last needs ``anchors`` of the languages and of those of the
            corpus, ``corpus_languages``.
    """

    joins_blocks = False
    """Whether tokens of several blocks may be scored together without a change in any bit."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        vocabularies: LanguageVocabularies,
        languages: Sequence[str],
        config: DistillConfig,
        method: str,
        source: Sequence[str] = (),
        anchors: Anchors | None = None,
        corpus_languages: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.anchors, self.corpus_languages = anchors, tuple(corpus_languages)
        self.method = method
        self.config = config
        self.layer = model.mlm_layer if method == "mlm" else config.layer
        pieces = tokenizer.pieces()
        self.words_V = letters_V(tokenizer)
        self.starts_V = starts_word_V(pieces, tokenizer.word_initial_V)
        self.spelling_V = spellings(pieces)
        self.spelt_V = np.zeros(len(pieces), dtype=np.bool_)
        if config.whole_words:
            self.spelt_V[:] = [any(map(str.isalnum, piece)) for piece in pieces]
        self.device = next(model.parameters()).device
        self.candidates: dict[bool, list[Candidates]] = {True: [], False: []}
        for language in languages:
            ids = vocabularies.ids[language].astype(np.int64)
            rows_VD, bias_V = self._decoder(language, ids)
            if config.whole_words:
                alone = stands_alone(tokenizer, ids)
                ids, rows_VD, bias_V = ids[alone], rows_VD[alone], bias_V[alone]
            for initial, of_kind in self.candidates.items():
                fits = np.full(len(ids), language in UNSPACED) | (tokenizer.word_initial_V[ids] == initial)
                if config.whole_words and not initial:
                    fits[:] = False
                ids_V = torch.from_numpy(ids[fits]).to(self.device)
                spelling_V = torch.from_numpy(self.spelling_V[ids[fits]]).to(self.device)
                of_kind.append(Candidates(ids_V, spelling_V, rows_VD[fits], bias_V[fits], language in source))

    def _decoder(self, language: str, ids: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows and biases of a vocabulary."""
        if self.anchors is not None:
            hubness_V = self.anchors.hubness(language, self.corpus_languages)
            return self.anchors.rows_VD[language], -hubness_V / (2 * self.config.temperature)
        ids_V = torch.from_numpy(ids).to(self.device)
        rows_VD = self.model.embeddings.word.rows(ids_V).float()
        if self.method == "lens":
            return F.normalize(rows_VD), torch.zeros(len(ids), device=self.device)
        return rows_VD, self.model.mlm_head.bias[ids_V].float()

    def queries(self, batch: Batch) -> Tensor:
        """What the candidates' rows are multiplied with, (T, D): one pass of the encoder, up to the layer that is
        read."""
        hidden = self.model.encode(self.model.embed(batch), batch.layout, keep=(self.layer,), last=self.layer)
        h_TD = hidden[self.layer]
        if self.anchors is not None:
            zero_D = torch.zeros(h_TD.shape[1], device=h_TD.device)  # of languages that no token is in
            mean_LD = torch.stack([self.anchors.mean_D.get(name, zero_D) for name in batch.languages])
            return F.normalize(h_TD.float() - mean_LD[batch.language_T]) / self.config.temperature
        if self.method == "lens":
            return F.normalize(h_TD.float()) / self.config.temperature
        return self.model.mlm_transform(h_TD).float()  # type: ignore[no-any-return]

    def same_as_own(self, ids_TLk: npt.NDArray[np.int32], ids_T: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The substitutions, with the token's own id, "leave it as it is", for what differs from it in case alone."""
        own_T = ids_T[:, None, None]
        same = (ids_TLk >= 0) & (self.spelling_V[ids_TLk] == self.spelling_V[own_T])
        return np.where(same, own_T, ids_TLk)

    def scored(self, ids_T: npt.NDArray[np.integer], special_T: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which tokens of whole sequences are scored."""
        scored_T: npt.NDArray[np.bool_] = self.words_V[ids_T] & ~special_T
        if self.config.whole_words:
            scored_T &= whole_words_T(ids_T, special_T, self.starts_V, self.spelt_V)
        return scored_T

    def score(
        self, ids_T: npt.NDArray[np.integer], special_T: npt.NDArray[np.bool_], query_TD: Tensor
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """Ids (-1: none) and probabilities of shape (T, L, k), from the queries of whole sequences.

        Here the tokens must be those of one block, as how many are scored together changes last bits.
        """
        scored_T = self.scored(ids_T, special_T)
        L, k = len(self.candidates[True]), self.config.k
        ids_TLk = np.full((len(ids_T), L, k), -1, dtype=np.int32)
        probability_TLk = np.zeros((len(ids_T), L, k), dtype=np.float16)
        for initial in (True, False):
            position_N = np.flatnonzero(scored_T & (self.starts_V[ids_T] == initial))
            if len(position_N) == 0:
                continue
            query_ND = query_TD[torch.from_numpy(position_N).to(self.device)]
            spelling_N = torch.from_numpy(self.spelling_V[ids_T[position_N]]).to(self.device)
            found = [best_of(query_ND, spelling_N, candidates, k) for candidates in self.candidates[initial]]
            if found:  # read from the device once for all languages
                ids_TLk[position_N] = torch.stack([ids for ids, _ in found], 1).cpu().numpy()
                probability_TLk[position_N] = torch.stack([chances for _, chances in found], 1).cpu().numpy()
        return ids_TLk, probability_TLk
