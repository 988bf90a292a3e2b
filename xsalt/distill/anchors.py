"""Anchors: what a piece looks like in a hidden layer, on average over plain text.

The mean hidden state of a piece (Schuster, Ram, Barzilay and Globerson, *Cross-lingual alignment of contextual word
embeddings*, NAACL 2019, section 3) lies where states of its kind lie, other than the row of the embedding table that
the lens compares with. Each language is centred by the mean of its own states, and pieces that are near to everything
are held back as by CSLS (Conneau et al., *Word translation without parallel data*, ICLR 2018, section 2.3). Nothing but
monolingual text is read.

Shapes: T tokens, V vocabulary of one language, D width, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt.data.dataset import Dataset
from xsalt.data.rows import RowLog, read_text
from xsalt.errors import UserError
from xsalt.logging import Progress
from xsalt.text.language_vocab import LanguageVocabularies

BLOCK = 64
"""Passages encoded together, always the same ones, so that means have the same bits."""
NEIGHBOURS = 10
"""Of CSLS."""


@dataclass(frozen=True)
class Anchors:
    """Anchors of some languages in one hidden layer.

    Attributes:
        mean_D: language -> mean of all its states.
        rows_VD: language -> an anchor for each id of its vocabulary, centred, of length 1.
        seen_V: language -> which ids the text has; others have their centred row of the embedding table.
    """

    mean_D: Mapping[str, Tensor]
    rows_VD: Mapping[str, Tensor]
    seen_V: Mapping[str, Tensor]

    def hubness(self, language: str, source: Sequence[str]) -> Tensor:
        """Mean cosine of each anchor with the NEIGHBOURS nearest anchors of the source languages, (V,).

        0 where the source languages' text has no piece of their vocabularies.
        """
        queries_ND = torch.cat([self.rows_VD[name][self.seen_V[name]] for name in source])
        near = min(NEIGHBOURS, len(queries_ND))
        if near == 0:
            return queries_ND.new_zeros(len(self.rows_VD[language]))
        parts = [  # some thousand candidates against as many queries at a time
            (rows @ queries_ND.T).topk(near, dim=1).values.mean(1) for rows in torch.split(self.rows_VD[language], 1024)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=queries_ND.device)


def read_texts(text: str | None, languages: Sequence[str]) -> dict[str, list[str]]:
    """Language -> its passages, from files ``LL.txt``.

    Raises:
        UserError: naming the file that is missing, empty or not UTF-8.
    """
    if not text:
        raise UserError("distill.method=anchors needs plain text: vocabulary.text=DIR with a file LL.txt a language")
    found = {}
    for language in languages:
        path = Path(text) / f"{language}.txt"
        if not path.exists():
            raise UserError(f"{path}: distill.method=anchors needs it for {language!r}: no such file")
        found[language] = [passage.first for passage in read_text(path, RowLog())]
    return found


def fit_anchors(model: Any, vocabularies: LanguageVocabularies, texts: Mapping[str, Dataset], layer: int) -> Anchors:
    """One pass of the encoder, up to the layer, over all texts. Call it inside ``inference``."""
    means, rows, seen = {}, {}, {}
    progress = Progress(sum(len(data) for data in texts.values()), "anchors", "passage")
    for language, data in texts.items():
        ids = vocabularies.ids[language].astype(np.int64)
        total_D, sum_VD, count_V, tokens = _sums(model, data, ids, layer, progress)
        means[language] = total_D / max(1, tokens)
        table_VD = model.embeddings.word.rows(torch.from_numpy(ids).to(total_D.device)).float()
        anchor_VD = sum_VD / count_V.clamp(min=1)[:, None] - means[language]
        seen[language] = count_V > 0
        plain_VD = table_VD - table_VD.mean(0, keepdim=True)
        rows[language] = F.normalize(torch.where(seen[language][:, None], anchor_VD, plain_VD))
    progress.close()
    return Anchors(means, rows, seen)


def _sums(
    model: Any, data: Dataset, ids: npt.NDArray[np.int64], layer: int, progress: Progress
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sum of all states, sums and counts by id, and how many tokens there are; special tokens are left out."""
    device = next(model.parameters()).device
    place_V = np.full(model.config.vocab_size, len(ids), dtype=np.int64)
    place_V[ids] = np.arange(len(ids))
    sum_VD = torch.zeros(len(ids) + 1, model.config.hidden_size, device=device)
    count_V = torch.zeros(len(ids) + 1, device=device)
    total_D, tokens = torch.zeros(model.config.hidden_size, device=device), 0
    for start in range(0, len(data), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(data)))
        batch = data.batch(block).to(device)
        h_TD = model.encode(model.embed(batch), batch.layout, keep=(layer,), last=layer)[layer].float()
        inside = torch.nonzero(~batch.special_T)[:, 0]
        place_N = torch.from_numpy(place_V[batch.ids_T[inside].cpu().numpy()]).to(device)
        sum_VD.index_add_(0, place_N, h_TD[inside])
        count_V.index_add_(0, place_N, torch.ones(len(inside), device=device))
        total_D += h_TD[inside].sum(0)
        tokens += len(inside)
        progress.step(len(block))
    return total_D, sum_VD[:-1], count_V[:-1], tokens
