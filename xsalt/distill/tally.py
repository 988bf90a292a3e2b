"""How many words a substitution table covers, language by language.

Shapes: T tokens, W words among them, L languages, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from xsalt.data.dataset import Dataset
from xsalt.data.substitutions import Ids, Probabilities, SubstitutionTable

CHUNK = 1 << 16
"""Tokens that are looked at together."""


def count(table: SubstitutionTable, dataset: Dataset, words_V: npt.NDArray[np.bool_], threshold: float) -> Tally:
    """What the best substitutions of a finished table are at this threshold."""
    tally = Tally(words_V, len(table.languages), threshold)
    for start in range(0, len(table), CHUNK):
        tokens = slice(start, min(start + CHUNK, len(table)))
        tally.add(dataset, tokens, table.ids_NLK[tokens, :, 0], table.probability_NLK[tokens, :, 0])
    return tally


class Tally:
    """Counts, by language, what the best substitutions of (parts of) words are.

    Args:
        words_V: pieces that are (parts of) words.
        threshold: probability from which a substitution is accepted.
    """

    def __init__(self, words_V: npt.NDArray[np.bool_], languages: int, threshold: float) -> None:
        self.words_V = words_V
        self.threshold = threshold
        self.words = 0
        self.found_L, self.same_L, self.accepted_L = (np.zeros(languages, dtype=np.int64) for _ in range(3))
        self.sum_L, self.highest_L = np.zeros(languages), np.zeros(languages)

    def add(self, dataset: Dataset, tokens: slice, ids_TL: Ids, probability_TL: Probabilities) -> None:
        """Counts tokens with their best substitutions."""
        own_T = np.array(dataset.ids[tokens])
        word_T = self.words_V[own_T] & ~np.array(dataset.special[tokens])
        ids_WL, probability_WL = ids_TL[word_T], probability_TL[word_T].astype(np.float32)
        same_WL = ids_WL == own_T[word_T, None]
        other_WL = (ids_WL >= 0) & ~same_WL
        self.words += len(ids_WL)
        self.found_L += (ids_WL >= 0).sum(0)
        self.same_L += same_WL.sum(0)
        self.accepted_L += (other_WL & (probability_WL >= self.threshold)).sum(0)
        self.sum_L += probability_WL.sum(0, dtype=np.float64)
        self.highest_L = np.maximum(self.highest_L, np.where(other_WL, probability_WL, 0).max(0, initial=0))

    def stats(self, languages: tuple[str, ...], vocabulary: Mapping[str, int]) -> dict[str, Any]:
        """``coverage``: share of words with an accepted substitution other than themselves; ``identity``: whose best
        one is themselves; ``without``: that have none at any threshold. ``highest_probability``: of those that switch.
        """
        words = max(1, self.words)
        of_language = {
            language: {
                "vocabulary": vocabulary[language],
                "coverage": round(float(self.accepted_L[i]) / words, 4),
                "identity": round(float(self.same_L[i]) / words, 4),
                "without": round(1 - float(self.found_L[i]) / words, 4) if self.words else 0.0,
                "mean_probability": round(float(self.sum_L[i]) / words, 4),
                "highest_probability": float(self.highest_L[i]),
            }
            for i, language in enumerate(languages)
        }
        return {"languages": of_language, "words": self.words, "threshold": self.threshold}
