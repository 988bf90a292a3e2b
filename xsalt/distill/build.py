"""Builds one substitution table span by span, with the same bytes however the work is cut.

Examples are encoded in blocks and kept in spans, both cut in the corpus's order. All that is held in memory belongs to
one span at most; the rest is in files.

Shapes: T tokens of a span, L languages, k best, D width.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from xsalt import distributed
from xsalt.config_distill import THRESHOLD
from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import Ids, Probabilities, TableWriter
from xsalt.distill.parts import Parts
from xsalt.distill.scoring import Scorer
from xsalt.distill.tally import CHUNK, Tally
from xsalt.logging import Progress

BLOCK = 64
"""Examples encoded together. Blocks are cut in the corpus's order and never otherwise: the width of a batch changes
the last bits of its results, and a table must not depend on how it was computed."""

SPAN = 2048
"""Examples of a part, which is what a killed build loses at most: a multiple of BLOCK."""


def ids_in(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The ids that occur, sorted."""
    seen_V = np.zeros(0, dtype=np.bool_)
    for start in range(0, len(dataset.ids), CHUNK):
        ids = dataset.ids[start : start + CHUNK]
        if int(ids.max()) >= len(seen_V):
            seen_V = np.pad(seen_V, (0, int(ids.max()) + 1 - len(seen_V)))
        seen_V[ids] = True
    return np.flatnonzero(seen_V)


@dataclass
class Builder:
    """A table under construction.

    Attributes:
        in_flight: blocks whose queries are in memory at once. It bounds the memory and changes nothing else.
        tokens, seconds: how many were scored by this process, and how long that took.
    """

    scorer: Scorer
    dataset: Dataset
    parts: Parts
    in_flight: int
    tokens: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    @property
    def spans(self) -> int:
        return -(-len(self.dataset) // SPAN)

    def tokens_of(self, span: int) -> slice:
        offsets = self.dataset.offsets
        return slice(int(offsets[span * SPAN]), int(offsets[min((span + 1) * SPAN, len(self.dataset))]))

    def build_missing(self) -> None:
        """Scores the spans that aren't there yet, each on one rank."""
        looked_at = distributed.my_share([1] * self.spans)
        found = distributed.from_all([span for span in looked_at if not self._is_there(span)])
        missing = sorted(itertools.chain.from_iterable(found))
        lengths = [self.tokens_of(span).stop - self.tokens_of(span).start for span in missing]
        mine = [missing[index] for index in distributed.my_share(lengths)]
        self.build(mine, (self.spans - len(missing)) * SPAN)

    def build(self, spans: Sequence[int], done: int = 0) -> None:
        """Scores these spans. ``done``: examples that are scored already, for the progress that is shown."""
        began = time.monotonic()
        examples = sum(min((span + 1) * SPAN, len(self.dataset)) - span * SPAN for span in spans)
        progress = Progress(done + examples, "substitutions", "example", start=done)
        for span in spans:
            self.parts.write(span, *self._score(span, progress))
            self.tokens += self.tokens_of(span).stop - self.tokens_of(span).start
        progress.close()
        self.seconds += time.monotonic() - began

    def _is_there(self, span: int) -> bool:
        tokens = self.tokens_of(span)
        return self.parts.read(span, tokens.stop - tokens.start) is not None

    def _score(self, span: int, progress: Progress) -> tuple[Ids, Probabilities]:
        """Ids and probabilities of a span, (T, L, k)."""
        data, whole = self.dataset, self.tokens_of(span)
        ids_TLk = np.full((whole.stop - whole.start, *self.parts.shape), -1, dtype=np.int32)
        probability_TLk = np.zeros(ids_TLk.shape, dtype=np.float16)
        stop = min((span + 1) * SPAN, len(data))
        for start in range(span * SPAN, stop, BLOCK * self.in_flight):
            end = min(start + BLOCK * self.in_flight, stop)
            cuts = [*range(start, end, BLOCK), end]
            blocks = [np.arange(first, last) for first, last in itertools.pairwise(cuts)]
            queries = [self.scorer.queries(data.batch(block).to(self.scorer.device)) for block in blocks]
            if self.scorer.joins_blocks:
                cuts, queries = [start, end], [torch.cat(queries)]
            for (first, last), query_TD in zip(itertools.pairwise(cuts), queries, strict=True):
                tokens = slice(int(data.offsets[first]), int(data.offsets[last]))
                here = slice(tokens.start - whole.start, tokens.stop - whole.start)
                ids_T, special_T = np.array(data.ids[tokens]), np.array(data.special[tokens])
                best_TLk, probability_TLk[here] = self.scorer.score(ids_T, special_T, query_TD)
                ids_TLk[here] = self.scorer.same_as_own(best_TLk, ids_T)
            progress.step(end - start)
        return ids_TLk, probability_TLk

    def tokens_per_s(self) -> float:
        """Tokens scored in a second, by all ranks together; all must ask."""
        (tokens,), (seconds,) = distributed.sum_over_ranks([self.tokens]), distributed.max_over_ranks([self.seconds])
        return round(tokens / max(1e-9, seconds), 1)

    def merge(
        self,
        table: TableWriter,
        words_V: npt.NDArray[np.bool_],
        vocabulary: Mapping[str, int],
        tokens_per_s: float = 0.0,
    ) -> None:
        """Puts all spans into the table, with its statistics.

        Args:
            words_V: pieces that are (parts of) words.
            vocabulary: size of each language's vocabulary.
            tokens_per_s: of all ranks together.
        """
        tally = Tally(words_V, len(table.languages), THRESHOLD)
        os.listdir(self.parts.folder)  # a network file system may remember that other ranks' parts weren't there
        for span in range(self.spans):
            tokens = self.tokens_of(span)
            part = self.parts.read(span, tokens.stop - tokens.start)
            if part is None:
                raise RuntimeError(f"span {span} of {table.folder} isn't scored")
            table.ids_NLK[tokens], table.probability_NLK[tokens] = part
            tally.add(self.dataset, tokens, part[0][:, :, 0], part[1][:, :, 0])
        table.stats = {
            **tally.stats(table.languages, vocabulary),
            "tokens": len(self.dataset.ids),
            "tokens_per_s": tokens_per_s,
            "fingerprint": table.fingerprint,
        }
