"""The lens at a tenth of its cost: in context, each token meets only the likely candidates of its piece.

The hidden state of an early layer is mostly its own piece, so the rows that lie near it in one sentence lie near it in
another. The S best candidates of each piece and language are found once, without context; in context only these are
scored. The candidates left out keep the share of the softmax that they had without context.

Shapes: W pieces of the corpus, L languages, S candidates of a shortlist, U rows of all languages together, N positions,
D width, k best.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt.batch import IGNORE, Batch, Layout
from xsalt.distill.anchors import ROWS
from xsalt.distill.scoring import TILE, Candidates, Scorer, top_of
from xsalt.text.tokenizer import Tokenizer

PIECES = 256
"""Pieces encoded together to find their shortlists."""
TILES = 512
"""Products of ROWS tokens of one piece whose logits are in memory at once."""
NONE = -1e30
"""Logit of a place without a candidate."""


class ShortlistScorer(Scorer):
    """Scores as ``Scorer`` does, each token against the shortlists of its piece only.

    Args:
        whole: the scorer whose candidates and queries are used.
        ids: the ids that occur in the corpus, sorted.
    """

    joins_blocks = True

    def __init__(self, whole: Scorer, tokenizer: Tokenizer, ids: npt.NDArray[np.integer]) -> None:
        self.__dict__.update(whole.__dict__)
        kept = ids[whole.words_V[ids] & (whole.starts_V[ids] | (not whole.config.whole_words))].astype(np.int64)
        self.piece_V = np.full(tokenizer.vocab_size, -1, dtype=np.int64)
        self.piece_V[kept] = np.arange(len(kept))
        every = [candidates for kind in whole.candidates.values() for candidates in kind]
        self.ids_U, first = np.unique(np.concatenate([c.ids_V.cpu().numpy() for c in every]), return_index=True)
        self.rows_UD = torch.cat([c.rows_VD for c in every])[torch.from_numpy(first).to(self.device)]
        self.row_spelling_U = torch.from_numpy(self.spelling_V[self.ids_U]).to(self.device)
        self.spelling_W = torch.from_numpy(self.spelling_V[kept]).to(self.device)
        self.synonyms_L = torch.tensor([c.synonyms for c in whole.candidates[True]], device=self.device)
        self.has_synonyms = any(c.synonyms for c in whole.candidates[True])
        L, S = len(whole.candidates[True]), whole.config.shortlist
        self.row_WLS = torch.full((len(kept), L, S), -1, dtype=torch.int64, device=self.device)
        self.outside_WL = torch.ones(len(kept), L, device=self.device)
        for start in range(0, len(kept), PIECES):
            piece_ids = kept[start : start + PIECES]
            query_ND = self.queries(_alone(piece_ids, tokenizer).to(self.device))[1::3]
            for initial in (True, False):
                local = np.flatnonzero(self.starts_V[piece_ids] == initial)
                if len(local):
                    self._shortlist(
                        start + local, query_ND[torch.from_numpy(local).to(self.device)], whole.candidates[initial]
                    )

    def _shortlist(self, piece_N: npt.NDArray[np.int64], query_ND: Tensor, candidates: list[Candidates]) -> None:
        """Fills the shortlists of these pieces: rows in ``rows_UD``, and (all candidates) / (shortlist) of the
        softmax."""
        index_N = torch.from_numpy(piece_N).to(self.device)
        for language, choice in enumerate(candidates):
            if len(choice.ids_V) == 0:
                continue
            size = min(self.config.shortlist, len(choice.ids_V))
            row_V = torch.from_numpy(np.searchsorted(self.ids_U, choice.ids_V.cpu().numpy())).to(self.device)
            for tile in range(0, len(index_N), TILE):
                query = query_ND[tile : tile + TILE]
                logits = (F.pad(query, (0, 0, 0, -len(query) % ROWS)) @ choice.rows_VD.T)[: len(query)]
                top, column = top_of(logits, size)
                highest = top[:, :1].clone()
                self.row_WLS[index_N[tile : tile + TILE], language, :size] = row_V[column].sort(1).values
                ratio = logits.sub_(highest).exp_().sum(1) / top.sub_(highest).exp_().sum(1)
                self.outside_WL[index_N[tile : tile + TILE], language] = ratio

    def score(
        self, ids_T: npt.NDArray[np.integer], special_T: npt.NDArray[np.bool_], query_TD: Tensor
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """Ids (-1: none) and probabilities of shape (T, L, k), from the queries of whole sequences.

        Tokens of one piece are multiplied together, always ROWS at a time (rows of zeros fill up), so that the bits
        don't depend on which other tokens are there.
        """
        L, k = self.row_WLS.shape[1], self.config.k
        best_TLk = np.full((len(ids_T), L, k), -1, dtype=np.int32)
        probability_TLk = np.zeros((len(ids_T), L, k), dtype=np.float16)
        position_N = np.flatnonzero(self.scored(ids_T, special_T))
        piece_N = self.piece_V[ids_T[position_N]]
        order = np.argsort(piece_N, kind="stable")
        position_N, piece_N = position_N[order], piece_N[order]
        slot_N, piece_X = _slots(piece_N)
        for first in range(0, len(piece_X), TILES):
            tiles = piece_X[first : first + TILES]
            begin, end = np.searchsorted(slot_N, [first * ROWS, (first + len(tiles)) * ROWS])
            slot = torch.from_numpy(slot_N[begin:end] - first * ROWS).to(self.device)
            query_XRD = torch.zeros(len(tiles) * ROWS, query_TD.shape[1], device=self.device)
            query_XRD[slot] = query_TD[torch.from_numpy(position_N[begin:end]).to(self.device)]
            ids, probability = self._best(
                self._logits(query_XRD.view(len(tiles), ROWS, -1), tiles),
                torch.from_numpy(np.repeat(tiles, ROWS)).to(self.device),
            )
            best_TLk[position_N[begin:end]] = ids[slot.cpu().numpy()]
            probability_TLk[position_N[begin:end]] = probability[slot.cpu().numpy()]
        return best_TLk, probability_TLk

    def _logits(self, query_XRD: Tensor, piece_X: npt.NDArray[np.int64]) -> Tensor:
        """logits_NLS of the N = X * ROWS queries, against the shortlists of their pieces."""
        (X, _, D), (_, L, S) = query_XRD.shape, self.row_WLS.shape
        logits_XRC = torch.empty(X, ROWS, L * S, device=self.device)
        rows_CD = torch.empty(L * S, D, device=self.device)
        before = -1
        with one_thread():
            for x, piece in enumerate(piece_X.tolist()):
                if piece != before:
                    row_C = self.row_WLS[piece].view(-1).clamp(min=0)  # places without a candidate are masked later
                    torch.index_select(self.rows_UD, 0, row_C, out=rows_CD)
                    before = piece
                torch.mm(query_XRD[x], rows_CD.T, out=logits_XRC[x])
        return logits_XRC.view(X * ROWS, L, S)

    def _best(self, logits_NLS: Tensor, piece_N: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        N, L, S = logits_NLS.shape
        row_NLS = self.row_WLS[piece_N]
        row_MS = row_NLS.reshape(N * L, S)
        logits_MS = logits_NLS.masked_fill(row_NLS < 0, NONE).view(N * L, S)
        k = min(self.config.k, S)
        if self.has_synonyms:
            own_NLS = self.row_spelling_U[row_NLS.clamp(min=0)] == self.spelling_W[piece_N][:, None, None]
            own_NLS &= self.synonyms_L[:, None]
            top, column = top_of(logits_MS.masked_fill(own_NLS.view(N * L, S), -torch.inf), k)
            highest = logits_MS.amax(1, keepdim=True)
        else:
            top, column = top_of(logits_MS, k)
            highest = top[:, :1]
        row = row_MS.gather(1, column).masked_fill(top <= NONE, -1)
        total = (logits_MS - highest).exp().sum(1) * self.outside_WL[piece_N].reshape(-1)
        probability = (top - highest).exp() / total[:, None]
        ids = np.where(row.cpu().numpy() >= 0, self.ids_U[row.clamp(min=0).cpu().numpy()], -1)
        shape = (N, L, self.config.k)
        best, chances = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
        best[:, :, :k] = ids.reshape(N, L, k)
        chances[:, :, :k] = np.where(ids >= 0, probability.cpu().numpy(), 0).reshape(N, L, k)
        return best, chances


@contextmanager
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: handing each to several threads takes longer than doing it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _slots(piece_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tiles of ROWS slots, each for one piece: the slot of each token (sorted by piece), and the piece of each tile."""
    piece_G, count_G = np.unique(piece_N, return_counts=True)
    tiles_G = -(-count_G // ROWS)
    first_G = np.cumsum(tiles_G) - tiles_G
    within_N = np.arange(len(piece_N)) - np.repeat(np.cumsum(count_G) - count_G, count_G)
    return np.repeat(first_G * ROWS, count_G) + within_N, np.repeat(piece_G, tiles_G)


def _alone(ids: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Batch:
    """A batch of sequences [CLS] piece [SEP]."""
    grid = np.stack([np.full_like(ids, tokenizer.cls_id), ids, np.full_like(ids, tokenizer.sep_id)], axis=1)
    ids_T = torch.from_numpy(grid.reshape(-1))
    zeros_T, zeros_B = torch.zeros_like(ids_T), torch.zeros(len(ids), dtype=torch.int64)
    return Batch(
        ids_T=ids_T,
        type_T=zeros_T,
        layout=Layout(np.full(len(ids), 3, dtype=np.int64)),
        uid_B=zeros_B,
        view_B=zeros_B,
        label_B=torch.full_like(zeros_B, IGNORE),
        language_T=zeros_T,
        languages=("",),
        special_T=torch.tensor([True, False, True]).repeat(len(ids)),
        corpus_T=torch.full_like(ids_T, -1),
        source_ids_T=ids_T,
    )
