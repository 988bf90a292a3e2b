"""Anchors: what a piece looks like in a hidden layer, on average over plain text.

The mean hidden state of a piece (Schuster, Ram, Barzilay and Globerson, *Cross-lingual alignment of contextual word
embeddings*, NAACL 2019, section 3) lies where states of its kind lie, other than the row of the embedding table that
the lens compares with. Each language is centred by the mean of its own states, and pieces that are near to everything
are held back as by CSLS (Conneau et al., *Word translation without parallel data*, ICLR 2018, section 2.3). Nothing but
monolingual text is read.

Shapes: T tokens, V vocabulary of one language, D width, N queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from xsalt import distributed
from xsalt.data.dataset import Dataset
from xsalt.data.rows import RowLog, read_text
from xsalt.distill.parts import read_sealed, write_sealed
from xsalt.errors import UserError
from xsalt.logging import Progress
from xsalt.text.language_vocab import LanguageVocabularies

BLOCK = 64
"""Passages encoded together, always the same ones, so that means have the same bits."""
ROWS = 8
"""Products have a multiple of so many rows: with fewer, matrix libraries and reductions take other ways, in which the
last bits depend on the number of rows or of threads."""
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
        parts = []
        for rows in torch.split(self.rows_VD[language], 1024):  # against some thousand queries at a time
            whole = F.pad(rows, (0, 0, 0, -len(rows) % ROWS))
            parts.append((whole @ queries_ND.T).topk(near, dim=1).values.mean(1)[: len(rows)])
        return torch.cat(parts) if parts else torch.zeros(0, device=queries_ND.device)


def read_texts(text: str | None, languages: Sequence[str]) -> dict[str, list[str]]:
    """Language -> its passages, from files ``LL.txt``.

    Raises:
        UserError: naming the file that is missing, empty or not UTF-8.
    """
    if not text:
        raise UserError("distill.method=anchors needs plain text: vocabulary.text=DIR with a file LL.txt a language")
    found: dict[str, list[str]] = {}
    for language in languages:
        path = Path(text) / f"{language}.txt"
        if not path.exists():
            raise UserError(f"{path}: distill.method=anchors needs it for {language!r}: no such file")
        found[language] = [passage.first for passage in read_text(path, RowLog())]
    return found


class Sums(NamedTuple):
    """Of the states of a text without its special tokens: of all, and by id of the vocabulary.

    Attributes:
        tokens: how many states there are.
    """

    total_D: Tensor
    sum_VD: Tensor
    count_V: Tensor
    tokens: int


@dataclass(frozen=True)
class SumsFolder:
    """Sums in files, one a language, so that each text is read once for all tables of a model.

    Attributes:
        model: fingerprint of its weights.
    """

    folder: Path
    model: str

    def write(self, of: str, sums: Sums) -> None:
        """Keeps them, all or nothing. ``of``: all that they are a function of beside the model."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = [array.cpu().numpy().astype("<f4").tobytes() for array in sums[:3]]
        write_sealed(self._path(of), self.model + of, b"".join(arrays) + sums.tokens.to_bytes(8, "little"))

    def read(self, of: str, ids: int, width: int) -> Sums | None:
        """Those of a vocabulary of so many ids; None if they aren't there whole."""
        content = read_sealed(self._path(of), self.model + of)
        if content is None:
            return None
        flat = torch.from_numpy(np.frombuffer(content[:-8], dtype="<f4").copy())
        end = width + ids * width
        total_D, sum_VD, count_V = flat[:width], flat[width:end], flat[end:]
        return Sums(total_D, sum_VD.view(ids, width), count_V, int.from_bytes(content[-8:], "little"))

    def _path(self, of: str) -> Path:
        return self.folder / f"{hashlib.sha256((self.model + of).encode()).hexdigest()[:32]}.sums"


def fit_anchors(
    model: Any, vocabularies: LanguageVocabularies, texts: Mapping[str, Dataset], layer: int, kept: SumsFolder
) -> Anchors:
    """One pass of the encoder, up to the layer, over the texts that ``kept`` lacks. Call it inside ``inference``.

    Each language is one rank's, so that its sums are added up in the same order whatever the number of ranks.
    """
    device = next(model.parameters()).device
    ids = {language: vocabularies.ids[language].astype(np.int64) for language in texts}

    def read(language: str) -> Sums | None:
        return kept.read(_key(texts[language], ids[language], layer), len(ids[language]), model.config.hidden_size)

    missing = distributed.from_first([name for name in texts if read(name) is None] if distributed.is_first() else [])
    mine = [missing[index] for index in distributed.my_share([len(texts[name].ids) for name in missing])]
    progress = Progress(sum(len(texts[language]) for language in mine), "anchors", "passage")
    for language in mine:
        sums = _sum_states(model, texts[language], ids[language], layer, progress)
        kept.write(_key(texts[language], ids[language], layer), sums)
    progress.close()
    distributed.wait_for_all()

    means, rows, seen = {}, {}, {}
    for language in texts:
        found = read(language)
        if found is None:
            raise UserError(f"{kept.folder}: the sums of {language} for distill.method=anchors are gone: start again")
        mean_D, count_V = found.total_D.to(device) / max(1, found.tokens), found.count_V.to(device)
        table_VD = model.embeddings.word.rows(torch.from_numpy(ids[language]).to(device)).float()
        anchor_VD = found.sum_VD.to(device) / count_V.clamp(min=1)[:, None] - mean_D
        plain_VD = table_VD - table_VD.mean(0, keepdim=True)
        means[language], seen[language] = mean_D, count_V > 0
        rows[language] = F.normalize(torch.where(seen[language][:, None], anchor_VD, plain_VD))
    return Anchors(means, rows, seen)


def _key(data: Dataset, ids: npt.NDArray[np.int64], layer: int) -> str:
    return f" {data.fingerprint} {hashlib.sha256(ids.tobytes()).hexdigest()} {layer} {BLOCK}"


def _sum_states(model: Any, data: Dataset, ids: npt.NDArray[np.int64], layer: int, progress: Progress) -> Sums:
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
    return Sums(total_D, sum_VD[:-1], count_V[:-1], tokens)
