"""Embeddings, with a word table of which only the rows that a run touches are trained.

Shapes: V vocabulary, A active rows, D width, T packed tokens, N ids.

Ids are global everywhere else; this file alone knows that a run on English NLI touches some tens of thousands of
the 250,037 rows of a multilingual table. A row that no batch touches gets a zero gradient: under AdamW with decoupled
weight decay it only shrinks by (1 - lr * wd) at each update. That product is kept as one number and applied when the
row is read, so the mathematics is that of the dense table at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsalt.batch import Batch
from xsalt.errors import UserError
from xsalt.kernels.embedding import embed
from xsalt.kernels.norm import dropout
from xsalt.nn.dropout import KeyedDropout
from xsalt.nn.encoder import EncoderConfig


class ActiveRows(nn.Module):
    """A word table behind its active rows.

    Args:
        table_VD: the whole table; it may be memory-mapped, and it is never written to.
        reload: gives the same table again, from a file. With it the table does not stay in memory beside the active
            rows; it is read again where it is needed.

    Attributes:
        weight: the trainable rows, (A, D) after ``prepare``; the whole table (V, D) before it.
        active_ids: their ids, sorted.
        decay: product of the decay factors that rows outside have missed since ``prepare``.
        sparse_gradient: let the gradient of ``weight`` hold only the rows that the batch touched.
    """

    def __init__(self, table_VD: Tensor, reload: Callable[[], Tensor] | None = None) -> None:
        super().__init__()
        self.vocab_size, self.width = int(table_VD.shape[0]), int(table_VD.shape[1])
        self._table_VD: Tensor | None = table_VD.detach()
        self._reload = reload
        self._owned = False
        self.weight = nn.Parameter(table_VD.detach())
        self.active_ids: npt.NDArray[np.int64] = np.arange(len(table_VD), dtype=np.int64)
        self.decay = 1.0
        self.sparse_gradient = False
        self._grown_ids: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self.register_buffer("_grown_GD", torch.empty(0, table_VD.shape[1], dtype=table_VD.dtype), persistent=False)
        self._grown_GD: Tensor
        self.register_buffer("_row_V", None, persistent=False)
        self._row_V: Tensor | None  # id -> row; rows from A on are grown ones, -1 is none; None: id and row are one

    def _base_VD(self) -> Tensor:
        """The table as it was before the decay of rows that are not active."""
        if self._table_VD is None:
            assert self._reload is not None
            return self._reload()
        return self._table_VD

    def prepare(self, ids: npt.NDArray[np.integer]) -> None:
        """Leaves only these ids trainable. Call it before the optimizer is made, with the same ids on all ranks.

        Raises ``ValueError`` for an id outside of the vocabulary.
        """
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= self.vocab_size:
            raise ValueError(f"active ids must lie in 0..{self.vocab_size - 1}; got {len(wanted)} ids")
        table_VD = self.export()
        if self._owned:  # no longer the table in the file
            self._reload = None
        device = self.weight.device
        self._table_VD, self.decay = None if self._reload is not None else table_VD, 1.0
        rows_AD = table_VD.index_select(0, torch.from_numpy(wanted))
        self.weight = nn.Parameter(rows_AD.to(device), requires_grad=self.weight.requires_grad)
        self._owned = True
        self.active_ids = wanted
        self._grown_ids = np.empty(0, np.int64)
        self._index_rows()

    def grow(self, ids: npt.NDArray[np.integer]) -> None:
        """Lets these ids be read too, frozen (for evaluation in languages that training never sees)."""
        if self._row_V is None:
            return
        outside = np.setdiff1d(np.asarray(ids, dtype=np.int64), self.active_ids)
        grown = np.union1d(self._grown_ids, outside)
        if len(grown) == len(self._grown_ids):
            return
        if grown[0] < 0 or grown[-1] >= self.vocab_size:
            raise ValueError(f"ids must lie in 0..{self.vocab_size - 1}")
        self._grown_ids = grown
        self._index_rows()

    def _index_rows(self) -> None:
        row_V = np.full(self.vocab_size, -1, dtype=np.int64)
        row_V[self.active_ids] = np.arange(len(self.active_ids))
        row_V[self._grown_ids] = len(self.active_ids) + np.arange(len(self._grown_ids))
        device = self.weight.device
        self._row_V = torch.from_numpy(row_V).to(device)
        self._grown_GD = self.weight.detach().new_empty(0, self.width)
        if len(self._grown_ids):
            self._grown_GD = self._base_VD().index_select(0, torch.from_numpy(self._grown_ids)).to(device)

    @property
    def has_grown(self) -> bool:
        """Whether there are rows outside ``weight`` to be read."""
        return len(self._grown_ids) > 0

    def decay_untouched(self, factor: float) -> None:
        """Decays all rows outside the active ones by ``factor`` = 1 - lr * weight decay. Call it at each update."""
        self.decay *= factor

    def row_numbers(self, ids_N: Tensor, trainable: bool) -> Tensor:
        """Rows of these ids in ``weight``; with ``trainable`` false, grown rows too, counted on from A.

        Raises ``KeyError`` for an id that is neither active nor grown.
        """
        if self._row_V is None:
            return ids_N
        row_N = self._row_V[ids_N]
        limit = len(self.active_ids) if trainable else len(self.active_ids) + len(self._grown_ids)
        if row_N.device.type != "cpu":  # no waiting for the device
            torch._assert_async(((row_N >= 0) & (row_N < limit)).all(), "a token id is not among the active rows")
        elif len(row_N) and (int(row_N.min()) < 0 or int(row_N.max()) >= limit):
            missing = sorted({int(i) for i in ids_N[(row_N < 0) | (row_N >= limit)]})
            kind = "trainable" if trainable else "active or grown"
            raise KeyError(
                f"{len(missing)} token ids are not {kind}, for instance {missing[:5]}: give them to prepare() or grow()"
            )
        return row_N

    def trainable_weight(self) -> Tensor:
        """``weight``, made a private copy first if it still is the table that was given and may be trained now."""
        if not self._owned and self.weight.requires_grad and torch.is_grad_enabled():
            self.weight.data = self.weight.data.clone()
            self._owned = True
        return self.weight

    def rows(self, ids_N: Tensor) -> Tensor:
        """rows_ND of active or grown ids, differentiable in the active ones."""
        weight_AD = self.trainable_weight()
        row_N = self.row_numbers(ids_N, trainable=False)
        if self._row_V is None or len(self._grown_ids) == 0:
            return F.embedding(row_N, weight_AD)
        A = len(self.active_ids)
        outside_N = row_N >= A
        rows_ND = F.embedding(row_N.clamp(max=A - 1), weight_AD)
        grown_ND = F.embedding((row_N - A).clamp(min=0), self._grown_GD) * self.decay
        return torch.where(outside_N[:, None], grown_ND, rows_ND)

    def export(self) -> Tensor:
        """table_VD on the CPU, with the decay of untouched rows applied.

        It may be the table that was given: do not write to it.
        """
        if self._row_V is None:
            return self.weight.detach().cpu()
        table_VD = self._base_VD() * self.decay if self.decay != 1.0 else self._base_VD().clone()
        return table_VD.index_copy_(0, torch.from_numpy(self.active_ids), self.weight.detach().cpu())

    def export_parts(self, rows: int = 8192) -> Iterator[Tensor]:
        """``export()`` in parts of so many rows, one after the other: the table never stands in memory whole."""
        return self._parts(self.weight.detach(), self.decay, rows)

    def snapshot(self, rows: int = 8192) -> Callable[[], Iterator[Tensor]]:
        """``export_parts`` as of now, for another thread to call while training goes on: the active rows are copied."""
        return partial(self._parts, self.weight.detach().to("cpu", copy=True), self.decay, rows)

    def _parts(self, weight_AD: Tensor, decay: float, rows: int) -> Iterator[Tensor]:
        for start in range(0, self.vocab_size, rows):
            end = min(start + rows, self.vocab_size)
            if self._row_V is None:
                yield weight_AD[start:end].cpu()
                continue
            part = self._base_VD()[start:end] * decay
            first, last = np.searchsorted(self.active_ids, [start, end])
            inside = torch.from_numpy(self.active_ids[first:last] - start)
            yield part.index_copy_(0, inside, weight_AD[first:last].cpu())

    @torch.no_grad()
    def load(self, table_VD: Tensor) -> None:
        """The reverse of ``export``: takes over a whole table and keeps which rows are active."""
        self._check(table_VD)
        if self._table_VD is None or table_VD.data_ptr() != self._table_VD.data_ptr():
            self._reload = None
        self._table_VD, self.decay = table_VD.detach(), 1.0
        if self._row_V is None:
            self.weight.data = table_VD.detach().to(self.weight.device, self.weight.dtype)
            self._owned = False
            return
        self.load_active(table_VD)
        self._index_rows()

    @torch.no_grad()
    def load_active(self, table_VD: Tensor) -> None:
        """Takes over the active rows of a table and leaves the others as they are."""
        self._check(table_VD)
        self.weight.copy_(table_VD.index_select(0, torch.from_numpy(self.active_ids)))

    def _check(self, table_VD: Tensor) -> None:
        if table_VD.shape != (self.vocab_size, self.width):
            raise ValueError(f"word table of shape {tuple(table_VD.shape)}, expected {(self.vocab_size, self.width)}")


class Embeddings(nn.Module):
    """LayerNorm(word + position + type), dropout. Where the batch carries a mix, word rows are mixed, or by
    ``mix.after`` what would be dropped from."""

    def __init__(self, config: EncoderConfig, table_VD: Tensor, reload: Callable[[], Tensor] | None = None) -> None:
        super().__init__()
        D = config.hidden_size
        self.max_positions = config.max_positions
        self.position_offset = config.position_offset
        self.word = ActiveRows(table_VD, reload)
        self.position = nn.Parameter(torch.empty(config.max_positions + config.position_offset, D))
        self.token_type = nn.Parameter(torch.empty(config.type_vocab_size, D))
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = KeyedDropout(config.dropout, "embeddings")

    def forward(self, batch: Batch) -> Tensor:
        """x_TD. Raises ``UserError`` for a sequence longer than the position table."""
        layout = batch.layout
        if layout.longest > self.max_positions:
            raise UserError(
                f"a sequence has {layout.longest} tokens, but the model reads at most {self.max_positions}:"
                f" set max_length={self.max_positions}"
            )
        norm = (self.norm.weight, self.norm.bias, self.norm.eps)
        position_T = layout.position_T + self.position_offset
        # A model with a single type adds it to every token whatever the segment is (XLM-R).
        type_T = batch.type_T if len(self.token_type) > 1 else torch.zeros_like(batch.type_T)
        places = (self.position, position_T, self.token_type, type_T)
        T, mix = layout.tokens, batch.mix
        ids_N = batch.ids_T if mix is None else torch.cat([batch.ids_T, mix.other_ids_T])
        if self.word.has_grown and not self.training:  # rows of two tables: those of the batch make up a third
            weight_AD, row_N = self.word.rows(ids_N), torch.arange(len(ids_N), device=ids_N.device)
        else:
            weight_AD, row_N = self.word.trainable_weight(), self.word.row_numbers(ids_N, trainable=True)
        sparse = self.training and self.word.sparse_gradient and weight_AD.dtype == torch.float32
        key = self.dropout.key
        if mix is None:
            return embed(weight_AD, row_N, *places, *norm, key, sparse=sparse)
        sequence_T = None if mix.by_token else layout.sequence_T
        if not mix.after:
            row_T, other_T, r = row_N[:T], row_N[T:], mix.r
            return embed(weight_AD, row_T, *places, *norm, key, other_T=other_T, r=r, r_row_T=sequence_T, sparse=sparse)
        # Both sides as one batch of 2T tokens, so that the table gets one gradient; a mask drops from what is mixed.
        twice = (self.position, position_T.repeat(2), self.token_type, type_T.repeat(2))
        source_TD, other_TD = embed(weight_AD, row_N, *twice, *norm, sparse=sparse).chunk(2)
        r_TX = mix.r if sequence_T is None else mix.r[sequence_T]
        return dropout(torch.lerp(other_TD, source_TD, r_TX.to(other_TD.dtype).expand_as(other_TD)), key)
