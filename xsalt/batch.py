"""The one structure that walks the house: a batch of packed sequences.

Shapes in names: B sequences, T packed tokens of all sequences one after the other, D width, L languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""A label that no criterion counts."""
MASKED_VIEW = 1024
"""Added to the view of a sequence's masked copy, so that a copy draws other random numbers than its original."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. What goes from the CPU to CUDA does not wait for what is computed there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.numel() else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Where the sequences lie in the packed tokens. ``lengths_B``: int64 numpy array, every length at least 1."""

    lengths_B: np.ndarray
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def size(self) -> int:
        return len(self.lengths_B)

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths_B.sum())

    @cached_property
    def longest(self) -> int:
        return int(self.lengths_B.max(initial=0))

    @cached_property
    def offsets(self) -> np.ndarray:
        """B + 1 offsets (numpy int64): sequence b is tokens[offsets[b]:offsets[b + 1]]."""
        return np.concatenate([[0], np.cumsum(self.lengths_B)]).astype(np.int64)

    @cached_property
    def offset_B1(self) -> Tensor:
        """``offsets`` as a tensor."""
        return to_device(torch.from_numpy(self.offsets), self.device)

    @cached_property
    def length_B(self) -> Tensor:
        """``lengths_B`` as a tensor."""
        return to_device(torch.from_numpy(self.lengths_B), self.device)

    @cached_property
    def first_B(self) -> Tensor:
        """Index of the first token of each sequence."""
        return to_device(torch.from_numpy(self.offsets[:-1].copy()), self.device)

    @cached_property
    def sequences(self) -> np.ndarray:
        """Number of the sequence that each token belongs to (numpy int64)."""
        number_T: np.ndarray = np.repeat(np.arange(self.size, dtype=np.int64), self.lengths_B)
        return number_T

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each token within its sequence, from 0 (numpy int64)."""
        position_T: np.ndarray = np.arange(self.tokens, dtype=np.int64) - np.repeat(self.offsets[:-1], self.lengths_B)
        return position_T

    @cached_property
    def sequence_T(self) -> Tensor:
        """``sequences`` as a tensor."""
        return to_device(torch.from_numpy(self.sequences), self.device)

    @cached_property
    def position_T(self) -> Tensor:
        """``positions`` as a tensor."""
        return to_device(torch.from_numpy(self.positions), self.device)

    @cached_property
    def padded_T(self) -> Tensor:
        """Index of each token in the padded B x S grid, flattened (S = longest)."""
        return self.sequence_T * self.longest + self.position_T

    @cached_property
    def equal(self) -> bool:
        """Whether all sequences have one length, so that packed and padded are the same memory."""
        return self.size * self.longest == self.tokens


@dataclass(frozen=True)
class Mix:
    """What embedding mixup reads: word embedding = r * E[ids] + (1 - r) * E[other ids], before position and type.

    ``r``: float32, (B, D) by instance and dimension, (B, 1) by instance, or (T, 1) by token, as ``by_token`` says.
    ``after``: mix the embedding layer's outputs in place of word rows: LayerNorm(E + position + type) of both.
    """

    other_ids_T: Tensor
    r: Tensor
    by_token: bool = False
    after: bool = False


@dataclass(frozen=True)
class MLMTargets:
    """What a masked-language criterion predicts: N positions in the packed tokens, their true ids, their language.

    ``language_N`` stays on the CPU, where predictions are put together by language.
    """

    position_N: Tensor
    id_N: Tensor
    language_N: Tensor


@dataclass(frozen=True)
class Batch:
    """A batch. Every field is a function of (seed, epoch, which examples): never of process state.

    Attributes:
        ids_T: token ids (global vocabulary ids, int64).
        type_T: segment of each token (0 or 1, int64).
        layout: where the sequences lie.
        uid_B: number of the example in its data set (int64); several views of one example share it.
        view_B: 0 the example as it is in the data; other views (switched, masked) count from 1.
        label_B: class of the sequence, ``IGNORE`` where a view has none (int64).
        language_T: language of each token, an index into ``languages`` (int64); code-switching changes it.
        languages: language codes that ``language_T`` and substitution tables index.
        special_T: True at [CLS], [SEP] and the like, which are never switched nor masked.
        corpus_T: index of the token in the data set's flat tokens (-1: none): the key into substitution tables.
        source_ids_T: ids before code-switching (the same tensor as ``ids_T`` where nothing was switched).
        mix: what embedding mixup reads, if any.
        mlm: what a masked-language criterion predicts, if any.
        epoch, seed: keys of everything random.
        progress: epochs done when the batch is drawn, 1.25 for instance: what a curriculum goes by.
    """

    ids_T: Tensor
    type_T: Tensor
    layout: Layout
    uid_B: Tensor
    view_B: Tensor
    label_B: Tensor
    language_T: Tensor
    languages: tuple[str, ...]
    special_T: Tensor
    corpus_T: Tensor
    source_ids_T: Tensor
    seed: int = 0
    epoch: int = 0
    progress: float = 0.0
    mix: Mix | None = None
    mlm: MLMTargets | None = None
    log: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Augmenters' figures: name -> (sum, count), for instance ``augment/switch_rate``."""

    def with_(self, **changes: object) -> Batch:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; itself if it is there already. What only the host reads stays on the CPU:
        ``uid_B``, ``view_B`` and the languages of ``mlm``."""
        here = self.ids_T.device
        if here.type == device.type and device.index in (None, here.index):
            return self
        moved: dict[str, Any] = {
            k: to_device(v, device)
            for k, v in self.__dict__.items()
            if isinstance(v, Tensor) and k not in ("uid_B", "view_B")
        }
        layout = Layout(self.layout.lengths_B, device)
        mix = self.mix and replace(
            self.mix, other_ids_T=to_device(self.mix.other_ids_T, device), r=to_device(self.mix.r, device)
        )
        mlm = self.mlm and replace(
            self.mlm, position_N=to_device(self.mlm.position_N, device), id_N=to_device(self.mlm.id_N, device)
        )
        return replace(self, **moved, layout=layout, mix=mix, mlm=mlm)


OF_SEQUENCES = ("uid_B", "view_B", "label_B")
OF_TOKENS = ("ids_T", "type_T", "language_T", "special_T", "corpus_T", "source_ids_T")


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the sequences of all, in order. They must know the same languages, seed and epoch, and predict
    nothing yet (``mlm``). Where only some are mixed, the others get a mix that changes nothing."""
    first = batches[0]
    if len(batches) == 1:
        return first
    fields = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in (*OF_SEQUENCES, *OF_TOKENS)}
    log: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, (value, count) in batch.log.items():
            before = log.get(name, (0.0, 0.0))
            log[name] = (before[0] + value, before[1] + count)
    layout = Layout(np.concatenate([batch.layout.lengths_B for batch in batches]), first.layout.device)
    return first.with_(**fields, layout=layout, log=log, mix=_join_mixes(batches))


def _join_mixes(batches: Sequence[Batch]) -> Mix | None:
    known = next((batch.mix for batch in batches if batch.mix is not None), None)
    if known is None:
        return None
    others, numbers = [], []
    for batch in batches:
        rows = len(batch.ids_T) if known.by_token else batch.layout.size
        others.append(batch.ids_T if batch.mix is None else batch.mix.other_ids_T)
        numbers.append(known.r.new_ones(rows, known.r.shape[1]) if batch.mix is None else batch.mix.r)
    return replace(known, other_ids_T=torch.cat(others), r=torch.cat(numbers))
