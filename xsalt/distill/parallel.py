"""How near switched sentences come to real ones: chrF against row-parallel sentences of the target language.

XNLI's dev sets are translations of each other row by row. They only measure: nothing is trained or chosen on them.
chrF is sacreBLEU's (Popović 2015), on its scale of 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.chrf import CHRF

from xsalt.data.dataset import Dataset, Example
from xsalt.data.substitutions import SubstitutionTable
from xsalt.randomness import permutation
from xsalt.text.tokenizer import Tokenizer

ROWS = 500
"""Rows that are measured: always the same ones of a data set and seed."""


def are_parallel(rows: Sequence[Example], others: Sequence[Example]) -> bool:
    """Whether two languages' rows are translations of each other, as far as their number and labels tell."""
    return len(rows) > 0 and [row.label for row in rows] == [row.label for row in others]


def chrf_of_switching(
    table: SubstitutionTable,
    dataset: Dataset,
    tokenizer: Tokenizer,
    parallel: Mapping[str, Sequence[Example]],
    threshold: float,
    seed: int,
) -> dict[str, dict[str, float]]:
    """``chrf_switched`` and ``chrf_source`` for each target language of the table that has parallel rows.

    Args:
        dataset: rows of one source language, the corpus of the table.
        parallel: target language -> its rows, as many and in the same order.
        threshold: every token with a substitution of at least this probability is switched to the best one.

    Both are measured on the same tokens, as they are decoded, so that they differ by the switching alone.
    """
    sample = permutation(seed, 0, "augment/chrf", len(dataset))[:ROWS].tolist()
    spans = [_texts(dataset, row) for row in sample]
    scorer = CHRF()
    found: dict[str, dict[str, float]] = {}
    for column, language in enumerate(table.languages):
        if language not in parallel:
            continue
        references: list[str] = []
        switched: list[str] = []
        source: list[str] = []
        for row, texts in zip(sample, spans, strict=True):
            example = parallel[language][row]
            translations = [text for text in (example.first, example.second) if text is not None]
            if len(texts) != len(translations):  # an empty text, or one with a special token in it
                continue
            for span, translation in zip(texts, translations, strict=True):
                ids = np.asarray(dataset.ids[span])
                references.append(translation)
                source.append(tokenizer.decode(ids.tolist()))
                switched.append(tokenizer.decode(_switched(table, span, column, ids, threshold).tolist()))
        if not references:
            continue
        found[language] = {
            "chrf_switched": round(scorer.corpus_score(switched, [references]).score, 2),
            "chrf_source": round(scorer.corpus_score(source, [references]).score, 2),
        }
    return found


def _texts(dataset: Dataset, row: int) -> list[slice]:
    """Where the texts of a row lie in the data set's tokens: the runs between special tokens."""
    start, end = int(dataset.offsets[row]), int(dataset.offsets[row + 1])
    word = np.concatenate([[False], ~np.asarray(dataset.special[start:end]), [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(word))
    return [slice(start + int(a), start + int(b)) for a, b in edges.reshape(-1, 2)]


def _switched(
    table: SubstitutionTable, span: slice, column: int, ids: npt.NDArray[np.int32], threshold: float
) -> npt.NDArray[np.int32]:
    best, probability = table.ids_NLK[span, column, 0], table.probability_NLK[span, column, 0]
    return np.where((best >= 0) & (probability.astype(np.float32) >= threshold), best, ids)
